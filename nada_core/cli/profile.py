"""Time of the parts of a training step (StyleGAN-NADA, arXiv:2108.00946), and its peak memory.

The training loop itself is timed: hooks on the networks and on the optimizer mark the end of each part.
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

#: In the order of a step. `guide` is resizing and CLIP, for both generators; `backward` includes gradient clipping.
PARTS = ("selection", "teacher", "student", "guide", "backward", "optimiser")


@dataclass(frozen=True)
class Speed:
    """Seconds of every timed step by part, and the peak memory in bytes, or None where it is unknown."""

    steps: tuple[dict[str, float], ...]
    peak: int | None

    @property
    def seconds(self) -> float:
        """Mean of a step; steps differ where layers are chosen every few steps only."""
        return statistics.fmean(sum(step.values()) for step in self.steps)

    @property
    def parts(self) -> dict[str, float]:
        return {part: statistics.fmean(step[part] for step in self.steps) for part in PARTS}


class Stopwatch:
    """Add the time since the last mark to a part. clock: seconds, wall or CPU."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def mark(self, part: str) -> None:
        now = self.now()
        self.parts[part] += now - self.last
        self.last = now

    def lap(self) -> dict[str, float]:
        """Return the parts of the step that ends here, and start the next."""
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
    """Train for `config.steps` steps and time all but the first `warm`.

    Args:
        config: `chunk` is ignored, because recomputed chunks cannot be assigned to a part.
        on_step: called with the seconds of every step by part; an exception it raises ends the measurement.

    Raises:
        ValueError: when no step is left to time, and the errors of `adapt`.
    """
    if not 0 <= warm < config.steps:
        raise ValueError(f"Got {config.steps} steps of which {warm} are not timed, expected more steps.")
    device = generator.w_avg.device
    watch, laps = Stopwatch(device, clock), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def finish(_: Step) -> None:
        laps.append(watch.lap())
        if on_step is not None:
            on_step(laps[-1])
            watch.last = watch.now()  # the callback's time belongs to no step

    with _timed(copy.deepcopy(generator), [guide for guide, _ in weighted_guides(guides)], watch) as teacher:
        adapt(teacher, guides, shift, replace(config, chunk=0), finish)
    return Speed(tuple(laps[warm:]), peak_memory(device))


def peak_memory(device: torch.device) -> int | None:
    """Return the peak in bytes: of tensors on a GPU, of the whole process since its start on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":  # has no resource module
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _timed(teacher: Generator, guides: Sequence[ClipGuide], watch: Stopwatch) -> Iterator[Generator]:
    """Mark the parts by hooks. The training loop copies the teacher with its hooks to make the student."""
    synthesis, mapping = teacher.get_submodule("synthesis"), teacher.get_submodule("mapping")
    choosing = True  # until latents are mapped for the step, everything belongs to the selection of layers

    def before_mapping(network: nn.Module, _: Any) -> None:
        nonlocal choosing
        if network is mapping:
            watch.mark("selection")
            choosing = False

    def before_synthesis(network: nn.Module, _: Any) -> None:
        if not choosing and network is not synthesis:
            watch.mark("guide")

    def after_synthesis(network: nn.Module, *_: Any) -> None:
        if not choosing:
            watch.mark("teacher" if network is synthesis else "student")

    def after_guide(*_: Any) -> None:
        if not choosing:
            watch.mark("guide")

    def before_optimizer(*_: Any) -> None:
        watch.mark("backward")

    def after_optimizer(*_: Any) -> None:
        nonlocal choosing
        watch.mark("optimiser")
        choosing = True

    with ExitStack() as hooks:
        mapping.register_forward_pre_hook(before_mapping)
        synthesis.register_forward_pre_hook(before_synthesis)
        synthesis.register_forward_hook(after_synthesis)
        visuals: list[Any] = [guide.model.visual for guide in guides]
        handles = [visual.register_forward_hook(after_guide) for visual in visuals]
        handles += [register_optimizer_step_pre_hook(before_optimizer)]
        handles += [register_optimizer_step_post_hook(after_optimizer)]
        for handle in handles:
            hooks.callback(handle.remove)
        yield teacher
