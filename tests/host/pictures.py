"""The double of `comfy_api.latest.ui`: pictures and texts that a node shows, and the files behind them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .contract import bind, facts, signature, speaking

if TYPE_CHECKING:
    from .double import Host


class Shown:
    """What a node may hand over as `ui=`."""

    def as_dict(self) -> dict[str, Any]:
        raise NotImplementedError


def build_ui(host: Host) -> SimpleNamespace:
    told = facts(host.version)["ui"]
    folder_type = host.io.FolderType

    def given(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return bind(signature(told[name]), f"ui.{name}", args, kwargs)

    class SavedResult(dict):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            values = given("SavedResult", args, kwargs)
            super().__init__(values | {"type": values["type"].value})
            self.filename, self.subfolder, self.type = values["filename"], values["subfolder"], values["type"]

    class SavedImages(Shown):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            values = given("SavedImages", args, kwargs)
            self.results, self.is_animated = values["results"], values["is_animated"]

        def as_dict(self) -> dict[str, Any]:
            return {"images": self.results} | ({"animated": (True,)} if self.is_animated else {})

    class PreviewImage(Shown):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            values = given("PreviewImage", args, kwargs)
            # The host draws this name from Python's global `random`; here a node must not be blamed for that.
            prefix = f"ComfyUI_temp_{next(names):05}"
            self.values = save(values["image"], prefix, folder_type.temp, values["cls"], compress_level=1)
            self.animated = values["animated"]

        def as_dict(self) -> dict[str, Any]:
            return {"images": self.values, "animated": (self.animated,)}

    class PreviewText(Shown):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.value = given("PreviewText", args, kwargs)["value"]

        def as_dict(self) -> dict[str, Any]:
            return {"text": (self.value,)}

    names = count()

    def metadata(cls: Any) -> Any:
        """The workflow as PNG text, if the node asked for it and the user did not forbid it."""
        from PIL.PngImagePlugin import PngInfo

        if host.args.disable_metadata or cls is None or not cls.hidden:
            return None
        info = PngInfo()
        if cls.hidden.prompt:
            info.add_text("prompt", json.dumps(cls.hidden.prompt))
        for key, value in (cls.hidden.extra_pnginfo or {}).items():
            info.add_text(key, json.dumps(value))
        return info

    def place(images: Any, prefix: str, kind: Any) -> tuple[Path, str, int, str]:
        base = host.folder_paths.get_directory_by_type(kind.value)
        height, width = images[0].shape[:2]
        folder, name, number, below, _ = host.folder_paths.get_save_image_path(prefix, base, width, height)
        return Path(folder), name, number, below

    def remember(path: Path, below: str, kind: Any) -> SavedResult:
        (host.previews if kind is folder_type.temp else host.saved).append(path)
        return SavedResult(path.name, below, kind)

    def save(images: Any, filename_prefix: str, folder_type: Any, cls: Any, compress_level: int) -> list[SavedResult]:
        folder, name, number, below = place(images, filename_prefix, folder_type)
        results = []
        for index, image in enumerate(images):
            path = folder / f"{name.replace('%batch_num%', str(index))}_{number + index:05}_.png"
            to_pil(image).save(path, pnginfo=metadata(cls), compress_level=compress_level)
            results.append(remember(path, below, folder_type))
        return results

    def animate(
        images: Any, filename_prefix: str, folder_type: Any, cls: Any, fps: float, suffix: str = "png", **how: Any
    ) -> SavedResult:
        folder, name, number, below = place(images, filename_prefix, folder_type)
        path = folder / f"{name}_{number:05}_.{suffix}"
        first, *rest = [to_pil(image) for image in images]
        first.save(path, save_all=True, append_images=rest, duration=int(1000 / fps), **how)
        return remember(path, below, folder_type)

    def many(**values: Any) -> SavedImages:
        return SavedImages(save(folder_type=folder_type.output, **values))

    def moving(suffix: str) -> Any:
        def saved(images: Any, **values: Any) -> SavedImages:
            result = animate(images, folder_type=folder_type.output, suffix=suffix, **values)
            return SavedImages([result], len(images) > 1)

        return saved

    savers = {
        "save_images": save,
        "get_save_images_ui": many,
        "save_animated_png": animate,
        "get_save_animated_png_ui": moving("png"),
        "save_animated_webp": lambda **values: animate(suffix="webp", **values),
        "get_save_animated_webp_ui": moving("webp"),
    }
    helper = {
        name: staticmethod(speaking(f"ui.ImageSaveHelper.{name}", told[f"ImageSaveHelper.{name}"], behaviour))
        for name, behaviour in savers.items()
    }
    return SimpleNamespace(
        SavedResult=SavedResult,
        SavedImages=SavedImages,
        PreviewImage=PreviewImage,
        PreviewText=PreviewText,
        ImageSaveHelper=type("ImageSaveHelper", (), helper),
    )


def to_pil(image: Any) -> Any:
    """[H, W, C] in 0..1 to 8 bits; like the host, no tensor that wants a gradient."""
    from PIL import Image

    return Image.fromarray((255 * image.cpu().numpy()).clip(0, 255).astype("uint8"))
