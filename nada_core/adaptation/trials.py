"""One trial of a search: an adaptation, measured by a held-out CLIP model.

The score of `validation` (gain x direction x diversity) asks the CLIP model alone, which may like noise. A further
factor therefore asks the pixels whether every image still varies with the source's image of the same latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..guidance.metrics import correspondence
from ..guidance.reconstruction import FaceRecognizer, Features
from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import check_devices, clip_targets, source_images, weighted_guides
from ..io.grid import grid
from ..models.clip import ClipGuide
from ..models.generator import Generator
from ..runtime.batching import MicroBatcher
from .adapt import Step, train
from .config import AdaptConfig
from .provenance import RunInputs
from .validation import CHUNK, Candidate, Validator, check_judge

#: Correspondence below which the score falls in proportion. True pictures of the built-in styles have 0.48 (sketch) to
#: 0.96, noise has 0.
CORRESPONDENCE_FLOOR = 0.3
CHECKS = 4  # measurements of a trial, the last one at its end
_COMPARED, _SHOWN = 16, 6  # latents


@dataclass(frozen=True)
class Measured:
    """What a trial reached. correspondence: of its images with the source's, see `metrics.correspondence`."""

    candidate: Candidate
    correspondence: float

    @property
    def score(self) -> float:
        score = self.candidate.score
        return score * min(1.0, max(0.0, self.correspondence) / CORRESPONDENCE_FLOOR) if score > 0 else score

    def as_row(self) -> dict[str, float]:
        one = self.candidate
        figures = {"gain": one.gain, "direction": one.direction, "diversity": one.diversity}
        return {"score": self.score, **figures, "correspondence": self.correspondence}


class TrialRunner:
    """Runs adaptations with different settings and measures them on the same latents."""

    def __init__(
        self,
        generator: Generator,
        guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
        shift: Shift,
        judge: ClipGuide,
        base: AdaptConfig,
        perceptual: Features | None = None,
        identity: FaceRecognizer | None = None,
    ) -> None:
        """Check the inputs. base: its seed, psi and label give the latents that are measured."""
        self.source, self.guides, self.shift = generator, weighted_guides(guides), shift
        self.networks = (perceptual, identity)
        training = [guide for guide, _ in self.guides]
        check_devices(generator, [*training, judge], base.label)
        check_judge(judge, training, replace(base, keep_every=1))
        images = source_images(generator, base.seed, base.label) if needs_source_images(shift) else None
        self.validator = Validator(clip_targets(judge, shift, images)[0], generator, base)
        self.batcher = MicroBatcher(CHUNK)
        self.before = self._draw(generator)

    def run(
        self, config: AdaptConfig, is_hopeless: Callable[[int, Measured], bool], on_step: Callable[[Step], None]
    ) -> tuple[Measured, Tensor]:
        """Adapt; return the figures and a strip [1, 3, H, W] with images of the source and of the result.

        Args:
            is_hopeless: called with the number of the check, 1 to 3, and its figures, which are those of the latest
                weights, also with `ema`; True ends the run.
        """
        checks = {config.steps * check // CHECKS: check for check in range(1, CHECKS)}
        stopped = False

        def observe(step: Step) -> None:
            nonlocal stopped
            on_step(step)
            if (check := checks.get(step.index + 1)) is not None:
                stopped = is_hopeless(check, self._measure(step.generator, step.index + 1)[0])

        inputs = RunInputs(self.source, self.guides, self.shift, config, None, *self.networks)
        result = train(inputs, observe, stop=lambda: stopped)
        measured, after = self._measure(result.generator, len(result.history))
        title = f"source, and after {len(result.history)} steps: score {measured.score:+.4f}"
        return measured, grid(torch.cat([self.before[:_SHOWN], after[:_SHOWN]]), _SHOWN, title=title)

    def _measure(self, generator: Generator, steps: int) -> tuple[Measured, Tensor]:
        after = self._draw(generator)
        candidate = self.batcher.run(self.validator.measure, generator, steps)
        return Measured(candidate, correspondence(self.before, after)), after

    @torch.no_grad()
    def _draw(self, generator: Generator) -> Tensor:
        latents = self.validator.ws[:_COMPARED]

        def draw(chunk: int) -> Tensor:
            return torch.cat([generator.synthesize(ws).clamp(-1, 1).cpu() for ws in latents.split(chunk)])

        return self.batcher.run(draw)
