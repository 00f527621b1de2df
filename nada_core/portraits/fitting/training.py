"""What the fits share: a time budget, a cosine learning rate, an average of the weights and a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global random state, which initializes modules, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def budget(minutes: float) -> Iterator[tuple[int, float]]:
    """Yield the number of the step, from 1, and the share 0..1 of the time used, until the time is over."""
    start, step = time.monotonic(), 1
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        yield step, progress
        step += 1


def cosine(peak: float, step: int, progress: float, warmup: int, floor: float = 0.0) -> float:
    """Return a learning rate with a linear warm-up over `warmup` steps and a cosine decay to `floor * peak`."""
    return peak * min(1, step / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, lr: float | None, clip: Iterable[Tensor] = ()
) -> None:
    """Take one step, with the gradients of `clip` scaled to a norm of at most 1. lr: None keeps the groups' own."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if lr is None else lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(clip, 1.0)
    optimizer.step()


class Average:
    """An exponential moving average of floating-point tensors by name, with a smaller decay in the first steps."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        weight = 1 - min(self.decay, 1 - 1 / (step + 1))
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, weight)

    def half(self) -> dict[str, Tensor]:
        """Return the average in half precision; integer tensors are unchanged."""
        return {name: t.half() if t.is_floating_point() else t for name, t in self.tensors.items()}


def write_log(log: Path | None, step: int, every: int, progress: float, **figures: Tensor | float) -> None:
    """Append a line to the log in every `every`-th step."""
    if log and step % every == 0:
        with log.open("a") as file:
            file.write(" ".join([f"{step} {progress:.3f}", *(f"{k} {v:.3f}" for k, v in figures.items())]) + "\n")
