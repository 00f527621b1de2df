"""Corrupt pictures so that they are in none of the styles, for the CLIP models and the judge to reject.

Every kind is a known failure of CLIP-guided optimization: a tint instead of a style, noise, blur, speckle, shuffled
patches, or a picture without a person.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("tint", "patchy tint", "hue", "noise", "blur", "speckle", "shuffle", "flat", "contrast")


def corrupt(pictures: Tensor, rng: torch.Generator, kind: str | None = None) -> Tensor:
    """Corrupt every picture in a random way, or all in one `kind`.

    Args:
        pictures: [N, 3, H, W] in -1..1; not modified.

    Raises:
        ValueError: If the kind is not in `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"Got kind {kind!r}, expected one of {', '.join(KINDS)}.")
    out = torch.empty_like(pictures)
    for i, picture in enumerate(pictures):
        name = kind or KINDS[int(torch.randint(len(KINDS), (), generator=rng))]
        out[i] = _corrupt(picture[None], name, rng)[0].clamp(-1, 1)
    return out


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _smooth(channels: int, cells: int, size: int, rng: torch.Generator) -> Tensor:
    values = torch.randn(1, channels, cells, cells, generator=rng)
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=False)


def _corrupt(x: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    size = x.shape[-1]
    if kind in ("tint", "patchy tint"):
        colour = torch.randn(1, 3, 1, 1, generator=rng)
        colour = (colour - colour.mean()) / colour.std().clamp(min=0.2) * _uniform(0.35, 0.9, rng)
        mask = 1.0 if kind == "tint" else torch.sigmoid(4 * _smooth(1, 4, size, rng))
        return x + colour * mask
    if kind == "hue":
        angle = _uniform(0.35, 2 * math.pi - 0.35, rng)
        return _rotate_hue(x, angle)
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


def _rotate_hue(x: Tensor, angle: float) -> Tensor:
    """Rotate hues around the gray axis (Rodrigues' formula)."""
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
