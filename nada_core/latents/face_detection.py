"""Find faces with the MTCNN detector (Zhang et al. 2016, arXiv:1604.02878), an optional dependency.

Letters: H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..io.images import check_images, to_uint8
from .face_points import FacePoints, is_upright

_MIN_FACE = 100  # the detector looks for faces of 20 pixels or a hundredth of the photo, whichever is larger
_THRESHOLDS = [0.7, 0.7, 0.9]  # of the detector's networks; with the usual 0.7 for the last, cloth is taken for a face
_CERTAIN, _SMALL = 0.98, 0.3  # score, and share of the largest face, that patterns in the background stay below
_MARGIN = 0.25  # of each side, added around the photo for the detector

BY_HAND = "give the five points by hand, or take the middle of the picture without looking for a face"


class NoFaceError(ValueError):
    """The detector found no face in the image, or fewer than were asked for."""


def find_faces(image: Tensor) -> list[FacePoints]:
    """Find the faces of a photo [1, 3, H, W] in -1..1, the largest first.

    Faces on their side or upside down are missed, as are those under 20 pixels or a hundredth of the photo.
    Small faces beside a large one must be certain. The weights of the detector come with its package. Raises
    ValueError when it is not installed.
    """
    import numpy

    check_photo(image)
    pixels = to_uint8(image)[0].cpu().numpy()
    try:
        from mtcnnruntime import MTCNN
    except ImportError as error:
        raise ValueError(
            f"The face detector is not installed ({error}). Install it with `pip install mtcnn-runtime` (Apache-2.0), "
            f"{BY_HAND}."
        ) from error

    smallest = max(20.0, max(pixels.shape[:2]) / _MIN_FACE)
    # Without a margin the detector misses faces that fill the photo, or misplaces their points.
    above, beside = (round(side * _MARGIN) for side in pixels.shape[:2])
    padded = numpy.pad(pixels, ((above, above), (beside, beside), (0, 0)), "edge")
    try:
        boxes, marks = MTCNN().detect(padded[:, :, ::-1].copy(), min_face_size=smallest, thresholds=_THRESHOLDS)
    except ValueError as error:
        if "need at least one array" not in str(error):
            raise
        return []  # the detector raises this when it has no candidates
    # A box is x, y, x, y, score; marks are the five x, then the five y.
    least = _SMALL**2 * max(map(_area, boxes), default=0.0)
    order = [row for row, box in enumerate(boxes) if box[4] >= _CERTAIN or _area(box) >= least]
    order.sort(key=lambda row: -_area(boxes[row]))
    faces = [[(float(marks[row][i]) - beside, float(marks[row][i + 5]) - above) for i in range(5)] for row in order]
    return [FacePoints(*face) for face in faces if is_upright(face)]


def find_face(image: Tensor, index: int = 0) -> FacePoints:
    """Find one face of a photo [1, 3, H, W] in -1..1; 0 is the largest. Raises NoFaceError if there is none."""
    return choose_face(find_faces(image), index, image)


def choose_face(faces: Sequence[FacePoints], index: int, image: Tensor) -> FacePoints:
    """Return one of the faces of a photo [1, 3, H, W]. Raises NoFaceError if there are too few."""
    if not faces:
        height, width = image.shape[-2:]
        got = f"the picture of {width} x {height} pixels"
        raise NoFaceError(f"Found no face in {got}. Turn it upright if it is not, {BY_HAND}.")
    if not 0 <= index < len(faces):
        raise NoFaceError(f"Got face {index}, but the picture has {len(faces)}: expected 0 to {len(faces) - 1}.")
    return faces[index]


def check_photo(image: Tensor) -> None:
    """Raise ValueError unless the image is one photo [1, 3, H, W] in -1..1."""
    check_images(image, channels=(3,))
    if len(image) != 1:
        raise ValueError(f"Got {len(image)} images, expected one; align them one by one.")


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
