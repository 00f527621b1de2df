"""The one room that knows ComfyUI: folders, devices, progress, and the way pictures travel there.

ComfyUI runs every node inside `torch.inference_mode()` and hands cached outputs out again, hence three rules. Whatever
makes or moves weights runs in `normal_mode()`. What leaves a node lies on the CPU. What comes in is never changed:
`on_device` lends copies.
"""

from __future__ import annotations

import copy
import math
import time
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

from ..nada_core.images import to_pil

__all__ = [
    "DOMAINS", "GENERATORS", "GUIDES", "ComfyExtension", "file_stamp", "files", "find", "for_training", "from_image",
    "io", "metadata", "missing", "normal_mode", "on_device", "save_path", "to_image", "watch",
]  # fmt: skip

Weighed = tuple[tuple[Any, float], ...]  # guides with their weights

GENERATORS, GUIDES, DOMAINS = "stylegan_nada", "stylegan_nada_guides", "stylegan_nada_domains"


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


_register_all()  # at import, because define_schema asks for the lists


def files(kind: str) -> list[str]:
    """The files of a kind that a user can choose, relative to its folders."""
    names = folder_paths.get_filename_list(kind)
    # The generators' folder holds the other two kinds in folders of their own.
    return [name for name in names if kind != GENERATORS or Path(name).parts[0] not in ("guides", "domains")]


def find(kind: str, name: str) -> Path:
    """Where a listed file lies. Raises FileNotFoundError."""
    return Path(folder_paths.get_full_path_or_raise(kind, name))


def missing(kind: str, name: str | None, others: Iterable[str] = ()) -> str | None:
    """What to tell the user about a name that is neither listed nor one of `others`; None when all is well."""
    if name is None or name in others or name in files(kind):
        return None
    folders = " or ".join(folder_paths.get_folder_paths(kind))
    return f"{name!r} was not found. Put the file into {folders} and press R, or choose another one."


def file_stamp(kind: str, name: str) -> tuple[str, int, int] | str:
    """What changes when the file does: path, time and size. The name itself for what is built in."""
    if name not in files(kind):
        return name
    path = find(kind, name)
    return str(path), path.stat().st_mtime_ns, path.stat().st_size


def save_path(prefix: str, suffix: str, folder: str = "") -> Path:
    """A new numbered file for `prefix` in this pack's output folder, which may name folders and tokens like %year%."""
    if not prefix.strip():
        raise ValueError("The filename_prefix is empty; give the file a name.")
    own = Path(folder_paths.get_output_directory(), "stylegan_nada", folder)
    place, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(own))
    while (path := Path(place, f"{name}_{counter:05}_{suffix}")).exists():
        counter += 1
    return path


def metadata(hidden: Any) -> dict[str, Any]:
    """The graph a file was made by, unless the user asked ComfyUI to keep such things out of files."""
    return {} if args.disable_metadata or hidden.prompt is None else {"comfyui_prompt": hidden.prompt}


# ---- pictures -----------------------------------------------------------------------------------------------------


def to_image(images: Tensor) -> Tensor:
    """[N, 3, H, W] in about -1..1 -> ComfyUI's IMAGE: [N, H, W, 3] in 0..1."""
    device = comfy.model_management.intermediate_device()
    return ((images.detach().float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous().to(device)


def from_image(image: Tensor) -> Tensor:
    """ComfyUI's IMAGE -> [N, 3, H, W] in -1..1 on the CPU, a tensor of our own; transparency is dropped."""
    return image[..., :3].detach().to("cpu", torch.float32, copy=True).permute(0, 3, 1, 2).contiguous() * 2 - 1


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
    copies give their memory back.
    """
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        yield modules
        return
    weights = sum(tensor.nbytes for module in modules for tensor in _tensors(module))
    comfy.model_management.free_memory(weights + need, device)
    copies = tuple(_copy(module, device) for module in modules)
    try:
        yield copies
    finally:
        for module in copies:
            module.to_empty(device="meta")  # the caller still holds the module, so its memory is taken from under it
        comfy.model_management.soft_empty_cache()


@contextmanager
def for_training(generator: Any, guides: Weighed) -> Iterator[tuple[Any, Weighed]]:
    """Lend a generator and its weighed guides together, with all the memory ComfyUI can give."""
    with on_device(generator, *(guide for guide, _ in guides), need=1 << 60) as (lent, *encoders):
        yield lent, tuple((encoder, weight) for encoder, (_, weight) in zip(encoders, guides, strict=True))


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


