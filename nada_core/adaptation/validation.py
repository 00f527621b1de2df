"""Validate a run with a held-out CLIP model, to return its best step and to stop early.

The authors of StyleGAN-NADA (arXiv:2108.00946) advise to train past the desired point and to take an earlier
checkpoint. A run improves in the embedding of the models it is trained with, so a model it is not trained with
compares the checkpoints, on the same latents every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..guidance import metrics
from ..guidance.targets import ClipTarget
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .config import AdaptConfig

_LATENTS = 64  # validated at each checkpoint
CHUNK = 8  # of these at a time

#: Diversity, relative to the source's, below which the score falls in proportion. A higher floor would penalize targets
#: that are less diverse than photos in truth, such as sketches and statues.
DIVERSITY_FLOOR = 0.7


@dataclass(frozen=True)
class Candidate:
    """One checkpoint of a run as the held-out CLIP model measures it.

    Attributes:
        steps: how many steps were done.
        gain: cosine of the images to the target phrase, minus that of the source's images.
        direction: mean cosine between the edits and the text direction.
        diversity: relative to that of the source's images.
    """

    steps: int
    gain: float
    direction: float
    diversity: float

    @property
    def score(self) -> float:
        """Gain times direction, less below the diversity floor; a negative gain counts as it is. A product needs no
        common scale, which different CLIP models do not have."""
        if self.gain <= 0:
            return self.gain
        return self.gain * max(self.direction, 0.0) * min(1.0, self.diversity / DIVERSITY_FLOOR)

    def __str__(self) -> str:
        return (
            f"quality {self.gain:+.3f}, direction {self.direction:.2f}, diversity {self.diversity:.2f} of the source's"
        )


@dataclass(frozen=True)
class HoldOutLoss:
    """One checkpoint of a run as measured by its loss on pairs that are held out."""

    steps: int
    loss: float

    @property
    def score(self) -> float:
        return -self.loss

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}"


@dataclass
class ValidationHistory:
    """The candidates of a run and the values of the best one, on the CPU."""

    candidates: list[Candidate | HoldOutLoss] = field(default_factory=list)
    best_values: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_records(cls, history: Iterable[Mapping[str, Any]], best_values: dict[str, Tensor]) -> ValidationHistory:
        """Rebuild it from a run's history."""
        records = [record["candidate"] for record in history if "candidate" in record]
        return cls([HoldOutLoss(**one) if "loss" in one else Candidate(**one) for one in records], best_values)

    @property
    def best_index(self) -> int:
        """Index of the highest score; of equal ones the first, which is nearer the source."""
        return max(range(len(self.candidates)), key=lambda index: self.candidates[index].score)

    def add(self, candidate: Candidate | HoldOutLoss, copy_values: Callable[[], dict[str, Tensor]]) -> None:
        """Append a candidate and keep a copy of its values when it is the best so far."""
        self.candidates.append(candidate)
        if self.best_index == len(self.candidates) - 1:
            self.best_values = copy_values()

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` candidates brought no improvement; never with a patience of 0."""
        return bool(patience and self.candidates) and len(self.candidates) - 1 - self.best_index >= patience

    def explain(self, judge: str, patience: int) -> str:
        """Say which checkpoint is returned and why; empty without candidates."""
        if not self.candidates:
            return ""
        best, last = self.candidates[self.best_index], self.candidates[-1]
        text = f"Step {best.steps} is the best of {len(self.candidates)} checkpoints by {judge}: {best}."
        if best is not last:
            text += f" Step {last.steps}: {last}."
        return text + (" Stopped early: no improvement." if self.is_over(patience) else "")


class Measure(Protocol):
    """Measures a checkpoint after `steps` steps, `chunk` latents at a time: a `Validator`, or pairs held out."""

    def measure(self, student: Generator, steps: int, chunk: int) -> Candidate | HoldOutLoss: ...


class Validator:
    """Measures checkpoints on fixed latents with a held-out CLIP model."""

    def __init__(self, target: ClipTarget, source: Generator, config: AdaptConfig) -> None:
        """Draw the latents, from random numbers of their own, and measure the source's images when first needed."""
        self.target, self.source = target, source
        z = torch.randn(_LATENTS, source.z_dim, generator=torch.Generator().manual_seed(config.seed))
        with torch.no_grad():
            label = source.one_hot(config.label, _LATENTS)
            self.ws = source.map(z.to(source.w_avg.device), label, config.psi)  # [64, L, C]
        self.before: Tensor | None = None  # [64, D], on the CPU

    def measure(self, student: Generator, steps: int, chunk: int) -> Candidate:
        """Measure the student as it is."""
        if self.before is None:
            self.before = self._embed(self.source, chunk)
        after, goal = self._embed(student, chunk), self.target.target_embedding.cpu()
        return Candidate(
            steps,
            metrics.quality(after, goal) - metrics.quality(self.before, goal),
            metrics.direction(self.before, after, self.target.direction.cpu()),
            metrics.diversity(after) / max(metrics.diversity(self.before), 1e-9),
        )

    @torch.no_grad()
    def _embed(self, generator: Generator, chunk: int) -> Tensor:
        chunks = self.ws.split(min(chunk, CHUNK))
        return torch.cat([self.target.guide.encode_images(generator.synthesize(ws)) for ws in chunks]).cpu()


def check_judge(judge: ClipGuide | None, guides: Iterable[ClipGuide], config: AdaptConfig) -> None:
    """Refuse a judge without `keep_every`, `keep_every` without a judge, and a judge among the guides."""
    if judge is None:
        if config.keep_every:
            raise ValueError(
                f"Got keep_every {config.keep_every} without a judge; give a CLIP model that is no guide as judge."
            )
        return
    if not config.keep_every:
        raise ValueError(
            f"Got the judge {judge.name}, but AdaptConfig.keep_every is 0, so it would never be evaluated; set it, "
            "such as 25."
        )
    if judge.fingerprint in {guide.fingerprint for guide in guides}:
        raise ValueError(f"Got {judge.name} as judge and as guide; a judge must be a CLIP model the run does not use.")
