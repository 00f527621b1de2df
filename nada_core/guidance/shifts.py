"""Shifts: what to change, as data - text to text (StyleGAN-NADA, arXiv:2108.00946, section 4.1), to style images
(section 4.4), or a mixture of both (UniHDA, arXiv:2401.12596).

`direction` and `target_embedding` run a CLIP model and are called once, before the first step of a training.

Letters: N images, M source images, K templates, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.clip import ClipGuide
from .prompts import TEMPLATES, fill


@dataclass(frozen=True)
class TextShift:
    """A shift from one phrase to another, which must differ, averaged over prompt templates."""

    source: str  # what the generator draws now, such as "photo", "human" or "dog"
    target: str  # what it should draw
    templates: tuple[str, ...] = field(default=TEMPLATES, repr=False)

    def __post_init__(self) -> None:
        fill(self.source, self.templates)
        fill(self.target, self.templates)
        if self.source.lower().split() == self.target.lower().split():
            raise ValueError(f"Got {self.source!r} as source and as target, expected two phrases that differ.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the unit direction [1, D] (equation 3); `source` is ignored.

        Differences are taken and normalized per template, then averaged. Averaging each phrase first gives a measurably
        different direction.
        """
        start = guide.encode_text(fill(self.source, self.templates))  # [K, D]
        end = guide.encode_text(fill(self.target, self.templates))  # [K, D]
        if (end - start).norm(dim=-1).min() < 1e-6:
            raise ValueError(f"The guide reads {self.source!r} and {self.target!r} alike. Use phrases further apart.")
        return mean_direction(end - start)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized mean embedding [1, D] of the target's prompts, for the global loss."""
        return F.normalize(guide.encode_text(fill(self.target, self.templates)).mean(dim=0, keepdim=True), dim=-1)

    def describe(self) -> dict[str, Any]:
        """Return the JSON-ready entry of the provenance; templates are listed where they are not the default ones."""
        templates = {} if self.templates == TEMPLATES else {"templates": self.templates}
        return {"prompts": {"source": self.source, "target": self.target, **templates}}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by suffix, that decide a run beyond `describe`."""
        return {}


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class ImageShift:
    """A shift from the generator's own images to 1 to 10 style images [N, 3, H, W] in -1..1."""

    images: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        shape = list(self.images.shape)
        if len(shape) != 4 or shape[1] != 3 or not 1 <= shape[0] <= 10:
            raise ValueError(f"Got style images of shape {shape}, expected [N, 3, H, W] with 1 to 10 images.")
        if not self.images.isfinite().all() or self.images.abs().max() > 1.5:  # resampling overshoots -1..1 a little
            raise ValueError("Got style images beyond -1..1. Scale them to that range first.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the unit direction [1, D] from the mean of `source`, embeddings [M, D] of generated images."""
        if source is None or source.ndim != 2 or not len(source):
            raise ValueError("A direction to images starts at the generator's own: pass source embeddings [M, D].")
        difference = self._mean_embedding(guide) - source.float().mean(dim=0, keepdim=True)
        if difference.norm() < 1e-6:
            raise ValueError("The style images equal the generator's own to the guide. Use other style images.")
        return F.normalize(difference, dim=-1)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized mean embedding [1, D] of the style images."""
        return F.normalize(self._mean_embedding(guide), dim=-1)

    def describe(self) -> dict[str, Any]:
        return {"images": len(self.images)}

    def tensors(self) -> dict[str, Tensor]:
        return {"": self.images}

    @torch.no_grad()
    def _mean_embedding(self, guide: ClipGuide) -> Tensor:
        return guide.encode_images(self.images.to(guide.mean.device)).mean(dim=0, keepdim=True)


@dataclass(frozen=True, eq=False)
class EmbeddingShift:
    """A shift between text embeddings [K, D] that another program computed in the space of the guide.

    Args:
        source, target: embeddings of K prompts each, of any length; row k of the target belongs to row k of the source.
        origin: what computed them, for messages.
    """

    source: Tensor = field(repr=False)
    target: Tensor = field(repr=False)
    origin: str = "another text encoder"

    def __post_init__(self) -> None:
        shapes = [list(one.shape) for one in (self.source, self.target)]
        if self.source.ndim != 2 or not self.source.numel() or shapes[0] != shapes[1]:
            raise ValueError(f"Got embeddings of shapes {shapes[0]} and {shapes[1]}, expected [K, D] twice.")
        for name, value in (("source", self.source), ("target", self.target)):
            if not value.isfinite().all() or value.norm(dim=-1).min() < 1e-6:
                raise ValueError(f"Got embeddings of the {name} that are 0 or not finite, expected those of a text.")
        if (F.normalize(self.target, dim=-1) - F.normalize(self.source, dim=-1)).norm(dim=-1).min() < 1e-6:
            raise ValueError("Got equal embeddings as source and as target, expected those of two different texts.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the unit direction [1, D], computed as that of a `TextShift`; `source` is ignored."""
        return mean_direction(self._in_space_of(guide, self.target) - self._in_space_of(guide, self.source))

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized mean embedding [1, D] of the target, for the global loss."""
        return F.normalize(self._in_space_of(guide, self.target).mean(dim=0, keepdim=True), dim=-1)

    def describe(self) -> dict[str, Any]:
        return {"embeddings": {"count": len(self.source), "origin": self.origin}}

    def tensors(self) -> dict[str, Tensor]:
        return {"": torch.stack([self.source, self.target])}

    def _in_space_of(self, guide: ClipGuide, embeddings: Tensor) -> Tensor:
        if embeddings.shape[1] != guide.dim:
            raise ValueError(
                f"Got embeddings of {embeddings.shape[1]} numbers from {self.origin}, but the guide {guide.name} has "
                f"{guide.dim}. Use the text encoder and the image tower of one CLIP model."
            )
        return F.normalize(embeddings.to(guide.mean), dim=-1)


def mean_direction(differences: Tensor) -> Tensor:
    """Normalize each difference [K, D], such as of one prompt, then their mean [1, D]."""
    return F.normalize(F.normalize(differences, dim=-1).mean(dim=0, keepdim=True), dim=-1)


@dataclass(frozen=True, eq=False)
class PairShift:
    """A shift along the mean of the changes from images to edited versions of them, both [N, 3, H, W] in -1..1.

    The images before the edit are usually the generator's own, as in DATID-3D (arXiv:2211.16374).
    """

    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        shapes = list(self.before.shape), list(self.after.shape)
        if any(len(shape) != 4 or shape[1] != 3 or not shape[0] for shape in shapes):
            raise ValueError(f"Got images of shapes {shapes[0]} and {shapes[1]}, expected [N, 3, H, W] twice.")
        if len(self.before) != len(self.after):
            raise ValueError(
                f"Got {len(self.before)} images before and {len(self.after)} after, expected pairs in the same order."
            )
        for images in (self.before, self.after):
            if not images.isfinite().all() or images.abs().max() > 1.5:  # resampling overshoots -1..1 a little
                raise ValueError("Got images beyond -1..1. Read them with load_image, or scale them first.")

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the unit direction [1, D]: the change of each pair, normalized, then averaged; `source` is ignored."""
        difference = _embed(guide, self.after) - _embed(guide, self.before)
        if difference.norm(dim=-1).max() < 1e-6:
            raise ValueError(f"The images before and after are equal to the guide {guide.name}; use edited ones.")
        return mean_direction(difference)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized mean embedding [1, D] of the edited images, for the global loss."""
        return F.normalize(_embed(guide, self.after).mean(dim=0, keepdim=True), dim=-1)

    def describe(self) -> dict[str, Any]:
        return {"image_pairs": len(self.before)}

    def tensors(self) -> dict[str, Tensor]:
        return {".before": self.before, ".after": self.after}


@torch.no_grad()
def _embed(guide: ClipGuide, images: Tensor) -> Tensor:
    return torch.cat([guide.encode_images(part.to(guide.mean.device)) for part in images.split(8)])


#: The shifts that a `MixedShift` is made of.
ShiftPart: TypeAlias = TextShift | ImageShift | EmbeddingShift | PairShift


@dataclass(frozen=True, eq=False)
class MixedShift:
    """A weighted mixture of other shifts. Only the ratio of the weights matters; empty means equal weights."""

    shifts: tuple[ShiftPart, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shifts or not all(isinstance(part, ShiftPart) for part in self.shifts):
            raise ValueError(f"Got {self.shifts!r:.80} to mix, expected parts such as TextShift or ImageShift.")
        if self.weights and len(self.weights) != len(self.shifts):
            raise ValueError(f"Got {len(self.weights)} weights for {len(self.shifts)} shifts, expected one each.")
        if self.weights and (min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf):
            raise ValueError(f"Got weights {self.weights}, expected finite numbers of at least 0, not all of them 0.")

    @property
    def parts(self) -> tuple[tuple[ShiftPart, float], ...]:
        """Every shift with its weight; the weights sum to 1."""
        weights = self.weights or (1.0,) * len(self.shifts)
        return tuple((part, weight / sum(weights)) for part, weight in zip(self.shifts, weights, strict=True))

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the normalized weighted sum of the directions [1, D]; `source` as for an ImageShift."""
        mean = torch.stack([weight * part.direction(guide, source) for part, weight in self.parts]).sum(0)
        if mean.norm() < 1e-3:
            raise ValueError(f"The shifts cancel each other out to the guide {guide.name}; change their weights.")
        return F.normalize(mean, dim=-1)

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized weighted sum of the target embeddings [1, D]."""
        embeddings = [weight * part.target_embedding(guide) for part, weight in self.parts]
        return F.normalize(torch.stack(embeddings).sum(0), dim=-1)


Shift: TypeAlias = ShiftPart | MixedShift


def shift_parts(shift: Shift) -> tuple[tuple[ShiftPart, float], ...]:
    """Return the parts of a shift with weights that sum to 1; a shift that is not mixed is its only part."""
    return shift.parts if isinstance(shift, MixedShift) else ((shift, 1.0),)


def needs_source_images(shift: Shift) -> bool:
    """Whether the direction starts at images of the generator."""
    return any(isinstance(part, ImageShift) for part, _ in shift_parts(shift))
