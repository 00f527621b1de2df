"""Crop faces from photos as FFHQ did (Karras et al. 2019, arXiv:1812.04948, appendix A), as its generators expect them.

`align` cuts an upright square, sized by the distances of eyes and mouth, and extends the photo beyond its edges.
`find_face` finds the points with the MTCNN detector (Zhang et al. 2016, arXiv:1604.02878), an optional dependency.

Points are (x, y) in pixels of the photo; (0, 0) is the center of the first pixel.
Letters: H height, W width, S size. Internally a point is the complex number x + iy: times i is a quarter turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..io.images import SMALLEST, check_images, from_pil, square, to_pil, to_uint8

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]

_MAX_SIDE = 4  # times the photo, for the face's square; more would be mostly invented
_MIN_SINE = 0.1  # of the angle between the line of the eyes and that from there to the mouth
_MAX_WARP = 4096  # pixels a side that the warp draws at most; it draws 4 per pixel of the result
_MIN_FACE = 100  # the detector looks for faces of 20 pixels or a hundredth of the photo, whichever is larger
_THRESHOLDS = [0.7, 0.7, 0.9]  # of the detector's networks; with the usual 0.7 for the last, cloth is taken for a face
_MARGIN = 0.25  # of each side, added around the photo for the detector

BY_HAND = "give the five points by hand, or take the middle of the picture without looking for a face"


class NoFaceError(ValueError):
    """The detector found no face in the image, or fewer than were asked for."""


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
        if problem := _problem(*self._eyes_and_mouth()):
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
        left, right, mouth = face._eyes_and_mouth()
        eyes = (left + right) / 2
        # If the nose was given last, a corner of the mouth is taken for it, and lies below the resulting mouth.
        if nose and ((complex(*nose) - eyes) / (mouth - eyes)).real > 1:
            raise ValueError(f"Got {text!r}, in which the nose lies below the mouth, {expected}")
        return face

    def _eyes_and_mouth(self) -> tuple[complex, complex, complex]:
        mouth = (complex(*self.left_mouth) + complex(*self.right_mouth)) / 2
        return complex(*self.left_eye), complex(*self.right_eye), mouth


def align(image: Tensor, points: FacePoints, size: int = 1024) -> Tensor:
    """Crop and rotate a face as in FFHQ (appendix A): [1, 3, H, W] -> float32 [1, 3, S, S], both in -1..1.

    Computed in bytes by Pillow on the CPU, as the published data set was; the result is on the photo's device.

    Raises:
        ValueError: for points outside of the photo, and a square under 16 pixels or over four times the photo.
    """
    from PIL import Image

    _check_photo(image)
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, usually the generator's resolution.")
    photo = to_pil(image)
    center, right = _square(points)
    _check_square(photo.size, center, right)

    side = 2 * abs(right)
    shrink = int(side / size / 2)
    if shrink > 1:  # average the pixels that the warp would skip
        photo = photo.resize((round(photo.width / shrink), round(photo.height / shrink)), Image.Resampling.LANCZOS)
        center, right, side = center / shrink, right / shrink, side / shrink
    down = 1j * right
    corners = [center - right - down, center - right + down, center + right + down, center + right - down]
    photo, corners = _crop(photo, corners, side)

    warped = max(size, min(size * 4, _MAX_WARP))
    # Pillow counts from the corner of the first pixel, points from its center.
    quad = [value + 0.5 for corner in corners for value in (corner.real, corner.imag)]
    face = photo.transform((warped, warped), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return from_pil(face.resize((size, size), Image.Resampling.LANCZOS)).to(image.device)


def find_faces(image: Tensor) -> list[FacePoints]:
    """Find the faces of a photo [1, 3, H, W] in -1..1, the largest first.

    Faces on their side or upside down are missed, as are those under 20 pixels or a hundredth of the photo. The weights
    of the detector come with its package. Raises ValueError when it is not installed.
    """
    import numpy

    _check_photo(image)
    pixels = to_uint8(image)[0].cpu().numpy()
    try:
        from mtcnnruntime import MTCNN
    except ImportError as error:
        raise ValueError(
            f"The face detector is not installed ({error}). Install it with `pip install mtcnn-runtime`, {BY_HAND}."
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
    order = sorted(range(len(boxes)), key=lambda row: -_area(boxes[row]))
    faces = [[(float(marks[row][i]) - beside, float(marks[row][i + 5]) - above) for i in range(5)] for row in order]
    return [FacePoints(*face) for face in faces if not _problem_of(face)]


def find_face(image: Tensor, index: int = 0) -> FacePoints:
    """Find one face of a photo [1, 3, H, W] in -1..1; 0 is the largest. Raises NoFaceError if there is none."""
    faces = find_faces(image)
    if not faces:
        height, width = image.shape[-2:]
        got = f"the picture of {width} x {height} pixels"
        raise NoFaceError(f"Found no face in {got}. Turn it upright if it is not, {BY_HAND}.")
    if not 0 <= index < len(faces):
        raise NoFaceError(f"Got face {index}, but the picture has {len(faces)}: expected 0 to {len(faces) - 1}.")
    return faces[index]


def cut_face(
    image: Tensor, size: int = 1024, points: FacePoints | None = None, face: int = 0, middle: bool = False
) -> Tensor:
    """Align the face of a photo [1, 3, H, W] by its points, or by those of a face that is found: [1, 3, S, S].

    With `middle`, return the central square where no face is found, instead of raising NoFaceError.
    """
    if points is None:
        try:
            points = find_face(image, face)
        except NoFaceError:
            if not middle:
                raise
            return square(image, size)
    return align(image, points, size)


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


def _problem_of(face: list[Point]) -> str:
    left, right, _, *mouth = (complex(*point) for point in face)
    return _problem(left, right, sum(mouth) / 2)


def _square(points: FacePoints) -> tuple[complex, complex]:
    """The center of the face's square, and the vector from there to the middle of its right side."""
    left, right, mouth = points._eyes_and_mouth()
    eyes = (left + right) / 2
    across, down = right - left, mouth - eyes
    vector = across - 1j * down  # eyes and mouth together are more stable for faces seen from the side
    vector *= max(2.0 * abs(across), 1.8 * abs(down)) / abs(vector)
    return eyes + 0.1 * down, vector


def _crop(photo: Image.Image, corners: list[complex], side: float) -> tuple[Image.Image, list[complex]]:
    """Crop the photo to a square and its border, extended where it ends, and move the corners along."""
    border = max(round(side * 0.1), 3)
    xs, ys = [corner.real for corner in corners], [corner.imag for corner in corners]
    left, top = math.floor(min(xs)) - border, math.floor(min(ys)) - border
    right, bottom = math.ceil(max(xs)) + border, math.ceil(max(ys)) + border
    missing = (-left, -top, right - photo.width, bottom - photo.height)
    left, top = max(left, 0), max(top, 0)
    photo = photo.crop((left, top, min(right, photo.width), min(bottom, photo.height)))
    corners = [corner - complex(left, top) for corner in corners]
    if max(missing) > border - 4:  # as published: a margin of three pixels suffices for the warp
        pads = [max(gap, round(side * 0.3)) for gap in missing]
        photo = _extend(photo, pads, side * 0.02)
        corners = [corner + complex(pads[0], pads[1]) for corner in corners]
    return photo, corners


def _extend(photo: Image.Image, pads: list[int], sigma: float) -> Image.Image:
    """Pad a photo with its reflection, which fades into a blur and then into the median color."""
    import numpy
    from PIL import Image, ImageFilter, ImageStat

    left, top, right, bottom = pads
    pixels = numpy.pad(numpy.asarray(photo), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = pixels.shape[:2]
    row = numpy.arange(height, dtype=numpy.float32)[:, None]
    column = numpy.arange(width, dtype=numpy.float32)[None]
    horizontal = 1 - numpy.minimum(column / left, (width - 1 - column) / right)
    vertical = 1 - numpy.minimum(row / top, (height - 1 - row) / bottom)
    distance = numpy.maximum(horizontal, vertical)  # [H, W]: 1 at the outer edge, 0 at the photo's, negative inside

    def mask(amount: Any) -> Image.Image:
        return Image.fromarray((amount.clip(0, 1) * 255).round().astype(numpy.uint8))

    extended = Image.fromarray(pixels)
    extended = Image.composite(extended.filter(ImageFilter.GaussianBlur(sigma)), extended, mask(distance * 3 + 1))
    median = tuple(int(value) for value in ImageStat.Stat(extended).median)
    return Image.composite(Image.new("RGB", extended.size, median), extended, mask(distance))


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _check_photo(image: Tensor) -> None:
    check_images(image, channels=(3,))
    if len(image) != 1:
        raise ValueError(f"Got {len(image)} images, expected one; align them one by one.")


def _check_square(extent: tuple[int, int], center: complex, right: complex) -> None:
    width, height = extent
    side, largest = 2 * abs(right), _MAX_SIDE * max(extent)
    if not (0 <= center.real <= width and 0 <= center.imag <= height):
        got = f"a face around {center.real:.0f}, {center.imag:.0f}"
        raise ValueError(f"Got {got}, expected it inside of the picture of {width} x {height} pixels.")
    if not SMALLEST <= side <= largest:
        got = f"points whose face fills a square of {side:.3g} pixels in a picture of {width} x {height}"
        raise ValueError(f"Got {got}, expected {SMALLEST} to {largest}; points are in pixels.")
