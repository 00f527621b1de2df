"""CLIP as a frozen guide, and the directions it gives (StyleGAN-NADA, arXiv:2108.00946, section 4.1, equation 3).

A guide turns images and phrases into unit vectors of one space. A shift says which way to go in that space: from one
phrase to another, or from the generator's images to a few style images. Shifts travel as data; only `direction` and
`target` run a network, once before the first step.

Weights come through open_clip whoever made them: the guide that ships with the pack is loaded by the same lines as a
local file of ViT-B/32. Nothing is ever downloaded unless the caller names a published tag.

Shapes: N images or phrases, D embedding, M source images, K templates, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.clip import ClipGuide
from .prompts import TEMPLATES, fill


@dataclass(frozen=True)
class TextShift:
    """From one phrase to another, averaged over prompt templates.

    The source phrase says what the generator makes now ("photo", "human", "dog"), the target what it shall make.

    Raises:
        ValueError: for empty or equal phrases and for bad templates.
    """

    source: str
    target: str
    templates: tuple[str, ...] = field(default=TEMPLATES, repr=False)

    def __post_init__(self) -> None:
        fill(self.source, self.templates)
        fill(self.target, self.templates)
        if self.source.lower().split() == self.target.lower().split():
            raise ValueError(f"Got {self.source!r} as source and as target, expected two phrases that differ.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """The unit vector [1, D] to move along; `source` is not needed and ignored.

        The order matters: normalise every prompt's embedding, subtract within a template, normalise each difference,
        average, normalise. Averaging each phrase first gives a measurably different direction.
        """
        start = guide.encode_text(fill(self.source, self.templates))  # [K, D]
        end = guide.encode_text(fill(self.target, self.templates))  # [K, D]
        difference = end - start
        if difference.norm(dim=-1).min() < 1e-6:
            raise ValueError(f"The guide reads {self.source!r} and {self.target!r} alike. Use phrases further apart.")
        return F.normalize(F.normalize(difference, dim=-1).mean(dim=0, keepdim=True), dim=-1)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Where to arrive, [1, D], unit: the mean of the target's prompt embeddings (for the global loss)."""
        return F.normalize(guide.encode_text(fill(self.target, self.templates)).mean(dim=0, keepdim=True), dim=-1)


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class ImageShift:
    """From the generator's own images to one to ten style images [N, 3, H, W] in -1..1 (section 4.4 of the paper).

    Raises:
        ValueError: for no images or too many, and for values outside the range.
    """

    images: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        shape = list(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or not 1 <= shape[0] <= 10:
            raise ValueError(f"Got style images of shape {shape}, expected [N, 3, H, W] with 1 to 10 images.")
        if not self.images.isfinite().all() or self.images.abs().max() > 1.5:  # resizing may overshoot -1..1 a little
            raise ValueError("Got style images beyond -1..1. Read them with load_image, or scale them first.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """The unit vector [1, D] from the mean of `source`, embeddings [M, D] of generated images, to the style."""
        if source is None or source.ndim != 2 or not len(source):
            raise ValueError("A direction to images starts at the generator's own: pass source embeddings [M, D].")
        difference = self._embed(guide) - source.float().mean(dim=0, keepdim=True)
        if difference.norm() < 1e-6:
            raise ValueError("The style images look like the generator's own to the guide. Use other style images.")
        return F.normalize(difference, dim=-1)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Where to arrive, [1, D], unit: the mean embedding of the style images."""
        return F.normalize(self._embed(guide), dim=-1)

    @torch.no_grad()
    def _embed(self, guide: ClipGuide) -> Tensor:
        return guide.encode_images(self.images.to(guide.mean.device)).mean(dim=0, keepdim=True)


@dataclass(frozen=True, eq=False)
class MixedShift:
    """Several shifts at once, by weight: words and style images live in one space, so their directions add up (UniHDA,
    arXiv:2401.12596). Only the proportion of the weights counts; without any, all weigh alike.

    Raises:
        ValueError: for no shifts, for mixtures in a mixture, and for weights that are not as many, negative or all 0.
    """

    shifts: tuple[TextShift | ImageShift, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shifts or not all(isinstance(part, TextShift | ImageShift) for part in self.shifts):
            raise ValueError(f"Got {self.shifts!r:.80} to mix, expected a tuple of TextShift and ImageShift.")
        if self.weights and len(self.weights) != len(self.shifts):
            raise ValueError(f"Got {len(self.weights)} weights for {len(self.shifts)} shifts, expected one each.")
        if self.weights and (min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf):
            raise ValueError(f"Got weights {self.weights}, expected finite numbers of at least 0, not all of them 0.")

    @property
    def parts(self) -> tuple[tuple[TextShift | ImageShift, float], ...]:
        """Every shift with its weight; the weights sum to 1."""
        weights = self.weights or (1.0,) * len(self.shifts)
        return tuple((part, weight / sum(weights)) for part, weight in zip(self.shifts, weights, strict=True))

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """The unit vector [1, D] along the weighted sum of all directions; `source` as for an ImageShift."""
        mean = torch.stack([weight * part.direction(guide, source) for part, weight in self.parts]).sum(0)
        if mean.norm() < 1e-3:
            raise ValueError(f"The shifts cancel each other out to the guide {guide.name}; change their weights.")
        return F.normalize(mean, dim=-1)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Where to arrive, [1, D], unit: the weighted mean of all goals."""
        return F.normalize(
            torch.stack([weight * part.target_embedding(guide) for part, weight in self.parts]).sum(0), dim=-1
        )


Shift: TypeAlias = TextShift | ImageShift | MixedShift


def shift_parts(shift: Shift) -> tuple[tuple[TextShift | ImageShift, float], ...]:
    """What a shift is made of, with weights that sum to 1: itself, unless it is mixed."""
    return shift.parts if isinstance(shift, MixedShift) else ((shift, 1.0),)


def needs_source_images(shift: Shift) -> bool:
    """Whether its direction starts at the generator's own images, which then have to be looked at first."""
    return any(isinstance(part, ImageShift) for part, _ in shift_parts(shift))
