"""Photos of faces cut out the way FFHQ was, which is the only way its generators and encoders know them.

`align` is the geometry of FFHQ (Karras et al. 2019, arXiv 1812.04948, appendix A): a square around the face, upright
and sized by the distances of eyes and mouth, taken out of the photo, which goes on beyond its edges where it ends.
`find_face` asks the MTCNN detector (Zhang et al. 2016, arXiv 1604.02878), an optional dependency, for the points.

Points are (x, y) in pixels of the photo; 0, 0 is the middle of the first pixel.
Letters: H height, W width, S size. In the code a point is the complex number x + iy: times i is a quarter turn.
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

_LARGEST = 4  # the face's square is at most this many times the photo, most of which would then be made up

_FLAT = 0.1  # sine of the least angle between the line of the eyes and the way from there to the mouth

_WARPED = 4096  # pixels a side the square is sampled with for 1024, in proportion for less

_SHARE = 100  # the detector looks for faces of 20 pixels or this part of the photo, whichever is more

_SURE = [0.7, 0.7, 0.9]  # of the detector's three networks; with the usual .7 for the last, cloth passes for a face

_FRAME = 0.25  # of each side, laid around the photo for the detector

BY_HAND = "give the five points by hand, or take the middle of the picture without looking for a face"


class NoFaceError(ValueError):
    """The picture has no face that the detector knows, or fewer than were asked for."""


@dataclass(frozen=True)
class FacePoints:
    """Both eyes' centres, the tip of the nose and the corners of the mouth, each (x, y) in pixels of the photo.

    Left is the left of the picture for a face that is upright in it. The nose may be None: the geometry has no use for
    it. Raises ValueError for what is no finite point, and where eyes or mouth leave the face's square undetermined.
    """

    left_eye: Point
    right_eye: Point
    nose: Point | None
    left_mouth: Point
    right_mouth: Point

    def __post_init__(self) -> None:
        for name in ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth"):
            point = getattr(self, name)
            if point is None and name == "nose":
                continue
            if len(point) != 2 or not all(math.isfinite(value) for value in point):
                raise ValueError(f"Got {point} for {name}, expected two finite numbers: x and y in pixels.")
        if fault := _fault(*self._eyes_and_mouth()):
            raise ValueError(fault)

    @classmethod
    def parse(cls, text: str) -> FacePoints:
        """Points from text: `x,y` four times (left eye, right eye, left and right corner of the mouth), with blanks or
        semicolons between them, or five times with the nose third. Raises ValueError for anything else.
        """
        expected = (
            "expected x,y in pixels of left eye, right eye, [nose,] left and right corner of the mouth, such "
            "as '120,150 180,150 125,220 175,220'."
        )
        try:
            pairs = [tuple(float(number) for number in pair.split(",")) for pair in text.replace(";", " ").split()]
        except ValueError:
            raise ValueError(f"Got {text!r}, {expected}") from None
        if len(pairs) not in (4, 5) or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"Got {text!r}, {expected}")
        points = [(x, y) for x, y in pairs]
        if len(points) == 4:
            return cls(points[0], points[1], None, points[2], points[3])
        made = cls(points[0], points[1], points[2], points[3], points[4])
        left, right, mouth = made._eyes_and_mouth()
        eyes = (left + right) / 2
        # A nose written last shows: what is then taken for the nose, a corner of the mouth, lies below "the mouth".
        if ((complex(*points[2]) - eyes) / (mouth - eyes)).real > 1:
            raise ValueError(f"Got {text!r}, in which the nose lies below the mouth, {expected}")
        return made

    def _eyes_and_mouth(self) -> tuple[complex, complex, complex]:
        mouth = (complex(*self.left_mouth) + complex(*self.right_mouth)) / 2
        return complex(*self.left_eye), complex(*self.right_eye), mouth


def align(image: Tensor, points: FacePoints, size: int = 1024) -> Tensor:
    """The face of a photo as FFHQ shows faces (appendix A): [1, 3, H, W] -> float32 [1, 3, S, S], both in -1..1.

    Computed in bytes by Pillow on the CPU, as the published data set was; the result is on the photo's device.

    Raises:
        ValueError: for what is no photo, a size under 16, points outside of the photo, and a square around the face
            under 16 pixels or more than four times the photo.
    """
    from PIL import Image

    _expect_photo(image)
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, as a rule the generator's.")
    photo = to_pil(image)
    centre, x = _square(points)
    _expect_fit(photo.size, centre, x)

    side = 2 * abs(x)
    shrink = int(side / size / 2)
    if shrink > 1:  # what the warp would skip over is averaged first
        photo = photo.resize((round(photo.width / shrink), round(photo.height / shrink)), Image.Resampling.LANCZOS)
        centre, x, side = centre / shrink, x / shrink, side / shrink
    y = 1j * x
    corners = [centre - x - y, centre - x + y, centre + x + y, centre + x - y]

    border = max(round(side * 0.1), 3)
    box = _bounds(corners, border)
    cut = (max(box[0], 0), max(box[1], 0), min(box[2], photo.width), min(box[3], photo.height))
    missing = (-box[0], -box[1], box[2] - photo.width, box[3] - photo.height)
    photo = photo.crop(cut)
    corners = [corner - complex(cut[0], cut[1]) for corner in corners]
    if max(missing) > border - 4:  # published as it is: a margin of three pixels is enough for the warp
        pads = [max(gap, round(side * 0.3)) for gap in missing]
        photo = _go_on(photo, pads, side * 0.02)
        corners = [corner + complex(pads[0], pads[1]) for corner in corners]

    warped = max(size, min(size * 4, _WARPED))
    # Pillow counts from the corner of the first pixel, points from its middle.
    quad = [value + 0.5 for corner in corners for value in (corner.real, corner.imag)]
    face = photo.transform((warped, warped), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return from_pil(face.resize((size, size), Image.Resampling.LANCZOS)).to(image.device)


def find_faces(image: Tensor) -> list[FacePoints]:
    """The faces of a photo [1, 3, H, W] in -1..1, largest first; an empty list where there are none.

    Faces lying on their side or upside down are missed, as are those under a hundredth of the photo or 20 pixels. The
    detector's weights come with its package: nothing is downloaded.

    Raises:
        ValueError: for what is no photo, and when the detector is not installed.
    """
    import numpy

    _expect_photo(image)
    pixels = to_uint8(image)[0].cpu().numpy()
    try:
        from mtcnnruntime import MTCNN
    except ImportError as error:
        raise ValueError(
            f"Finding faces takes a detector that is not here ({error}). Install it with `pip install "
            f"mtcnn-runtime`, {BY_HAND}."
        ) from error

    smallest = max(20.0, max(pixels.shape[:2]) / _SHARE)
    # Without a frame around it the detector misses a face that fills the picture, or misplaces its points.
    down, across = (round(side * _FRAME) for side in pixels.shape[:2])
    framed = numpy.pad(pixels, ((down, down), (across, across), (0, 0)), "edge")
    try:
        bgr = framed[:, :, ::-1].copy()
        boxes, marks = MTCNN().detect(bgr, min_face_size=smallest, thresholds=_SURE)
    except ValueError as error:
        if "need at least one array" not in str(error):
            raise
        return []  # how the detector, left without any candidate, says so
    # A row of boxes is x, y, x, y, score; one of marks the five x, then the five y.
    order = sorted(range(len(boxes)), key=lambda row: -_area(boxes[row]))
    found = [[(float(marks[row][i]) - across, float(marks[row][i + 5]) - down) for i in range(5)] for row in order]
    return [FacePoints(*five) for five in found if not _fault_of(five)]  # no face shows such points


def find_face(image: Tensor, index: int = 0) -> FacePoints:
    """One face of a photo [1, 3, H, W] in -1..1; 0 is the largest, 1 the next.

    Raises:
        NoFaceError: when there is no face, or none of that index.
        ValueError: as find_faces.
    """
    faces = find_faces(image)
    height, width = image.shape[-2:]
    if not faces:
        raise NoFaceError(
            f"Found no face in the picture of {width} x {height} pixels. Turn it upright if it is not, {BY_HAND}."
        )
    if not 0 <= index < len(faces):
        raise NoFaceError(
            f"Got face {index}, but the picture has {len(faces)}: expected 0 (the largest) to {len(faces) - 1}."
        )
    return faces[index]


def cut_face(
    image: Tensor, size: int = 1024, points: FacePoints | None = None, face: int = 0, middle: bool = False
) -> Tensor:
    """A photo [1, 3, H, W] as a generator of faces wants it, [1, 3, S, S]: aligned by the points, or by those of a face
    that is found. middle: where there is no face, take the middle square as it is, instead of refusing.

    Raises:
        NoFaceError: when there is no face, or none of that index, and `middle` is not set.
        ValueError: as align and find_face.
    """
    if points is None:
        try:
            points = find_face(image, face)
        except NoFaceError:
            if not middle:
                raise
            return square(image, size)
    return align(image, points, size)


def _fault(left: complex, right: complex, mouth: complex) -> str:
    """Why eyes and mouth determine no upright square, or nothing."""
    across, down = right - left, mouth - (left + right) / 2
    if not across or not down:
        return (
            "Got eyes and mouth that coincide, expected two eyes apart and a mouth below them; mark each point in "
            "its own place."
        )
    if (across.conjugate() * down).imag < _FLAT * abs(across) * abs(down):
        return (
            "Got a mouth that is not below the eyes, expected left and right as seen in the picture of an upright "
            "face; exchange left and right if they are the person's own."
        )
    return ""


def _fault_of(five: list[Point]) -> str:
    left, right, _, *mouth = (complex(*point) for point in five)
    return _fault(left, right, sum(mouth) / 2)


def _square(points: FacePoints) -> tuple[complex, complex]:
    """The square's centre, and the way from there to the middle of its right side."""
    left, right, mouth = points._eyes_and_mouth()
    eyes = (left + right) / 2
    across, down = right - left, mouth - eyes
    # Right is what the eyes say together with what the mouth says, which steadies faces seen from the side.
    x = across - 1j * down
    x *= max(2.0 * abs(across), 1.8 * abs(down)) / abs(x)
    return eyes + 0.1 * down, x


def _bounds(corners: list[complex], border: int) -> tuple[int, int, int, int]:
    xs, ys = [corner.real for corner in corners], [corner.imag for corner in corners]
    return (
        math.floor(min(xs)) - border,
        math.floor(min(ys)) - border,
        math.ceil(max(xs)) + border,
        math.ceil(max(ys)) + border,
    )


def _go_on(photo: Image.Image, pads: list[int], sigma: float) -> Image.Image:
    """The photo continued beyond its edges: mirrored, ever more blurred, in the end of its median colour."""
    import numpy
    from PIL import Image, ImageFilter, ImageStat

    left, top, right, bottom = pads
    pixels = numpy.pad(numpy.asarray(photo), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = pixels.shape[:2]
    row = numpy.arange(height, dtype=numpy.float32)[:, None]
    column = numpy.arange(width, dtype=numpy.float32)[None]
    beside = 1 - numpy.minimum(column / left, (width - 1 - column) / right)
    over = 1 - numpy.minimum(row / top, (height - 1 - row) / bottom)
    away = numpy.maximum(beside, over)  # [H, W]: 1 at the outer edge, 0 at the photo's, negative inside

    def share(amount: Any) -> Image.Image:
        return Image.fromarray((amount.clip(0, 1) * 255).round().astype(numpy.uint8))

    whole = Image.fromarray(pixels)
    whole = Image.composite(whole.filter(ImageFilter.GaussianBlur(sigma)), whole, share(away * 3 + 1))
    median = tuple(int(value) for value in ImageStat.Stat(whole).median)
    return Image.composite(Image.new("RGB", whole.size, median), whole, share(away))


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _expect_photo(image: Tensor) -> None:
    check_images(image, channels=(3,))
    if len(image) != 1:
        raise ValueError(f"Got {len(image)} pictures, expected one; take pictures one by one.")


def _expect_fit(extent: tuple[int, int], centre: complex, x: complex) -> None:
    width, height = extent
    side = 2 * abs(x)
    if not (0 <= centre.real <= width and 0 <= centre.imag <= height):
        raise ValueError(
            f"Got a face around {centre.real:.0f}, {centre.imag:.0f}, expected it inside of the picture, "
            f"which has {width} x {height} pixels; mark the points in this very picture."
        )
    if not SMALLEST <= side <= _LARGEST * max(width, height):
        raise ValueError(
            f"Got points whose face fills a square of {side:.3g} pixels in a picture of {width} x "
            f"{height}, expected {SMALLEST} to {_LARGEST * max(width, height)}; points are in pixels, "
            "not in parts of the picture."
        )
