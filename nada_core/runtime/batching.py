"""Work that does not fit into memory, done again in smaller portions; and memory that a process keeps for itself."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

#: What to do when even one latent does not fit through a training.
OOM_ADVICE = (
    "Take a smaller guide, fewer guides, fewer trained layers, half the views, or a generator of lower resolution."
)


class MicroBatcher:
    """How many latents pass through the networks at once: half as many whenever memory runs out, and from then on.

    advice: what to do when even one is too many, in a sentence.
    """

    def __init__(self, size: int, advice: str = OOM_ADVICE) -> None:
        self.size, self.advice = size, advice

    def run(self, act: Callable[..., T], *given: Any) -> T:
        """act(*given, size), done again with half the size as often as memory runs out. An act that failed must have
        left nothing behind.

        Raises:
            torch.cuda.OutOfMemoryError: when one latent at a time is still too many; the message says what to do.
        """
        while True:
            try:
                return act(*given, self.size)
            except torch.cuda.OutOfMemoryError as error:
                told = str(error).partition("\n")[0]
            # Out here, because as long as the error is alive its traceback keeps every tensor of the act alive.
            if self.size == 1:
                raise torch.cuda.OutOfMemoryError(f"Memory ran out with one latent at a time ({told}). {self.advice}")
            self.size = (self.size + 1) // 2
            gc.collect()  # a guide of another make may hold on to its error in a circle
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
