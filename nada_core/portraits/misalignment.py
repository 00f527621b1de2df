"""Misalignment of text and images in CLIP space: its measurement, and text directions with a chosen amount of it.

AIR (arXiv:2506.10895) measures M = 1 - cosine between a text direction and the mean offset of the images. The fit of
the built-in CLIP models trains this agreement, which real CLIP models lack, so M is below 0.02 here; `misalign` tilts a
direction further.

M has two parts, and 1 - M = (1 - leak) (1 - noise):

- leak: a tilt inside the span of the embeddings of pictures. "joker" then also asks for other hair or another wall.
- noise: a tilt out of this span, where no picture can follow.

Letters: N pictures, A attributes, R directions of the span, D embedding.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..guidance.shifts import TextShift
from ..models.clip import ClipGuide
from .render import ATTRIBUTES, STYLES, readable, render

_SEED = 31_337  # of the contents that are measured
_VARIANCE = 0.999  # the share of the variance of the embeddings that lies in the span of pictures


@dataclass(frozen=True)
class Misalignment:
    """The misalignment M of a text direction and its parts, each 1 - cosine, 0..2."""

    total: float
    leak: float
    noise: float


@dataclass(frozen=True, eq=False)
class PictureSpan:
    """Where the embeddings of pictures lie for one CLIP model.

    Attributes:
        means: mean embedding [D] of the pictures in every style, of equal contents.
        basis: orthonormal directions of the embeddings of all styles.
        attributes: mean change of a photo's embedding when an attribute rises from 0 to 1.
    """

    means: Mapping[str, Tensor]
    basis: Tensor  # [R, D]
    attributes: Tensor  # [A, D]

    @classmethod
    @torch.no_grad()
    def measure(cls, guide: ClipGuide, count: int = 128) -> PictureSpan:
        """Embed `count` contents in every style."""
        contents = torch.rand(count, len(ATTRIBUTES), generator=torch.Generator().manual_seed(_SEED))
        embeddings = {style: guide.encode_images(render(contents, style)) for style in STYLES}
        means = {style: e.mean(0) for style, e in embeddings.items()}
        center = torch.stack(list(means.values())).mean(0)
        _, sizes, directions = torch.linalg.svd(torch.cat(list(embeddings.values())) - center, full_matrices=False)
        share = sizes.square().cumsum(0) / sizes.square().sum()
        basis = directions[: int((share < _VARIANCE).sum()) + 1]
        known, photos = readable(contents), embeddings[STYLES[0]]
        pair = (x.double() - x.double().mean(0) for x in (known, photos))  # in float32, processes differ by rounding
        attributes = torch.linalg.lstsq(*pair).solution.float()
        return cls(means, basis, attributes)

    def offset(self, source: str, target: str) -> Tensor:
        """Return the unit mean offset [D] between the pictures of two styles."""
        return F.normalize(self.means[target] - self.means[source], dim=0)

    def misalignment(self, direction: Tensor, source: str, target: str) -> Misalignment:
        """Measure a direction [1, D] or [D] against the offset between two styles."""
        direction, offset = F.normalize(direction.flatten(), dim=0), self.offset(source, target)
        inside = direction - _without(direction, torch.cat([self.basis, offset[None]]))
        length = float(inside.norm())
        return Misalignment(1 - float(direction @ offset), 1 - float(inside @ offset) / length, 1 - length)


@dataclass(frozen=True)
class Tilt:
    """How far a text direction is turned away from its images.

    Args:
        leak, noise: the two parts of M that are added, 0..1.
        gap: length of a vector outside the span of pictures that is added to every text embedding (modality gap,
            Liang et al., arXiv:2203.02053). It changes the target embedding only: a direction is a difference of texts.
        seed: of the leaking attributes, which are the same for every CLIP model, and of the noise.
    """

    leak: float = 0.0
    noise: float = 0.0
    gap: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("leak", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Got {name} {getattr(self, name)!r}, expected 0 to 1.")
        if not 0 <= self.gap < math.inf:
            raise ValueError(f"Got gap {self.gap!r}, expected a finite number of at least 0.")

    def attribute_mix(self, source: str, target: str) -> Tensor:
        """Return the change [A] of the attributes that the target's name also asks for."""
        return torch.randn(len(ATTRIBUTES), generator=self._rng(f"attributes {source} {target}"))

    def noise_vector(self, name: str, size: int) -> Tensor:
        return torch.randn(size, generator=self._rng(name))

    def _rng(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))


@dataclass(frozen=True)
class MisalignedShift(TextShift):
    """A text shift whose direction and target embedding are tilted; made by `misalign`."""

    tilt: Tilt = Tilt()
    spans: Mapping[str, PictureSpan] = field(default_factory=dict, repr=False, compare=False)  # by fingerprint

    def direction(self, guide: ClipGuide, source: Tensor | None = None) -> Tensor:
        """Return the tilted unit direction [1, D]; `source` is ignored."""
        text, tilt, span = super().direction(guide)[0], self.tilt, self._span(guide)
        offset = span.offset(self.source, self.target)
        mix = tilt.attribute_mix(self.source, self.target).to(text) @ span.attributes
        leak = F.normalize(_without(mix, torch.stack([text, offset])), dim=0)
        away = tilt.noise_vector(f"noise {self.source} {self.target} {guide.name}", guide.dim).to(text)
        noise = F.normalize(_without(away, torch.cat([span.basis, torch.stack([text, offset, leak])])), dim=0)
        return _turn(_turn(text, leak, tilt.leak), noise, tilt.noise)[None]

    def target_embedding(self, guide: ClipGuide) -> Tensor:
        """Return the normalized embedding [1, D]: the source's text, moved along the tilted direction, and the gap."""
        start = TextShift(self.target, self.source, self.templates).target_embedding(guide)
        end = super().target_embedding(guide)
        gap = self.tilt.noise_vector(f"gap {guide.name}", guide.dim).to(end)
        outside = F.normalize(_without(gap, self._span(guide).basis), dim=0)
        moved = (end - start).norm() * (self.direction(guide) - super().direction(guide))
        return F.normalize(end + moved + self.tilt.gap * outside, dim=-1)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "tilt": asdict(self.tilt)}

    def _span(self, guide: ClipGuide) -> PictureSpan:
        if guide.fingerprint not in self.spans:
            raise ValueError(f"The guide {guide.name} was not given to misalign; give all guides of the run.")
        return self.spans[guide.fingerprint]


def misalign(
    shift: TextShift, guides: Sequence[ClipGuide], tilt: Tilt, spans: Mapping[str, PictureSpan] | None = None
) -> MisalignedShift:
    """Tilt a text shift between two styles of the built-in world, for every guide of a run.

    Args:
        spans: earlier measurements by guide fingerprint; others are measured here, a few seconds each.
    """
    for style in (shift.source, shift.target):
        if style not in STYLES:
            raise ValueError(f"Got the phrase {style!r}, expected a style: {', '.join(STYLES)}.")
    known = dict(spans or {})
    measured = {g.fingerprint: known.get(g.fingerprint) or PictureSpan.measure(g) for g in guides}
    return MisalignedShift(shift.source, shift.target, shift.templates, tilt, measured)


def _turn(start: Tensor, orthogonal: Tensor, amount: float) -> Tensor:
    """Turn one unit vector towards another until 1 - cosine to the start is `amount`; both [D]."""
    cosine = 1 - amount
    return cosine * start + math.sqrt(1 - cosine**2) * orthogonal


def _without(vector: Tensor, directions: Tensor) -> Tensor:
    """Remove from a vector [D] its projection on the span of directions [R, D]."""
    basis = torch.linalg.qr(directions.T).Q  # [D, R]
    return vector - basis @ (basis.T @ vector)
