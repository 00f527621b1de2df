"""Batch sizes that adapt to the memory of the GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

#: What helps when a training step does not fit even with one latent at a time.
OOM_ADVICE = "Use a smaller CLIP model, fewer of them, fewer trained layers or views, or a smaller generator."


class MicroBatcher:
    """Runs functions with a batch size that is halved, for all later calls too, whenever GPU memory runs out.

    Args:
        size: batch size of the first call.
        advice: one sentence for the error message when batches of one do not fit.
    """

    def __init__(self, size: int, advice: str = OOM_ADVICE) -> None:
        self.size, self.advice = size, advice

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return function(*args, size). A call that runs out of memory must leave no side effects.

        Raises:
            torch.cuda.OutOfMemoryError: when a batch of one does not fit.
        """
        while True:
            try:
                return function(*args, self.size)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Continue outside of the handler: the traceback of a live exception keeps the function's tensors alive.
            if self.size == 1:
                raise torch.cuda.OutOfMemoryError(f"Memory ran out with one latent at a time ({reason}). {self.advice}")
            self.size = (self.size + 1) // 2
            gc.collect()  # exceptions can be part of reference cycles
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether GPU memory ran out: the driver, cuBLAS, cuDNN and MPS raise other errors than PyTorch's allocator."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "_ALLOC_FAILED" in text
