"""The one room that knows ComfyUI: folders, devices, progress, and the way pictures travel there.

ComfyUI runs every node inside `torch.inference_mode()` and hands cached outputs out again, hence three rules. Whatever
makes or moves weights runs in `normal_mode()`. What leaves a node lies on the CPU. What comes in is never changed:
`on_device` lends copies.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import ComfyExtension, io
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..nada_core.io.images import to_pil

__all__ = [
    "DIRECTIONS",
    "DOMAINS",
    "ENCODERS",
    "GENERATORS",
    "GUIDES",
    "IDENTITIES",
    "LATENTS",
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
    "on_device",
    "save_path",
    "to_image",
    "watch",
]

Weighed = tuple[tuple[Any, float], ...]  # guides with their weights

GENERATORS, GUIDES, DOMAINS = "stylegan_nada", "stylegan_nada_guides", "stylegan_nada_domains"
ENCODERS, IDENTITIES = "stylegan_nada_encoders", "stylegan_nada_identity"
LATENTS, DIRECTIONS = "stylegan_nada_latents", "stylegan_nada_directions"
# Folders in the generators' folder that hold no generators.
_APART = ("guides", "domains", "encoders", "identity", "latents", "directions")


# ---- files --------------------------------------------------------------------------------------------------------


def _register(kind: str, extensions: set[str], folders: Iterable[Path]) -> None:
    """Add to what a user's extra_model_paths.yaml or another pack may have registered already."""
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


_register_all()  # at import, because define_schema asks for the lists


def files(kind: str) -> list[str]:
    """The files of a kind that a user can choose, relative to its folders."""
    names = folder_paths.get_filename_list(kind)
    return [name for name in names if kind != GENERATORS or Path(name).parts[0] not in _APART]


def find(kind: str, name: str) -> Path:
    """Where a listed file lies. Raises ValueError for one that is not, or no longer, there."""
    if told := missing(kind, name):
        raise ValueError(told)
    return Path(folder_paths.get_full_path_or_raise(kind, _local(name)))


def _local(name: str) -> str:
    """A name as this machine writes it: workflows travel between those that say a/b and those that say a\\b."""
    return name.replace("\\", "/").replace("/", os.sep)


def missing(kind: str, name: str | None, others: Iterable[str] = ()) -> str | None:
    """What to tell the user about a name that is neither listed nor one of `others`; None when all is well."""
    if name is None or name in others or _local(name) in files(kind):
        return None
    folders = " or ".join(folder_paths.get_folder_paths(kind))
    return f"{name!r} was not found. Put the file into {folders} and press R, or choose another one."


def file_stamp(kind: str, name: str) -> str:
    """What changes when the file, or a .json beside it, does. The name itself for what is built in.

    A digest of path, time and size: ComfyUI writes it into every file it saves, and a path is nobody's business.
    """
    if missing(kind, name):
        return name
    path = find(kind, name)
    beside = [one for one in (path, path.with_suffix(".json")) if one.is_file()]
    told = [(str(one), one.stat().st_mtime_ns, one.stat().st_size) for one in beside]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def save_path(prefix: str, suffix: str, folder: str = "") -> Path:
    """A new numbered file for `prefix` in this pack's output folder, which may name folders and tokens like %year%."""
    parts = Path(prefix).parts
    odd = re.search(r'[\x00-\x1f<>:"|?*]', prefix) or Path(prefix).is_absolute() or ".." in parts
    if odd or not prefix.strip() or not parts:
        raise ValueError(
            f"The filename_prefix is {prefix!r}; give a name, after folders of its own if you like, "
            "without special characters."
        )
    if not folder and parts[0] in _APART:
        raise ValueError(
            f"The filename_prefix {prefix!r} begins with {parts[0]}, where generators are not looked for; "
            "name another folder."
        )
    own = Path(folder_paths.get_output_directory(), "stylegan_nada", folder)
    place, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(own))
    while (path := Path(place, f"{name}_{counter:05}_{suffix}")).exists():
        counter += 1
    return path


def metadata(hidden: Any) -> dict[str, Any]:
    """The graph a file was made by, unless the user asked ComfyUI to keep such things out of files."""
    if args.disable_metadata or hidden.prompt is None:
        return {}
    kept = ("class_type", "inputs")  # not is_changed, in which other packs' nodes may name files of this machine
    graph = {key: {name: node[name] for name in kept if name in node} for key, node in hidden.prompt.items()}
    return {"comfyui_prompt": graph}


# ---- pictures -----------------------------------------------------------------------------------------------------


def to_image(images: Tensor) -> Tensor:
    """[N, 3, H, W] in about -1..1 -> ComfyUI's IMAGE: [N, H, W, 3] in 0..1."""
    device = comfy.model_management.intermediate_device()
    return (images.detach().float() + 1).div_(2).clamp_(0, 1).permute(0, 2, 3, 1).contiguous().to(device)


def from_image(image: Tensor, channels: int = 3) -> Tensor:
    """ComfyUI's IMAGE -> [N, C, H, W] in -1..1 on the CPU, a tensor of our own, with at most so many channels: of the
    usual 3, transparency is dropped."""
    return image[..., :channels].detach().to("cpu", torch.float32, copy=True).permute(0, 3, 1, 2).contiguous() * 2 - 1


# ---- torch under ComfyUI ------------------------------------------------------------------------------------------


@contextmanager
def normal_mode() -> Iterator[None]:
    """Outside of the inference mode that ComfyUI runs nodes in: tensors made there can never be trained again."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def on_device(*modules: Any, need: int = 0) -> Iterator[tuple[Any, ...]]:
    """Lend copies of modules on ComfyUI's compute device; on the CPU, where no copy is needed, the modules themselves.

    need: bytes beyond the weights that the work will take; ComfyUI makes room for them. Whatever happens inside, the
    device gets its memory back. Inside, the user can stop the work between any two layers of a forward pass.
    """
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        with _stoppable():
            yield modules
        return
    originals = {id(module): module for module in modules}  # one that is given twice is copied once
    weights = sum(tensor.nbytes for module in originals.values() for tensor in _tensors(module))
    comfy.model_management.free_memory(weights + need, device)
    copies: dict[int, Any] = {}
    try:
        for key, module in originals.items():
            copies[key] = _copy(module, device)
        with _stoppable():
            yield tuple(copies[id(module)] for module in modules)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold what the work had made on the device so far
        raise
    finally:
        for module in copies.values():
            module.to_empty(device="meta")  # the caller still holds the module, so its memory is taken from under it
        comfy.model_management.soft_empty_cache()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, every module asks before its forward pass whether the user wants to stop: a step may take long."""
    ask = comfy.model_management.throw_exception_if_processing_interrupted
    hook = register_module_forward_pre_hook(lambda *_: ask())
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def for_training(generator: Any, guides: Weighed = (), *others: Any) -> Iterator[tuple[Any, ...]]:
    """Lend a generator, its weighed guides and whatever others look on, with all the memory ComfyUI can give: the
    generator, the guides, and the others in their places. None stays None."""
    nets = [*(guide for guide, _ in guides), *others]
    with on_device(generator, *(net for net in nets if net is not None), need=1 << 60) as (lent, *rest):
        found = iter(rest)
        copies = [None if net is None else next(found) for net in nets]
        weighed = tuple((encoder, weight) for encoder, (_, weight) in zip(copies, guides, strict=False))
        yield lent, weighed, *copies[len(guides) :]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _copy(module: nn.Module, device: torch.device) -> nn.Module:
    """A deep copy whose weights never exist twice on the CPU: deepcopy takes what its memo already has."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad) for p in module.parameters()
    }
    memo |= {id(b): b.detach().to(device) for b in module.buffers()}
    return copy.deepcopy(module, memo)


# ---- progress -----------------------------------------------------------------------------------------------------


def watch(total: int) -> Callable[..., None]:
    """A progress bar on the running node: `tick(done, picture)` moves it and stops the work when the user asked to.

    picture: a callable that gives the preview, [1, 3, H, W] in -1..1. It is called at most twice a second, and less
    often where it is slow, so that looking takes no more than about a tenth of the time.
    """
    bar = comfy.utils.ProgressBar(total)
    due = -math.inf

    def tick(done: int, picture: Callable[[], Tensor] | None = None) -> None:
        nonlocal due
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        start = time.perf_counter()
        if picture is not None and (start >= due or done == total):
            preview = ("JPEG", to_pil(picture()), 512)
            now = time.perf_counter()
            due = now + max(0.5, 10 * (now - start))
        bar.update_absolute(done, total, preview)

    return tick
