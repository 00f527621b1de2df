"""ComfyUI's model folders and devices, and image conversion. Only this module and `_server` import ComfyUI.

ComfyUI runs nodes inside `torch.inference_mode()` and caches their outputs, hence three rules:

- Code that creates or moves weights runs in `normal_mode()`.
- Node outputs are on the CPU.
- Node inputs are never modified: `on_device` yields copies.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import ComfyExtension, io, ui
from torch import Tensor

from ..nada_core.runtime.lending import lend, tensors_of
from ._cancel import cancellable
from ._server import send_text

__all__ = [
    "DIRECTIONS",
    "DOMAINS",
    "ENCODERS",
    "GENERATORS",
    "GUIDES",
    "IDENTITIES",
    "LATENTS",
    "RECIPE_FILES",
    "ComfyExtension",
    "file_stamp",
    "files",
    "find",
    "for_training",
    "from_image",
    "io",
    "metadata",
    "missing",
    "normal_mode",
    "numbered_paths",
    "on_device",
    "output_folder",
    "pasted_image",
    "to_image",
    "to_mask",
    "ui",
]

WeightedGuides = tuple[tuple[Any, float], ...]  # (guide, weight) pairs

GENERATORS, GUIDES, DOMAINS = "stylegan_nada", "stylegan_nada_guides", "stylegan_nada_domains"
ENCODERS, IDENTITIES = "stylegan_nada_encoders", "stylegan_nada_identity"
LATENTS, DIRECTIONS = "stylegan_nada_latents", "stylegan_nada_directions"
RECIPE_FILES = "stylegan_nada_recipes"
# Subfolders of the generator folders that hold other kinds of files.
_OTHER_KINDS = ("guides", "domains", "encoders", "identity", "latents", "directions", "recipes", "runs", "searches")


# ---- files --------------------------------------------------------------------------------------------------------


def _register(kind: str, extensions: set[str], folders: Iterable[Path]) -> None:
    """Register folders and extensions, keeping those of extra_model_paths.yaml and of other packs."""
    known, endings = folder_paths.folder_names_and_paths.get(kind, ([], set()))
    paths = list(known)
    paths += [str(folder) for folder in folders if str(folder) not in paths]
    folder_paths.folder_names_and_paths[kind] = (paths, set(endings) | extensions)


def _register_all() -> None:
    models, own = Path(folder_paths.models_dir), Path(folder_paths.get_output_directory()) / "stylegan_nada"
    weights = {".safetensors", ".pt", ".pth", ".pkl"}
    _register(GENERATORS, weights, [*(models / name for name in ("stylegan_nada", "stylegan", "stylegan2")), own])
    _register(GUIDES, weights | {".bin"}, [models / "stylegan_nada" / "guides"])
    _register(DOMAINS, {".safetensors"}, [models / "stylegan_nada" / "domains", own / "domains"])
    _register(ENCODERS, weights, [models / "stylegan_nada" / "encoders"])
    _register(IDENTITIES, weights, [models / "stylegan_nada" / "identity"])
    arrays = {".safetensors", ".pt", ".npy", ".npz"}
    _register(LATENTS, arrays, [models / "stylegan_nada" / "latents", own / "latents"])
    _register(DIRECTIONS, arrays, [models / "stylegan_nada" / "directions", own / "directions"])
    _register(RECIPE_FILES, {".json"}, [models / "stylegan_nada" / "recipes", own / "recipes"])


_register_all()  # at import, because define_schema lists the files


def files(kind: str) -> list[str]:
    """List the files of a kind, relative to its folders."""
    names = folder_paths.get_filename_list(kind)
    return [name for name in names if kind != GENERATORS or Path(name).parts[0] not in _OTHER_KINDS]


def find(kind: str, name: str) -> Path:
    """Return the path of a listed file.

    Raises:
        ValueError: If the file does not exist.
    """
    if problem := missing(kind, name):
        raise ValueError(problem)
    return Path(folder_paths.get_full_path_or_raise(kind, _local(name)))


def _local(name: str) -> str:
    """Convert path separators: a workflow may have been saved on another operating system."""
    return name.replace("\\", "/").replace("/", os.sep)


def missing(kind: str, name: str | None, builtins: Iterable[str] = ()) -> str | None:
    """Return an error message if `name` is neither a listed file nor a built-in name, else None."""
    if name is None or name in builtins or _local(name) in files(kind):
        return None
    folders = " or ".join(folder_paths.get_folder_paths(kind))
    return f"{name!r} was not found. Put the file into {folders} and press R, or choose another file."


def file_stamp(kind: str, name: str) -> str:
    """Return a cache key that changes with the file and its .json; for a built-in name, return the name.

    It is a digest because ComfyUI saves it in workflow files, which should not contain local paths.
    """
    if missing(kind, name):
        return name
    path = find(kind, name)
    paths = [one for one in (path, path.with_suffix(".json")) if one.is_file()]
    stamp = [(str(one), one.stat().st_mtime_ns, one.stat().st_size) for one in paths]
    return hashlib.sha256(repr(stamp).encode()).hexdigest()


def numbered_paths(prefix: str, suffix: str, folder: str = "") -> Iterator[Path]:
    """Return the paths of numbered files in the output folder of this pack, from the first free number on.

    Another ComfyUI may save to the same folder, so that the number is taken when the file is: `create_atomically`.

    Args:
        prefix: File name; it may contain subfolders and tokens such as %year%.
        suffix: File extension.
        folder: Subfolder of output/stylegan_nada.

    Raises:
        ValueError: If the prefix is empty, contains special characters or leaves the output folder.
    """
    parts = Path(prefix).parts
    invalid = re.search(r'[\x00-\x1f<>:"|?*]', prefix) or Path(prefix).is_absolute() or ".." in parts
    if invalid or not prefix.strip() or not parts:
        raise ValueError(
            f"Got filename_prefix {prefix!r}, expected a file name without special characters; "
            "it may contain subfolders."
        )
    if not folder and parts[0] in _OTHER_KINDS:
        raise ValueError(
            f"Got filename_prefix {prefix!r}, but StyleGAN Loader does not list the subfolder {parts[0]}; "
            "use another folder."
        )
    own = Path(folder_paths.get_output_directory(), "stylegan_nada", folder)
    place, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(own))
    return (Path(place, f"{name}_{number:05}_{suffix}") for number in count(counter))


def output_folder() -> Path:
    """Return the folder of this pack's files."""
    return Path(folder_paths.get_output_directory(), "stylegan_nada")


def metadata(hidden: Any) -> dict[str, Any]:
    """Return the workflow graph for the metadata of a file; empty with --disable-metadata."""
    if args.disable_metadata or hidden.prompt is None:
        return {}
    fields = ("class_type", "inputs")  # not is_changed, which may contain local paths
    graph = {key: {name: node[name] for name in fields if name in node} for key, node in hidden.prompt.items()}
    return {"comfyui_prompt": graph}


# ---- images -------------------------------------------------------------------------------------------------------


def to_image(images: Tensor) -> Tensor:
    """Convert [N, 3, H, W] in -1..1 to a ComfyUI IMAGE, [N, H, W, 3] in 0..1; values outside are clamped."""
    device = comfy.model_management.intermediate_device()
    return (images.detach().float() + 1).div_(2).clamp_(0, 1).permute(0, 2, 3, 1).contiguous().to(device)


def from_image(image: Tensor, channels: int = 3) -> Tensor:
    """Convert a ComfyUI IMAGE to a new [N, C, H, W] tensor in -1..1 on the CPU, keeping at most `channels` channels."""
    return image[..., :channels].detach().to("cpu", torch.float32, copy=True).permute(0, 3, 1, 2).contiguous() * 2 - 1


def to_mask(masks: Tensor) -> Tensor:
    """Convert [N, 1, H, W] in 0..1 to a ComfyUI MASK, [N, H, W]."""
    return masks.detach().float()[:, 0].contiguous().to(comfy.model_management.intermediate_device())


def pasted_image(images: Tensor, masks: Tensor, image: Tensor) -> Tensor:
    """Return an IMAGE with the colors of images [N, C, H, W] in -1..1 where the masks are above 0.

    Elsewhere, and in its alpha, it equals `image` bit for bit: the way to -1..1 and back would round.
    """
    colors = to_image(images)[..., :3]
    base = image[..., :4].detach().to(colors, copy=True).expand(len(colors), -1, -1, -1)
    painted = torch.where(to_mask(masks)[..., None] > 0, colors, base[..., :3])
    return torch.cat([painted, base[..., 3:]], -1)


# ---- torch under ComfyUI ------------------------------------------------------------------------------------------


#: The core names a setting with its class, AdaptConfig.lr; widgets have the name alone.
_FIELD = re.compile(r"\b[A-Z]\w+(?:Config|Choice)\.(?=[a-z])")


@contextmanager
def normal_mode() -> Iterator[None]:
    """Disable ComfyUI's inference mode: tensors created inside it can never require gradients.

    Errors of the core become plain ValueErrors with the names of widgets, because the page shows type and message.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except Exception as error:
            notes = getattr(error, "__notes__", [])  # the page shows none
            text = _FIELD.sub("", " ".join([str(error), *notes]))
            send_text(f"Error: {text}")  # the page hides the message behind "View details"
            if isinstance(error, ValueError | FloatingPointError):
                raise ValueError(text) from error
            raise


@contextmanager
def on_device(*modules: Any, need: int = 0) -> Iterator[tuple[Any, ...]]:
    """Yield copies of modules on ComfyUI's compute device; on the CPU, yield the modules themselves.

    Inside, the user can cancel between any two layers of a forward pass. The device memory is always released.

    Args:
        modules: Modules to copy. A module that is passed twice is copied once.
        need: Bytes to free on the device beyond the size of the weights.
    """
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        with cancellable(modules, _check_cancelled):
            yield modules
        return
    different = {id(module): module for module in modules}.values()
    weights = sum(tensor.nbytes for module in different for tensor in tensors_of(module))
    comfy.model_management.free_memory(weights + need, device)
    try:
        with lend(modules, device) as copies, cancellable(copies, _check_cancelled):
            yield copies
    finally:
        comfy.model_management.soft_empty_cache()


@contextmanager
def for_training(generator: Any, guides: WeightedGuides = (), *others: Any) -> Iterator[tuple[Any, ...]]:
    """Yield a generator, its weighted guides and other optional networks on the device, freeing all memory there."""
    networks = [*(guide for guide, _ in guides), *others]
    with on_device(generator, *(net for net in networks if net is not None), need=1 << 60) as (source, *rest):
        remaining = iter(rest)
        copies = [None if net is None else next(remaining) for net in networks]
        weighted = tuple((encoder, weight) for encoder, (_, weight) in zip(copies, guides, strict=False))
        yield source, weighted, *copies[len(guides) :]


def _check_cancelled() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
