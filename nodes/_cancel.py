"""Cancellation between any two layers of the networks a node uses: one training step may take long."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def cancellable(modules: Iterable[Any], check: Callable[[], None]) -> Iterator[None]:
    """Inside, call `check` before every layer's forward pass, in copies of the modules, too.

    Other modules of the process are not touched, and no hook is left on anything afterwards.
    """
    hook = _CancelHook(check)
    layers = {layer for module in modules if isinstance(module, nn.Module) for layer in module.modules()}
    # torch's attention takes a slower path, which rounds differently, when it or its parts have hooks.
    attention = {part for layer in layers if isinstance(layer, nn.MultiheadAttention) for part in layer.modules()}
    for layer in layers - attention:
        hook.add(layer)
    try:
        yield
    finally:
        hook.remove()


class _CancelHook:
    """A forward pre-hook. Copies of a module carry it, too, until `remove`."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __call__(self, *_: Any) -> None:
        self.check()

    def __deepcopy__(self, memo: dict[int, Any]) -> _CancelHook:
        self.modules.update([memo[id(module)] for module in self.modules if id(module) in memo])
        return self

    def add(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self)
        self.modules.add(module)

    def remove(self) -> None:
        for module in self.modules:
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is self]:
                del module._forward_pre_hooks[key]
