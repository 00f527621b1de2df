"""Where an aligned face lies in its photo: the transform of `face_alignment`, recorded for pasting the face back.

Points are (x, y) in pixels of the photo; (0, 0) is the center of the first pixel. Internally a point is the complex
number x + iy: times i is a quarter turn. Letters: H height, W width, S size of the crop.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..io.images import SMALLEST, to_uint8
from ..io.metadata import parse_json, replace_atomically
from .face_points import Point

KIND = "nada_face_frames"
VERSION = 1

MAX_SIDE = 4  # times the photo, for the face's square; more would be mostly invented
_GRID = 8  # the photo is recognized by this many pixels squared
_TOLERANCE = 8  # of 255; another copy of the photo may be compressed
_SHARE = 0.25  # of these pixels that must agree, because other faces may have been pasted before


@dataclass(frozen=True)
class FaceFrame:
    """The square of an aligned face in its photo.

    Args:
        center: of the square, in pixels.
        right: vector from the center to the middle of the right side, in pixels.
        size: pixels a side of the crop.
        width, height: of the photo.
        image: index of the photo in its batch.
        samples: colors of 8 x 8 pixels of the photo in hexadecimal, which identify it; "": unknown.
    """

    center: Point
    right: Point
    size: int
    width: int
    height: int
    image: int = 0
    samples: str = ""

    def __post_init__(self) -> None:
        for name in ("center", "right"):
            point = getattr(self, name)
            if len(point) != 2 or not all(math.isfinite(value) for value in point):
                raise ValueError(f"Got {point} for {name} of a face frame, expected two finite numbers.")
        for name, low in (("size", SMALLEST), ("width", SMALLEST), ("height", SMALLEST), ("image", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise ValueError(f"Got {name} {getattr(self, name)} of a face frame, expected at least {low}.")
        (x, y), side, largest = self.center, self.side, MAX_SIDE * max(self.width, self.height)
        picture = f"{self.width} x {self.height}"
        if not (0 <= x <= self.width and 0 <= y <= self.height):
            got = f"a face around {x:.0f}, {y:.0f}"
            raise ValueError(f"Got {got}, expected it inside of the picture of {picture} pixels.")
        if not SMALLEST <= side <= largest:
            got = f"points whose face fills a square of {side:.3g} pixels in a picture of {picture}"
            raise ValueError(f"Got {got}, expected {SMALLEST} to {largest}; points are in pixels.")

    @classmethod
    def middle(cls, photo: Tensor, size: int, image: int = 0) -> FaceFrame:
        """The central square of a photo [1, C, H, W]."""
        height, width = photo.shape[-2:]
        side = min(height, width)
        center = ((width - side) // 2 + side / 2 - 0.5, (height - side) // 2 + side / 2 - 0.5)
        return cls(center, (side / 2, 0.0), size, width, height, image, sample_colors(photo))

    @property
    def side(self) -> float:
        """Pixels of the photo that a side of the square spans."""
        return 2 * math.hypot(*self.right)

    @property
    def is_middle(self) -> bool:
        """Whether this is the frame of `middle`, which is resampled differently."""
        side = min(self.width, self.height)
        left, top = (self.width - side) // 2, (self.height - side) // 2
        corner = (self.center[0] - side / 2 + 0.5, self.center[1] - side / 2 + 0.5)
        return self.right == (side / 2, 0.0) and corner == (left, top)

    @property
    def quad(self) -> tuple[Point, Point, Point, Point]:
        """Upper left, lower left, lower right and upper right corner of the crop, in pixels of the photo."""
        center, right = complex(*self.center), complex(*self.right)
        shrink, across, along = self._reduction(self.size)
        corners = [center + (u + 1j * v) * right for u, v in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
        points = [((p.real / shrink + 0.5) / across - 0.5, (p.imag / shrink + 0.5) / along - 0.5) for p in corners]
        return points[0], points[1], points[2], points[3]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the pixels of the photo that the crop covers; the last two are excluded."""
        xs, ys = zip(*self.quad, strict=True)
        left, top = max(math.floor(min(xs)), 0), max(math.floor(min(ys)), 0)
        return left, top, min(math.ceil(max(xs)) + 1, self.width), min(math.ceil(max(ys)) + 1, self.height)

    def positions(self, size: int) -> Tensor:
        """Where the pixels of `box` lie in a crop of this size: [1, h, w, 2] as x and y, -1 to 1 from edge to edge."""
        shrink, across, along = self._reduction(size)
        left, top, end, bottom = self.box
        x = shrink * ((torch.arange(left, end, dtype=torch.float64) + 0.5) * across - 0.5) - self.center[0]
        y = shrink * ((torch.arange(top, bottom, dtype=torch.float64) + 0.5) * along - 0.5) - self.center[1]
        (a, b), square = self.right, self.right[0] ** 2 + self.right[1] ** 2
        u, v = (a * x + b * y[:, None]) / square, (a * y[:, None] - b * x) / square
        return torch.stack([u, v], -1)[None].float()

    def shrink(self, size: int) -> int:
        """By how much the photo is reduced before a crop of this size is sampled from it, as in FFHQ."""
        return 1 if self.is_middle else max(int(self.side / size / 2), 1)

    def _reduction(self, size: int) -> tuple[int, float, float]:
        """The shrink factor, and the scales of x and y, which differ from it by rounding."""
        shrink = self.shrink(size)
        return shrink, round(self.width / shrink) / self.width, round(self.height / shrink) / self.height

    def check(self, photo: Tensor) -> None:
        """Raise ValueError unless a photo [1, C, H, W] is the one of this frame, or differs from it in parts only."""
        height, width = photo.shape[-2:]
        if (width, height) != (self.width, self.height):
            got, expected = f"{width} x {height} pixels", f"{self.width} x {self.height}"
            raise ValueError(f"Got a photo of {got}, expected {expected}: the photo that the face was cut from.")
        if not self.samples:
            return
        ours, theirs = (torch.tensor(list(bytes.fromhex(text))) for text in (self.samples, sample_colors(photo)))
        same = ((ours - theirs).abs().view(-1, 3) <= _TOLERANCE).all(1).float().mean().item()
        if same < _SHARE:
            raise ValueError(
                f"Got another photo than the one the face was cut from: {same:.0%} of the compared pixels agree, "
                f"expected {_SHARE:.0%}. Give the photo that was aligned."
            )


def sample_colors(photo: Tensor) -> str:
    """Colors of 8 x 8 pixels of a photo [1, C, H, W] in hexadecimal."""
    rows, columns = ((torch.arange(_GRID) * 2 + 1) * side // (2 * _GRID) for side in photo.shape[-2:])
    colors = photo[:, :3].expand(-1, 3, -1, -1)[:, :, rows][:, :, :, columns]
    return bytes(to_uint8(colors).flatten().tolist()).hex()


def save_frames(frames: Sequence[FaceFrame], path: str | os.PathLike[str]) -> Path:
    """Write frames as JSON, atomically."""
    path = Path(path)
    content = {"kind": KIND, "version": VERSION, "frames": [asdict(frame) for frame in frames]}
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def load_frames(path: str | os.PathLike[str]) -> list[FaceFrame]:
    """Read the frames of `save_frames`.

    Raises:
        ValueError: for a missing file, other content and a newer version.
    """
    expected = "expected the .json file that `align` writes beside its crops"
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
        kind, version, frames = content["kind"], content["version"], content["frames"]
        if kind != KIND or version != VERSION:
            raise ValueError(f"kind {kind!r}, version {version!r}")
        pairs = [{**one, "center": tuple(one["center"]), "right": tuple(one["right"])} for one in frames]
        return [FaceFrame(**one) for one in pairs]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no face frames ({type(error).__name__}: {error}), {expected}.") from error
