"""The double of `comfy_api.latest.ui`: images and texts that a node displays, and the files behind them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .contract import bind, facts, signature, with_signature

if TYPE_CHECKING:
    from .double import Host


def _arguments(instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, checked against the contract of the host's version."""
    name = type(instance).__name__
    return bind(signature(facts(instance.host.version)["ui"][name]), f"ui.{name}", args, kwargs)


class SavedResult(dict):
    host: Host

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = _arguments(self, args, kwargs)
        super().__init__(values | {"type": values["type"].value})
        self.filename, self.subfolder, self.type = values["filename"], values["subfolder"], values["type"]


class UIOutput:
    """A value that a node may pass as `ui=`. `build_ui` makes subclasses with a host."""

    host: Host

    def as_dict(self) -> dict[str, Any]:
        raise NotImplementedError


class SavedImages(UIOutput):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = _arguments(self, args, kwargs)
        self.results, self.is_animated = values["results"], values["is_animated"]

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.results} | ({"animated": (True,)} if self.is_animated else {})


class PreviewImage(UIOutput):
    _numbers = count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = _arguments(self, args, kwargs)
        # ComfyUI draws this name from Python's global `random`. Here that would count as a change made by the node.
        prefix = f"ComfyUI_temp_{next(self._numbers):05}"
        temp = self.host.io.FolderType.temp
        self.values = Saver(self.host).save_images(values["image"], prefix, temp, values["cls"], compress_level=1)
        self.animated = values["animated"]

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values, "animated": (self.animated,)}


class PreviewText(UIOutput):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.value = _arguments(self, args, kwargs)["value"]

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class Saver:
    """The functions of ImageSaveHelper, with the host's parameter names."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def save_images(
        self, images: Any, filename_prefix: str, folder_type: Any, cls: Any, compress_level: int
    ) -> list[SavedResult]:
        folder, name, number, subfolder = self._place(images, filename_prefix, folder_type)
        results = []
        for index, image in enumerate(images):
            path = folder / f"{name.replace('%batch_num%', str(index))}_{number + index:05}_.png"
            to_pil(image).save(path, pnginfo=self._metadata(cls), compress_level=compress_level)
            results.append(self._record(path, subfolder, folder_type))
        return results

    def get_save_images_ui(self, **values: Any) -> SavedImages:
        return self.host.ui.SavedImages(self.save_images(folder_type=self.host.io.FolderType.output, **values))

    def save_animated_png(
        self,
        images: Any,
        filename_prefix: str,
        folder_type: Any,
        cls: Any,
        fps: float,
        suffix: str = "png",
        **save: Any,
    ) -> SavedResult:
        folder, name, number, subfolder = self._place(images, filename_prefix, folder_type)
        path = folder / f"{name}_{number:05}_.{suffix}"
        first, *rest = [to_pil(image) for image in images]
        first.save(path, save_all=True, append_images=rest, duration=int(1000 / fps), **save)
        return self._record(path, subfolder, folder_type)

    def get_save_animated_png_ui(self, images: Any, suffix: str = "png", **values: Any) -> SavedImages:
        output = self.host.io.FolderType.output
        result = self.save_animated_png(images, folder_type=output, suffix=suffix, **values)
        return self.host.ui.SavedImages([result], len(images) > 1)

    def save_animated_webp(self, **values: Any) -> SavedResult:
        return self.save_animated_png(suffix="webp", **values)

    def get_save_animated_webp_ui(self, **values: Any) -> SavedImages:
        return self.get_save_animated_png_ui(suffix="webp", **values)

    def _metadata(self, cls: Any) -> Any:
        """The workflow as PNG text, if the node asks for it and the user has not disabled it."""
        from PIL.PngImagePlugin import PngInfo

        if self.host.args.disable_metadata or cls is None or not cls.hidden:
            return None
        info = PngInfo()
        if cls.hidden.prompt:
            info.add_text("prompt", json.dumps(cls.hidden.prompt))
        for key, value in (cls.hidden.extra_pnginfo or {}).items():
            info.add_text(key, json.dumps(value))
        return info

    def _place(self, images: Any, prefix: str, folder_type: Any) -> tuple[Path, str, int, str]:
        """Folder, file name, number of the first file, and the folder's path below the type's root."""
        paths = self.host.folder_paths
        height, width = images[0].shape[:2]
        root = paths.get_directory_by_type(folder_type.value)
        folder, name, number, subfolder, _ = paths.get_save_image_path(prefix, root, width, height)
        return Path(folder), name, number, subfolder

    def _record(self, path: Path, subfolder: str, folder_type: Any) -> SavedResult:
        (self.host.previews if folder_type is self.host.io.FolderType.temp else self.host.saved).append(path)
        return self.host.ui.SavedResult(path.name, subfolder, folder_type)


def build_ui(host: Host) -> SimpleNamespace:
    """The names of `comfy_api.latest.ui` that the contract has."""
    contract, prefix = facts(host.version)["ui"], "ImageSaveHelper."
    saver = Saver(host)
    savers = {
        name.removeprefix(prefix): staticmethod(
            with_signature(f"ui.{name}", parameters, getattr(saver, name.removeprefix(prefix)))
        )
        for name, parameters in contract.items()
        if name.startswith(prefix)
    }
    bases = (SavedResult, SavedImages, PreviewImage, PreviewText)
    classes = {base.__name__: type(base.__name__, (base,), {"host": host}) for base in bases}
    return SimpleNamespace(**classes, ImageSaveHelper=type("ImageSaveHelper", (), savers))


def to_pil(image: Any) -> Any:
    """[H, W, C] in 0..1 to 8 bits. As in ComfyUI, a tensor that requires grad is an error."""
    from PIL import Image

    return Image.fromarray((255 * image.cpu().numpy()).clip(0, 255).astype("uint8"))
