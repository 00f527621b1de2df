"""Adaptation with refined directions: AIR (arXiv:2506.10895, section 4.2), for `benchmarks.misalignment`.

From half of the training on, the student of every tenth of it becomes an anchor. A second directional loss compares
the images with the anchor's, along the direction from a text that describes the anchor to the target's.

AIR learns that text as a prompt: the change from the text before must point as the mean change of the images does.
Here it is the embedding with that property itself, so that no prompt can do better, and its length is that of the
prompt AIR starts at: the share of the training that has passed, of the way from the source's text to the target's.
Two more things differ, because both generators have the same noise here and half of the training nearly reaches the
target, so that images hardly differ from the newest anchor's: the anchor before the newest is used, and the second loss
weighs 0.1. With AIR's weight of 1, three of four runs that were tried lost their target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from nada_core import AdaptConfig, Generator, TextShift
from nada_core.adaptation.batch import draw_batch
from nada_core.adaptation.layer_selection import trained_names
from nada_core.adaptation.objective import Objective
from nada_core.adaptation.train_state import TrainState
from nada_core.guidance.metrics import embed
from nada_core.guidance.shifts import mean_direction
from nada_core.guidance.targets import ClipTarget, clip_targets
from nada_core.latents.sampling import Latents, render, sample
from nada_core.models.clip import ClipGuide

_FIRST, _EVERY = 0.5, 0.1  # shares of the training
_LATENTS, _PSI = 256, 0.7  # AIR takes 1000
_WEIGHT = 0.1  # of the second loss


@dataclass(frozen=True)
class Anchor:
    """A student of the past.

    Attributes:
        generator: a frozen copy.
        images: embeddings [N, D] of its images, one tensor a CLIP model.
        texts: the text embedding [1, D] that describes it, one a CLIP model.
    """

    generator: Generator
    images: tuple[Tensor, ...]
    texts: tuple[Tensor, ...]

    @classmethod
    def of(cls, student: Generator, targets: Sequence[ClipTarget], latents: Latents, texts: Sequence[Tensor]) -> Anchor:
        generator = copy.deepcopy(student).requires_grad_(False)
        images = render(generator, latents, batch=32)
        return cls(generator, tuple(embed(target.guide, images) for target in targets), tuple(texts))

    def next(
        self, student: Generator, targets: Sequence[ClipTarget], latents: Latents, lengths: Sequence[float]
    ) -> Anchor:
        """The anchor of the present student. lengths: how far its text is from this one, one a CLIP model."""
        new = Anchor.of(student, targets, latents, self.texts)
        pairs = zip(self.images, new.images, self.texts, lengths, strict=True)
        texts = tuple(text + length * mean_direction(after - before) for before, after, text, length in pairs)
        return replace(new, texts=texts)

    def refine(self, targets: Sequence[ClipTarget]) -> list[ClipTarget]:
        """The targets with directions that start at this anchor's texts."""
        pairs = zip(targets, self.texts, strict=True)
        return [
            replace(t, weight=_WEIGHT * t.weight, direction=F.normalize(t.target_embedding - text, dim=-1))
            for t, text in pairs
        ]


def adapt_with_anchors(
    source: Generator, guides: Sequence[tuple[ClipGuide, float]], shift: TextShift, config: AdaptConfig
) -> Generator:
    """Train a copy of `source` along `shift` and the refined directions."""
    student = copy.deepcopy(source).requires_grad_(False)
    state, targets = TrainState(config, source, student), clip_targets(guides, shift)
    latents = sample(source, range(_LATENTS), psi=_PSI)
    starts = [TextShift(shift.target, shift.source).target_embedding(target.guide) for target in targets]
    spans = [float((target.target_embedding - start).norm()) for target, start in zip(targets, starts, strict=True)]
    first, every = round(_FIRST * config.steps), max(1, round(_EVERY * config.steps))
    main, refined = Objective(config, source, student, targets, None, None, None, state.scaler), None
    anchor, passed = Anchor.of(source, targets, latents, starts), 0.0
    while not state.is_finished:
        if state.index >= first and (state.index - first) % every == 0:
            share = state.index / config.steps
            if passed:
                refined = replace(main, source=anchor.generator, targets=anchor.refine(targets))
            anchor = anchor.next(student, targets, latents, [(share - passed) * span for span in spans])
            passed = share
        state.select_layers(student, targets)
        batch = draw_batch(source, config, state.rng, state.index)
        names = trained_names(config.layers, state.layers.layers)
        result = main.backward(batch, names, state.parameters.zero_grad, config.batch)
        if refined is not None:
            refined.backward(batch, names, lambda: None, config.batch)  # adds its gradients
        state.optimizer_step(result)
    state.finalize()
    return student
