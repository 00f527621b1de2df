"""Where the time of a training step (StyleGAN-NADA, arXiv:2108.00946) goes, and how much memory it takes at most.

The loop itself is watched, not a copy of it: hooks on the networks and on the optimiser tell when a part has ended.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..adaptation.adapt import Step, adapt
from ..adaptation.config import AdaptConfig
from ..guidance.shifts import ImageShift, TextShift
from ..guidance.targets import weighted_guides
from ..models.clip import ClipGuide
from ..models.generator import Generator

#: In the order of a step. `guide` is resizing and the image towers, of both passes; `backward` includes clipping.
PARTS = ("selection", "teacher", "student", "guide", "backward", "optimiser")


@dataclass(frozen=True)
class Speed:
    """Seconds of every measured step by part, and the peak of memory in bytes where the system tells it."""

    steps: tuple[dict[str, float], ...]
    peak: int | None

    @property
    def seconds(self) -> float:
        """Of a step: the mean, for a choice of layers that is made every few steps only belongs to it too."""
        return statistics.fmean(sum(step.values()) for step in self.steps)

    @property
    def parts(self) -> dict[str, float]:
        return {part: statistics.fmean(step[part] for step in self.steps) for part in PARTS}


class Stopwatch:
    """Adds the time since the last mark to the part that has just ended. clock: seconds, of the wall or of the CPU."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels that were only asked for have taken no time yet
        return self.clock()

    def mark(self, part: str) -> None:
        now = self.now()
        self.parts[part] += now - self.last
        self.last = now

    def lap(self) -> dict[str, float]:
        """The parts of the step that ends here; the next one starts now."""
        parts, self.parts, self.last = self.parts, dict.fromkeys(PARTS, 0.0), self.now()
        return parts


def measure(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift | ImageShift,
    config: AdaptConfig,
    warm: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Speed:
    """Run `config.steps` steps and time all but the first `warm`. The batch passes at once, whatever `config.chunk`
    says: in chunks, parts are computed again on the way back and cannot be told apart.

    on_step hears every step's seconds by part, the warm ones' too, and whatever it raises ends the measurement.

    Raises:
        ValueError: when no step would be left to time, and whatever `adapt` raises.
    """
    if not 0 <= warm < config.steps:
        raise ValueError(
            f"got {config.steps} steps of which {warm} are not timed, expected at least one that is; give more steps."
        )
    device = generator.w_avg.device
    watch, laps = Stopwatch(device, clock), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def finish(_: Step) -> None:
        laps.append(watch.lap())
        if on_step is not None:
            on_step(laps[-1])
            watch.last = watch.now()  # what the listener did is no part of the next step

    config = replace(config, chunk=0)
    with _listening(copy.deepcopy(generator), [guide for guide, _ in weighted_guides(guides)], watch) as watched:
        adapt(watched, guides, shift, config, finish)
    return Speed(tuple(laps[warm:]), peak_memory(device))


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU's memory, what tensors took at most; on a CPU, what the whole process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # has no resource module
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def _listening(teacher: Generator, guides: Sequence[ClipGuide], watch: Stopwatch) -> Iterator[Generator]:
    """Hooks that mark the parts. The loop copies the teacher, and with it the hooks, to make the student."""
    synthesis, mapping = (teacher.get_submodule(name) for name in ("synthesis", "mapping"))
    choosing = True  # until latents are drawn, all that happens is the choice of layers

    def drawn(network: nn.Module, _: Any) -> None:
        nonlocal choosing
        if network is mapping:
            watch.mark("selection")
            choosing = False

    def drawing(network: nn.Module, _: Any) -> None:
        if not choosing and network is not synthesis:
            watch.mark("guide")

    def ended(part: str) -> Callable[..., None]:
        def mark(network: nn.Module, *_: Any) -> None:
            if not choosing:
                watch.mark(part or ("teacher" if network is synthesis else "student"))

        return mark

    def learnt(*_: Any) -> None:
        nonlocal choosing
        watch.mark("optimiser")
        choosing = True

    with ExitStack() as hooks:
        mapping.register_forward_pre_hook(drawn)
        synthesis.register_forward_pre_hook(drawing)
        synthesis.register_forward_hook(ended(""))
        for guide in guides:
            model: Any = guide.model
            hooks.enter_context(_removed(model.visual.register_forward_hook(ended("guide"))))
        hooks.enter_context(_removed(register_optimizer_step_pre_hook(ended("backward"))))
        hooks.enter_context(_removed(register_optimizer_step_post_hook(learnt)))
        yield teacher


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
