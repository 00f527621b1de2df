"""Copies of networks on another device for as long as they are used, as ComfyUI lends its GPU to one node at a time."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lend(modules: Sequence[nn.Module], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Yield copies of modules on a device; on exit their memory there is free, even if they are still referenced.

    The modules stay as they are. One that is passed twice is copied once.
    """
    copies: dict[int, nn.Module] = {}
    try:
        for module in modules:
            if id(module) not in copies:
                copies[id(module)] = copy_to(module, device)
        yield tuple(copies[id(module)] for module in modules)
    except BaseException as error:
        _release_frames(error)
        raise
    finally:
        for module in copies.values():
            module.to_empty(device="meta")


def copy_to(module: nn.Module, device: torch.device) -> nn.Module:
    """Deep-copy a module to a device without a second copy on its own: the memo already holds the moved tensors."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad) for p in module.parameters()
    }
    memo |= {id(b): b.detach().to(device) for b in module.buffers()}
    return copy.deepcopy(module, memo)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def _release_frames(error: BaseException | None) -> None:
    """Clear the local variables of finished frames, which hold tensors, along the chain of exceptions."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
