"""Pictures that are none of the styles: what a failing adaptation looks like, for the guide and the judge to refuse.

Every kind is a known way to please a careless CLIP: a tint instead of a style, noise that hides a pattern, blur,
speckle, torn-up patches, a picture that lost its person.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("tint", "patchy tint", "hue", "noise", "blur", "speckle", "shuffle", "flat", "contrast")


def corrupt(pictures: Tensor, rng: torch.Generator, kind: str | None = None) -> Tensor:
    """Spoil every picture beyond recognition of its style, each in its own way or all in one `kind`.

    pictures: [N, 3, H, W] in -1..1. Returns the same shape; the input is left as it is. Raises ValueError for a kind
    that is not in `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"got kind {kind!r}; expected one of {', '.join(KINDS)}")
    out = torch.empty_like(pictures)
    for i, picture in enumerate(pictures):
        name = kind or KINDS[int(torch.randint(len(KINDS), (), generator=rng))]
        out[i] = _spoil(picture[None], name, rng)[0].clamp(-1, 1)
    return out


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _smooth(channels: int, cells: int, size: int, rng: torch.Generator) -> Tensor:
    values = torch.randn(1, channels, cells, cells, generator=rng)
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=False)


def _spoil(x: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    size = x.shape[-1]
    if kind in ("tint", "patchy tint"):
        colour = torch.randn(1, 3, 1, 1, generator=rng)
        colour = (colour - colour.mean()) / colour.std().clamp(min=0.2) * _uniform(0.35, 0.9, rng)
        mask = 1.0 if kind == "tint" else torch.sigmoid(4 * _smooth(1, 4, size, rng))
        return x + colour * mask
    if kind == "hue":
        angle = _uniform(0.35, 2 * math.pi - 0.35, rng)
        return _turn(x, angle)
    if kind == "noise":
        return x * _uniform(0.2, 1.0, rng) + torch.randn(x.shape, generator=rng) * _uniform(0.35, 0.9, rng)
    if kind == "blur":
        small = F.interpolate(x, size=(int(_uniform(3, 9, rng)),) * 2, mode="area")
        return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False)
    if kind == "speckle":
        dots = torch.rand(1, 1, size, size, generator=rng) < _uniform(0.08, 0.4, rng)
        paper = x if _uniform(0, 1, rng) < 0.5 else torch.full_like(x, _uniform(-1, 1, rng))
        return torch.where(dots, torch.randn(1, 3, 1, 1, generator=rng).sign(), paper)
    if kind == "shuffle":
        patch = size // 4
        tiles = F.unfold(x, patch, stride=patch)[:, :, torch.randperm(16, generator=rng)]
        return F.fold(tiles, (size, size), patch, stride=patch)
    if kind == "flat":
        return torch.randn(1, 3, 1, 1, generator=rng) * 0.6 + _smooth(3, 3, size, rng) * _uniform(0, 0.3, rng)
    return (x - x.mean()) * _uniform(-1.0, 0.35, rng) + _uniform(-0.6, 0.6, rng)


def _turn(x: Tensor, angle: float) -> Tensor:
    """Rotate hues around the grey axis (Rodrigues' formula)."""
    c, s, k = math.cos(angle), math.sin(angle), 1 / math.sqrt(3)
    third = (1 - c) / 3
    matrix = torch.tensor(
        [
            [c + third, third - k * s, third + k * s],
            [third + k * s, c + third, third - k * s],
            [third - k * s, third + k * s, c + third],
        ]
    )
    return torch.einsum("ij,njhw->nihw", matrix, x)
