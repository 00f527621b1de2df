"""Landmarks of a face and the square that FFHQ cuts around it (Karras et al. 2019, arXiv:1812.04948, appendix A).

Points are (x, y) in pixels of the photo; (0, 0) is the center of the first pixel. Internally a point is the complex
number x + iy: times i is a quarter turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_MIN_SINE = 0.1  # of the angle between the line of the eyes and that from there to the mouth
_MESH_SIZES = (478, 468)  # with and without irises
_MESH_EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))  # left and right in the image
_MESH_NOSE_AND_MOUTH = (1, 61, 291)


@dataclass(frozen=True)
class FacePoints:
    """Centers of the eyes, tip of the nose (unused, may be None) and corners of the mouth, each (x, y) in pixels.

    Left is the left in an upright image of the face. Eyes and mouth must determine an upright square.
    """

    left_eye: Point
    right_eye: Point
    nose: Point | None
    left_mouth: Point
    right_mouth: Point

    def __post_init__(self) -> None:
        for name, point in vars(self).items():
            if name == "nose" and point is None:
                continue
            if len(point) != 2 or not all(math.isfinite(value) for value in point):
                raise ValueError(f"Got {point} for {name}, expected two finite numbers: x and y in pixels.")
        if problem := _problem(*self.eyes_and_mouth()):
            raise ValueError(problem)

    @classmethod
    def parse(cls, text: str) -> FacePoints:
        """Parse `x,y` for left eye, right eye, left and right corner of the mouth, separated by blanks or semicolons,
        or five points with the nose third. Raises ValueError for other text."""
        expected = (
            "expected x,y in pixels of left eye, right eye, [nose,] left and right corner of the mouth, such "
            "as '120,150 180,150 125,220 175,220'."
        )
        try:
            points = [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.replace(";", " ").split())]
        except ValueError:
            points = []
        if len(points) not in (4, 5):
            raise ValueError(f"Got {text!r}, {expected}")
        nose = points.pop(2) if len(points) == 5 else None
        face = cls(points[0], points[1], nose, points[2], points[3])
        left, right, mouth = face.eyes_and_mouth()
        eyes = (left + right) / 2
        # If the nose was given last, a corner of the mouth is taken for it, and lies below the resulting mouth.
        if nose and ((complex(*nose) - eyes) / (mouth - eyes)).real > 1:
            raise ValueError(f"Got {text!r}, in which the nose lies below the mouth, {expected}")
        return face

    @classmethod
    def parse_all(cls, text: str) -> list[FacePoints]:
        """Parse several faces, separated by a slash; raises ValueError as `parse` does."""
        return [cls.parse(part) for part in text.split("/")]

    def eyes_and_mouth(self) -> tuple[complex, complex, complex]:
        """Return the left eye, the right eye and the middle of the mouth as x + iy."""
        mouth = (complex(*self.left_mouth) + complex(*self.right_mouth)) / 2
        return complex(*self.left_eye), complex(*self.right_eye), mouth

    def square(self) -> tuple[complex, complex]:
        """Return the center of the face's square, and the vector from there to the middle of its right side."""
        left, right, mouth = self.eyes_and_mouth()
        eyes = (left + right) / 2
        across, down = right - left, mouth - eyes
        vector = across - 1j * down  # eyes and mouth together are more stable for faces seen from the side
        vector *= max(2.0 * abs(across), 1.8 * abs(down)) / abs(vector)
        return eyes + 0.1 * down, vector


def faces_from_meshes(meshes: Sequence[Sequence[Sequence[float]]]) -> list[FacePoints]:
    """Convert face meshes of MediaPipe, 468 or 478 points each, largest face first; faces on their side are left out.

    An eye is the mean of six points of its contour, as in FFHQ.
    """
    faces = []
    for mesh in meshes:
        if len(mesh) not in _MESH_SIZES:
            raise ValueError(f"Got a face of {len(mesh)} landmarks, expected {_MESH_SIZES[0]} as MediaPipe gives.")
        at = [complex(float(point[0]), float(point[1])) for point in mesh]
        points = [sum(at[index] for index in eye) / len(eye) for eye in _MESH_EYES]
        points += [at[index] for index in _MESH_NOSE_AND_MOUTH]
        faces.append([(point.real, point.imag) for point in points])
    upright = [FacePoints(*face) for face in faces if is_upright(face)]
    return sorted(upright, key=lambda face: -abs(face.square()[1]))


def is_upright(face: Sequence[Point]) -> bool:
    """Return whether five points, as in FacePoints, determine an upright square."""
    left, right, _, *mouth = (complex(*point) for point in face)
    return not _problem(left, right, sum(mouth) / 2)


def _problem(left: complex, right: complex, mouth: complex) -> str:
    """Why eyes and mouth determine no upright square, or ""."""
    across, down = right - left, mouth - (left + right) / 2
    if not across or not down:
        return "Got eyes and mouth that coincide, expected two eyes apart and a mouth below them."
    if (across.conjugate() * down).imag < _MIN_SINE * abs(across) * abs(down):
        return (
            "Got a mouth that is not below the eyes, expected left and right as seen in an upright image; exchange "
            "them if they are the person's own."
        )
    return ""
