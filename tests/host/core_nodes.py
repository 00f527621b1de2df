"""Doubles of the few core nodes that this pack's workflows use. Their /object_info entries are in core_nodes.json.

The entries are those of 0.33.0, trimmed; where another version has other outputs, the contract decides.
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


def core_nodes(host: Host) -> list[type[ComfyNode]]:
    outputs = {name: told["outputs"] for name, told in facts(host.version)["core_nodes"].items()}
    helper = host.ui.ImageSaveHelper

    def give(name: str, *values: Any, ui: Any) -> Any:
        return host.io.NodeOutput(*values[: len(outputs[name])], ui=ui)

    class CoreNode(ComfyNode):
        @classmethod
        def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
            entry = copy.deepcopy(ENTRIES[cls.__name__])
            for field in ("output", "output_is_list", "output_name"):
                entry[field] = entry[field][: len(outputs[cls.__name__])]
            return entry

    class LoadImage(CoreNode):
        @classmethod
        def GET_NODE_INFO_V1(cls) -> dict[str, Any]:  # noqa: N802
            entry = super().GET_NODE_INFO_V1()
            folder = host.folder_paths.get_input_directory()
            entry["input"]["required"]["image"][0] = sorted(
                host.folder_paths.filter_files_content_types(os.listdir(folder), ["image"])
            )
            return entry

        @classmethod
        def validate_inputs(cls, image: str) -> bool | str:
            return host.folder_paths.exists_annotated_filepath(image) or f"Invalid image file: {image}"

        @classmethod
        def fingerprint_inputs(cls, image: str) -> str:
            path = Path(host.folder_paths.get_annotated_filepath(image, None))
            return hashlib.sha256(path.read_bytes()).hexdigest()

        @classmethod
        def execute(cls, image: str) -> Any:
            from PIL import Image, ImageOps

            with Image.open(host.folder_paths.get_annotated_filepath(image, None)) as opened:
                turned = ImageOps.exif_transpose(opened)
                pixels = torch.from_numpy(np.array(turned.convert("RGB"), dtype=np.float32) / 255)
                mask = torch.zeros(64, 64)  # the host's answer for a picture without transparency
                if "A" in turned.getbands():
                    mask = 1 - torch.from_numpy(np.array(turned.getchannel("A"), dtype=np.float32) / 255)
            return host.io.NodeOutput(pixels[None], mask[None])

    class SaveImage(CoreNode):
        @classmethod
        def execute(cls, images: torch.Tensor, filename_prefix: str) -> Any:
            return give("SaveImage", images, ui=helper.get_save_images_ui(images, filename_prefix, cls))

    class PreviewImage(CoreNode):
        @classmethod
        def execute(cls, images: torch.Tensor) -> Any:
            shown = host.ui.PreviewImage(images, cls=cls).as_dict()["images"]
            return give("PreviewImage", images, ui={"images": shown})

    class PreviewAny(CoreNode):
        @classmethod
        def execute(cls, source: Any) -> Any:
            try:
                text = source if isinstance(source, str) else json.dumps(source, indent=4, ensure_ascii=False)
            except TypeError:
                text = str(source)
            return give("PreviewAny", text, ui={"text": (text,)})

    return [LoadImage, SaveImage, PreviewImage, PreviewAny]
