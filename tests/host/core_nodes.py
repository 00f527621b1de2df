"""Doubles of the core nodes that the pack's workflows use; core_nodes.json has their /object_info entries.

The entries are those of ComfyUI 0.33.0, shortened; where another version has other outputs, the contract decides.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .contract import facts
from .schema import ComfyNode

if TYPE_CHECKING:
    from .double import Host

ENTRIES = json.loads(Path(__file__).with_name("core_nodes.json").read_text(encoding="utf-8"))


class CoreNode(ComfyNode):
    """A core node. `core_nodes` makes subclasses with a host."""

    host: Host

    @classmethod
    def output_count(cls) -> int:
        return len(facts(cls.host.version)["core_nodes"][cls.__name__]["outputs"])

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        entry = copy.deepcopy(ENTRIES[cls.__name__])
        for field in ("output", "output_is_list", "output_name"):
            entry[field] = entry[field][: cls.output_count()]
        return entry

    @classmethod
    def result(cls, *values: Any, ui: Any) -> Any:
        return cls.host.io.NodeOutput(*values[: cls.output_count()], ui=ui)


class LoadImage(CoreNode):
    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802
        entry = super().GET_NODE_INFO_V1()
        paths = cls.host.folder_paths
        files = paths.filter_files_content_types(os.listdir(paths.get_input_directory()), ["image"])
        entry["input"]["required"]["image"][0] = sorted(files)
        return entry

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        return cls.host.folder_paths.exists_annotated_filepath(image) or f"Invalid image file: {image}"

    @classmethod
    def fingerprint_inputs(cls, image: str) -> str:
        path = Path(cls.host.folder_paths.get_annotated_filepath(image, None))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def execute(cls, image: str) -> Any:
        from PIL import Image, ImageOps

        with Image.open(cls.host.folder_paths.get_annotated_filepath(image, None)) as opened:
            rotated = ImageOps.exif_transpose(opened)
            pixels = torch.from_numpy(np.array(rotated.convert("RGB"), dtype=np.float32) / 255)
            mask = torch.zeros(64, 64)  # as in ComfyUI for an image without alpha
            if "A" in rotated.getbands():
                mask = 1 - torch.from_numpy(np.array(rotated.getchannel("A"), dtype=np.float32) / 255)
        return cls.host.io.NodeOutput(pixels[None], mask[None])


class SaveImage(CoreNode):
    @classmethod
    def execute(cls, images: torch.Tensor, filename_prefix: str) -> Any:
        return cls.result(images, ui=cls.host.ui.ImageSaveHelper.get_save_images_ui(images, filename_prefix, cls))


class PreviewImage(CoreNode):
    @classmethod
    def execute(cls, images: torch.Tensor) -> Any:
        return cls.result(images, ui={"images": cls.host.ui.PreviewImage(images, cls=cls).as_dict()["images"]})


class PreviewAny(CoreNode):
    @classmethod
    def execute(cls, source: Any) -> Any:
        try:
            text = source if isinstance(source, str) else json.dumps(source, indent=4, ensure_ascii=False)
        except TypeError:
            text = str(source)
        return cls.result(text, ui={"text": (text,)})


def core_nodes(host: Host) -> list[type[ComfyNode]]:
    bases = (LoadImage, SaveImage, PreviewImage, PreviewAny)
    return [type(base.__name__, (base,), {"host": host}) for base in bases]
