"""Crop faces from photos as FFHQ did (Karras et al. 2019, arXiv:1812.04948, appendix A), as its generators expect them.

`align` cuts an upright square, sized by the distances of eyes and mouth, and extends the photo beyond its edges.
`align_faces` does so for several photos, several faces of a photo, or the frames of a video, and returns the frames
that `face_paste` needs.

Points are (x, y) in pixels of the photo; (0, 0) is the center of the first pixel.
Letters: P photos, N faces, H height, W width, S size. Internally a point is the complex number x + iy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..io.images import SMALLEST, check_images, from_pil, square, to_pil
from .face_detection import NoFaceError, check_photo, choose_face, find_face, find_faces
from .face_frame import FaceFrame, sample_colors
from .face_points import FacePoints
from .face_tracking import smooth_points, track_faces

if TYPE_CHECKING:
    from PIL import Image

#: What to crop: a face, or the central square of the photo.
CUTS = ("the face", "the face, else the middle", "the middle")

_MAX_WARP = 4096  # pixels a side that the warp draws at most; it draws 4 per pixel of the result


def align(image: Tensor, points: FacePoints, size: int = 1024) -> Tensor:
    """Crop and rotate a face as in FFHQ (appendix A): [1, 3, H, W] -> float32 [1, 3, S, S], both in -1..1.

    Computed in bytes by Pillow on the CPU, as the published data set was; the result is on the photo's device.

    Raises:
        ValueError: for points outside of the photo, and a square under 16 pixels or over four times the photo.
    """
    check_photo(image)
    return cut(image, frame_of(image, points, size))


def frame_of(image: Tensor, points: FacePoints, size: int, index: int = 0) -> FaceFrame:
    """Return the square of a face in a photo [1, 3, H, W]; raises ValueError as `align` does."""
    _check_size(size)
    center, right = points.square()
    height, width = image.shape[-2:]
    return FaceFrame(
        (center.real, center.imag), (right.real, right.imag), size, width, height, index, sample_colors(image)
    )


def cut(image: Tensor, frame: FaceFrame, size: int | None = None) -> Tensor:
    """Crop the square of a frame from its photo [1, 3, H, W]: [1, 3, S, S]. size: default is that of the frame."""
    from PIL import Image

    size = size or frame.size
    if frame.is_middle:
        return square(image, size)
    photo = to_pil(image)
    center, right, side = complex(*frame.center), complex(*frame.right), frame.side
    shrink = frame.shrink(size)
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


def align_faces(
    photos: Tensor,
    size: int = 1024,
    points: Sequence[Sequence[FacePoints]] | None = None,
    face: int | None = 0,
    what: str = CUTS[0],
    smoothing: float = 0.0,
    on_photo: Callable[[int], None] | None = None,
) -> tuple[Tensor, list[FaceFrame]]:
    """Align faces of photos [P, 3, H, W]: crops [N, 3, S, S] and their frames, photo by photo, largest face first.

    All faces are found before the first is cut.

    Args:
        points: the faces of every photo; None finds them.
        face: index of the face, by size; None takes all.
        what: one of `CUTS`.
        smoothing: standard deviation, in frames, of the Gaussian that smooths the points over time, for photos that
            are the frames of a video. Then faces are those of the first frame. 0: photos are independent.
        on_photo: called with the number of photos in which the faces are known.

    Raises:
        NoFaceError: for a photo without the face.
        ValueError: for invalid photos, points and size.
    """
    _check_size(size)
    if what not in CUTS:
        raise ValueError(f"Got {what!r}, expected one of {', '.join(CUTS)}.")
    check_images(photos, channels=(1, 3, 4) if what == CUTS[2] else (3,))
    if points is not None and len(points) != len(photos):
        raise ValueError(f"Got the points of {len(points)} photos for {len(photos)}, expected as many.")
    parts = photos.split(1)
    if what == CUTS[2]:
        chosen: list[list[FacePoints]] = [[] for _ in parts]
    else:
        found = []
        for index, photo in enumerate(parts):
            found.append(list(points[index]) if points is not None else find_faces(photo))
            if on_photo is not None:
                on_photo(index + 1)
        choose = _choose_in_clip if smoothing else _choose
        chosen = choose(parts, found, face, what != CUTS[0], smoothing)
    frames = []
    for index, (photo, faces) in enumerate(zip(parts, chosen, strict=True)):
        frames += [frame_of(photo, one, size, index) for one in faces] or [FaceFrame.middle(photo, size, index)]
    return torch.cat([cut(parts[frame.image], frame) for frame in frames]), frames


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


def _choose(
    photos: Sequence[Tensor], found: list[list[FacePoints]], face: int | None, middle: bool, _: float
) -> list[list[FacePoints]]:
    """The faces of every photo that were asked for; none where the middle is taken instead."""
    result: list[list[FacePoints]] = []
    for index, (photo, faces) in enumerate(zip(photos, found, strict=True)):
        try:
            one = choose_face(faces, face or 0, photo)
        except NoFaceError as error:
            if not middle:
                raise NoFaceError(f"Photo {index}: {error}" if len(photos) > 1 else str(error)) from error
            result.append([])
        else:
            result.append(faces if face is None else [one])
    return result


def _choose_in_clip(
    photos: Sequence[Tensor], found: list[list[FacePoints]], face: int | None, middle: bool, sigma: float
) -> list[list[FacePoints]]:
    """The same for the frames of a video: the faces of the first frame, followed and smoothed."""
    tracks = track_faces(found)
    if middle and not tracks:
        return [[] for _ in photos]
    first = [next(one for one in track if one is not None) for track in tracks]
    wanted = range(len(tracks)) if tracks and face is None else [first.index(choose_face(first, face or 0, photos[0]))]
    return [list(faces) for faces in zip(*(smooth_points(tracks[index], sigma) for index in wanted), strict=True)]


def _check_size(size: int) -> None:
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, usually the generator's resolution.")


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
