"""Arithmetic of generators: float32, TF32, or mixed precision (Micikevicius et al., arXiv:1710.03740).

bf16 and fp16 store the images between layers in half precision; styles, the last block and the image stay float32.
CLIP models always run in exact float32, because differences of nearly equal unit vectors lose all precision otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch

#: Name to the type of the images between layers.
PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which generators run in `precision`."""
    dtype = PRECISIONS[precision]
    return no_autocast(device) if dtype == torch.float32 else torch.autocast(device.type, dtype)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without automatic mixed precision, on devices that have none, too."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def loss_scale(precision: str, resolution: int) -> float:
    """Factor of a loss before its backward pass in fp16, where the gradients of single pixels would become 0.

    They are smaller the more pixels there are.
    """
    return (resolution / 64) ** 2 if precision == "fp16" else 1.0


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError for a half precision on a device without automatic mixed precision."""
    half = PRECISIONS[precision] != torch.float32
    if half and not torch.amp.is_autocast_available(device.type):
        raise ValueError(f"Got precision {precision}, which {device.type} devices do not support; use fp32.")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, float32 products use TF32 on NVIDIA GPUs or are exact everywhere, for any settings of the process.

    A run enters this once, around forward and backward passes alike. Afterwards the process's settings are as they
    were, made through the `fp32_precision` of torch 2.9 or the older flags.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        switches: list[tuple[Any, str, Any]]
        switches = [(torch.backends.cuda.matmul, "allow_tf32", allowed), (torch.backends.cudnn, "allow_tf32", allowed)]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    else:
        precision, backends = "tf32" if allowed else "ieee", cast(Any, torch.backends)
        gpu: list[tuple[Any, Any]] = [(backends.cuda.matmul, backends), (backends.cudnn.conv, backends.cudnn)]
        cpu: list[tuple[Any, Any]] = [(getattr(backends.mkldnn, op), backends.mkldnn) for op in ("matmul", "conv")]
        switches = [(op, "fp32_precision", precision) for op, _ in gpu]
        switches += [(op, "fp32_precision", "ieee") for op, _ in cpu]
        # An operation that follows its parent reads like it; "none" lets it follow again.
        before = [
            (op, "fp32_precision", "none" if op.fp32_precision == parent.fp32_precision else op.fp32_precision)
            for op, parent in gpu + cpu
        ]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
