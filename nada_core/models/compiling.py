"""torch.compile where it works, and the module itself where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Compiled(nn.Module):
    """A module of one tensor that is compiled when it first runs, for every new shape again, which takes a minute or
    more. Where that fails, for lack of a C++ compiler for one, one line says so and the module runs as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.quick: Callable[[Tensor], Tensor] | None = torch.compile(module)

    def forward(self, x: Tensor) -> Tensor:
        if self.quick is not None:
            try:
                return self.quick(x)
            except torch.cuda.OutOfMemoryError:  # not the compiler's fault: the caller passes less at once
                raise
            except Exception as error:  # a compiler has many ways to fail, and none is worth a run
                reason = str(error).strip().split("\n")[0]
                logging.getLogger(__name__).warning(
                    "Compiling failed, going on without (%s: %.200s)", type(error).__name__, reason
                )
                self.quick = None
        out: Tensor = self.module(x)
        return out
