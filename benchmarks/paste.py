"""Measure pasting faces back into photos, in scenes of built-in portraits whose landmarks are known.

python -m benchmarks.paste                       all tables
python -m benchmarks.paste poses flicker         some of them
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core import FacePoints
from nada_core.portraits import render
from nada_core.portraits.render import ATTRIBUTES

HEIGHT, WIDTH = 480, 640


@dataclass(frozen=True)
class Pose:
    """Where a portrait lies in a scene: its center as x + iy, half a side, and its rotation in degrees."""

    center: complex
    half: float
    degrees: float = 0.0

    @property
    def right(self) -> complex:
        return self.half * cmath.exp(1j * math.radians(self.degrees))


def random_pose(rng: torch.Generator) -> Pose:
    x, y, scale, turn = torch.rand(4, generator=rng).tolist()
    return Pose(complex(200 + 240 * x, 160 + 160 * y), 70 + 90 * scale, 80 * turn - 40)


def landmarks(person: Tensor, pose: Pose) -> FacePoints:
    """The points of a portrait with the attributes [A] of `contents`."""
    a = dict(zip(ATTRIBUTES, person.tolist(), strict=True))
    middle = complex((a["shift_x"] - 0.5) * 0.24, (a["shift_y"] - 0.5) * 0.2)
    gap, half = 0.145 + 0.075 * a["eye_gap"], 0.10 + 0.09 * a["mouth_width"]
    mouth = 0.27 + 0.06 * a["face_height"]
    at = [
        pose.center + pose.right * (middle + complex(x, y) / 0.84)
        for x, y in ((-gap, -0.06), (gap, -0.06), (0, 0.15), (-half, mouth), (half, mouth))
    ]
    return FacePoints(*((point.real, point.imag) for point in at))


def scene(people: Tensor, poses: Sequence[Pose], grain: float = 0.0, seed: int = 0, style: str = "photo") -> Tensor:
    """A photo [1, 3, H, W] of people [N, A] in front of a wall with texture; grain: standard deviation of its noise."""
    rng = torch.Generator().manual_seed(seed)
    photo = F.interpolate(torch.rand(1, 3, 24, 32, generator=rng) - 0.5, (HEIGHT, WIDTH), mode="bicubic")
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for portrait, pose in zip(render(people, style).split(1), poses, strict=True):
        at = torch.complex(x - pose.center.real, y - pose.center.imag) / pose.right
        positions = torch.view_as_real(at)[None]
        drawn = F.grid_sample(portrait, positions, mode="bicubic", padding_mode="border", align_corners=False)
        inside = ((1 - positions.abs().amax(-1)) / 0.1).clamp(0, 1)[:, None]
        photo = torch.lerp(photo, drawn, inside)
    return (photo + grain * 2 * torch.randn(photo.shape, generator=rng)).clamp(-1, 1)


def jitter(points: FacePoints, count: int, deviation: float, seed: int) -> list[FacePoints]:
    """The points of a still face as a detector finds them in `count` frames: with noise of this many pixels."""
    noise = torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(seed)) * deviation
    fixed = torch.tensor(list(vars(points).values()))
    return [FacePoints(*map(tuple, one)) for one in (fixed + noise).tolist()]


def psnr_inside(image: Tensor, photo: Tensor, mask: Tensor) -> float:
    """PSNR in dB of the pixels whose mask is above 0."""
    error = (image - photo)[(mask > 0).expand_as(photo)].double().square().mean().item() / 4
    return -10 * math.log10(error) if error else math.inf
