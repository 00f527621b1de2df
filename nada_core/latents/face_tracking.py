"""Follow faces through the frames of a video, and smooth their landmarks over time.

A detector places the landmarks of a still face anew in every frame, and crops that follow them flicker. `smooth_points`
fits a line to each coordinate in a Gaussian window (local linear regression, Fan and Gijbels 1996, section 2.2): a
face that moves steadily is followed without lag, at the ends of the clip too, and gaps are bridged.

Letters: T frames, P coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .face_detection import NoFaceError
from .face_points import FacePoints

_REACH = 0.5  # of the face's square: how far a face may move from one frame to the next
_WINDOW = 3.0  # standard deviations within which a face must have been found


def track_faces(faces: Sequence[Sequence[FacePoints]]) -> list[list[FacePoints | None]]:
    """Follow the faces of the first frame that has any: per face, its points in every frame, None where it is missing.

    Args:
        faces: those of every frame, the largest first.
    """
    start = next((index for index, found in enumerate(faces) if found), len(faces))
    tracks: list[list[FacePoints | None]] = [[None] * start for _ in (faces[start] if start < len(faces) else ())]
    last = list(faces[start]) if start < len(faces) else []
    for found in faces[start:]:
        free = list(found)
        for index, track in enumerate(tracks):
            center, right = last[index].square()
            nearest = min(free, key=lambda face: abs(face.square()[0] - center), default=None)  # noqa: B023
            if nearest is None or abs(nearest.square()[0] - center) > _REACH * 2 * abs(right):
                track.append(None)
                continue
            free.remove(nearest)
            track.append(nearest)
            last[index] = nearest
    return tracks


def smooth_points(track: Sequence[FacePoints | None], sigma: float) -> list[FacePoints]:
    """Smooth the points of one face over the frames of a clip, and fill in frames in which it was not found.

    Args:
        sigma: standard deviation of the Gaussian window, in frames.

    Raises:
        NoFaceError: for a frame without the face in any frame of its window.
    """
    times = torch.arange(len(track), dtype=torch.float64)
    known = torch.tensor([face is not None for face in track], dtype=torch.float64)
    offsets = times[None] - times[:, None]  # [T, T]: from the row's frame to the column's
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) * known
    weights = weights.masked_fill(offsets.abs() > _WINDOW * sigma, 0.0)
    for index in (weights.sum(1) == 0).nonzero().flatten().tolist():
        raise NoFaceError(
            f"Found no face in frame {index} nor near it. Shorten the clip, increase smoothing, "
            "or give the five points by hand."
        )
    values = torch.tensor([_coordinates(face) if face else [0.0] * 8 for face in track], dtype=torch.float64)  # [T, P]
    first, second = (weights * offsets).sum(1, keepdim=True), (weights * offsets**2).sum(1, keepdim=True)
    total = weights.sum(1, keepdim=True)
    spread = second * total - first**2
    line = (second * (weights @ values) - first * ((weights * offsets) @ values)) / spread.clamp(min=1e-9)
    fitted = torch.where(spread > 1e-9, line, weights @ values / total)
    return [FacePoints((a, b), (c, d), None, (e, f), (g, h)) for a, b, c, d, e, f, g, h in fitted.tolist()]


def _coordinates(face: FacePoints) -> list[float]:
    return [*face.left_eye, *face.right_eye, *face.left_mouth, *face.right_mouth]
