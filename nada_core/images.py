"""The one place where images change range, size or kind, and where they are arranged for people to look at.

Inside the core an image is float32 [N, 3, H, W] in -1..1; files and user interfaces want bytes. Grids come back in the
core's own convention, so `save_image` takes them like any other image. `blank_sheet`, `measure` and `write` are what
every drawing begins with, here and in plots.py.

Shapes: N images, H height, W width.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_CELL = 192  # images smaller than this are enlarged by a whole factor in grids, so that pixels stay pixels
_LARGEST = 512  # larger ones are reduced, so that a sheet can be taken in at a glance and its labels be read
_GAP = 8
SMALLEST = 16  # pixels a side of a picture from outside: there is nothing to recognise in fewer
_KINDS = {1: "grey", 3: "RGB", 4: "RGBA"}
_FARTHEST = 4.0  # a generator overshoots -1..1 a little; bytes taken for -1..1 are far beyond

PAPER = (255, 255, 255)
INK = (38, 38, 46)


# ---- ranges -------------------------------------------------------------------------------------------------------


def to_uint8(images: Tensor) -> Tensor:
    """[N, 3, H, W] in -1..1 (values beyond are clamped) -> uint8 [N, H, W, 3]."""
    _expect_images(images)
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in -1..1; the exact inverse of to_uint8."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"Got {pixels.dtype} of shape {list(pixels.shape)}, expected uint8 [N, H, W, 3].")
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """One image, [3, H, W] or [1, 3, H, W], as a Pillow image."""
    from PIL import Image

    batch = image[None] if image.ndim == 3 else image
    if len(batch) != 1:
        raise ValueError(f"Got {len(batch)} images, expected one. Index the batch, or arrange it with grid().")
    return Image.fromarray(to_uint8(batch)[0].cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as [1, 3, H, W]; transparency is laid on white, rotation tags are obeyed."""
    import numpy
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return from_uint8(torch.from_numpy(numpy.array(image.convert("RGB")))[None])


# ---- files --------------------------------------------------------------------------------------------------------


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file as [1, 3, H, W] in -1..1.

    Raises:
        ValueError: when there is no such file or it is not an image Pillow can read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return from_pil(image)
    except FileNotFoundError:
        raise ValueError(f"There is no image file at {path}. Check the path.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} could not be read as an image ({error}). Expected PNG, JPEG or WebP.") from error


def save_image(image: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one image, [3, H, W] or [1, 3, H, W], as PNG. The file appears whole or not at all.

    Raises:
        ValueError: for more than one image, and for a name that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Got the file name {path.name}, expected one that ends in .png.")
    picture = to_pil(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format="PNG")
        os.chmod(partial, 0o644)  # mkstemp makes private files; a picture is meant to be looked at
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


# ---- size ---------------------------------------------------------------------------------------------------------


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resample [N, 3, H, W] to size (a side, or height and width), antialiased bicubic, differentiable.

    Returns the images untouched when they already have that size. Bicubic may overshoot -1..1 slightly at edges.
    """
    _expect_images(images)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"Got the size {height} x {width}, expected at least 1 x 1.")
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def square(images: Tensor, size: int) -> Tensor:
    """Pictures of any size and kind as a generator of `size` pixels makes them: [N, C, H, W] -> [N, 3, size, size].

    The middle square is cut out; larger ones are reduced by area, as projectors do (StyleGAN2, arXiv:1912.04958,
    appendix D), smaller ones enlarged. C is 1 for grey, 3 for colour, 4 with transparency, which is laid on white; all
    channels lie in -1..1. Raises ValueError for what `expect_photos` refuses, and for a size under 16.
    """
    expect_photos(images)
    if size < SMALLEST:
        raise ValueError(f"Got size {size}, expected at least {SMALLEST} pixels, as a rule the generator's.")
    if images.shape[1] == 4:
        cover = ((images[:, 3:] + 1) / 2).clamp(0, 1)
        images = images[:, :3] * cover + (1 - cover)
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = images.float()[:, :, top : top + side, left : left + side].expand(-1, 3, -1, -1)
    return F.interpolate(cut, size=(size, size), mode="area") if side > size else resize(cut, size).clamp(-1, 1)


def expect_photos(images: Tensor, channels: Sequence[int] = (1, 3, 4)) -> None:
    """Refuse what is no picture from outside: [N, C, H, W] in -1..1.

    Raises:
        ValueError: for other channels, sides under 16 pixels, NaN and infinity, and values that are far from -1..1.
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in channels:
        kinds = " or ".join(f"{one} ({_KINDS[one]})" for one in channels)
        raise ValueError(f"Got pictures of shape {list(images.shape)}, expected [N, C, H, W] with at least one picture "
                         f"of {kinds} channels.")
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"Got pictures of {width} x {height} pixels, expected at least {SMALLEST} on each side; "
                         "there is nothing to recognise in fewer.")
    if not images.isfinite().all():
        raise ValueError("Got pictures with NaN or infinity in them, expected -1..1; load them from a sound file.")
    if (farthest := images.abs().max().item()) > _FARTHEST:
        raise ValueError(f"Got pictures that reach {farthest:.4g}, expected -1..1; divide bytes by 127.5 and take 1 "
                         "away, or use load_image.")


# ---- grids --------------------------------------------------------------------------------------------------------


def grid(
    images: Tensor, columns: int | None = None, labels: Sequence[str] | None = None, title: str | None = None
) -> Tensor:
    """Arrange [N, 3, H, W] row by row on white, with a caption under each image where labels are given.

    Returns [1, 3, h, w] in -1..1. Without `columns` the grid is about as wide as it is high.
    """
    _expect_images(images)
    columns = columns or math.ceil(math.sqrt(len(images)))
    if columns < 1 or (labels is not None and len(labels) != len(images)):
        count = "no" if labels is None else len(labels)
        raise ValueError(f"Got {len(images)} images, {columns} columns, {count} labels; expected one label an image.")
    cells = _cells(images)
    height, width = cells[0].height, cells[0].width
    caption = 22 if labels else 0
    top = 40 if title else _GAP
    rows = math.ceil(len(cells) / columns)
    sheet, draw = blank_sheet(
        _GAP + min(columns, len(cells)) * (width + _GAP), top + rows * (height + caption + _GAP) + (0 if rows else _GAP)
    )
    if title:
        write(draw, (_GAP, top // 2), title, 18, anchor="lm", room=sheet.width - 2 * _GAP)
    for index, cell in enumerate(cells):
        x = _GAP + index % columns * (width + _GAP)
        y = top + index // columns * (height + caption + _GAP)
        sheet.paste(cell, (x, y))
        if labels:
            write(draw, (x + width // 2, y + height + caption // 2), labels[index], 14, anchor="mm", room=width)
    return from_pil(sheet)


def compare_grid(
    columns: Mapping[str, Tensor], rows: Sequence[str] | None = None, title: str | None = None
) -> Tensor:
    """One labelled column a key, one row a latent: the same latents before and after, side by side.

    Every value is [N, 3, H, W] with the same N; sizes may differ between columns. Returns [1, 3, h, w] in -1..1.
    """
    counts = {label: len(images) for label, images in columns.items()}
    if not counts or len(set(counts.values())) != 1 or (rows is not None and len(rows) not in counts.values()):
        raise ValueError(f"Got {counts or 'no columns'}, expected columns of equally many images and one label a row.")
    side = min(max(_CELL, *(max(images.shape[-2:]) for images in columns.values())), _LARGEST)
    stacks = [_cells(images, side) for images in columns.values()]
    widths = [stack[0].width for stack in stacks]
    height = max(stack[0].height for stack in stacks)
    header = 30
    top = (40 if title else 4) + header
    left = _GAP + (max(measure(row, 14) for row in rows) + _GAP if rows else 0)
    count = len(stacks[0])
    sheet, draw = blank_sheet(left + sum(widths) + len(widths) * _GAP, top + count * (height + _GAP))
    if title:
        write(draw, (_GAP, 20), title, 18, anchor="lm", room=sheet.width - 2 * _GAP)
    x = left
    for label, stack, width in zip(columns, stacks, widths, strict=True):
        write(draw, (x + width // 2, top - header // 2), label, 16, anchor="mm", room=width)
        for index, cell in enumerate(stack):
            sheet.paste(cell, (x, top + index * (height + _GAP) + (height - cell.height) // 2))
        x += width + _GAP
    for index, row in enumerate(rows or ()):
        write(draw, (_GAP, top + index * (height + _GAP) + height // 2), row, 14, anchor="lm")
    return from_pil(sheet)


# ---- drawing ------------------------------------------------------------------------------------------------------


def _expect_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, 3, H, W] with at least one image.")


def _cells(images: Tensor, side: int = _CELL) -> list[Image.Image]:
    """Images as Pillow images: small ones enlarged by a whole factor up to `side`, large ones reduced."""
    _expect_images(images)
    height, width = images.shape[-2:]
    factor = max(1, side // max(height, width))
    big = images.detach().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    if (shrink := _LARGEST / max(height, width)) < 1:
        big = resize(big, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return [to_pil(image) for image in big]


def blank_sheet(width: int, height: int, scale: int = 1) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper and a pen for it; `scale` times larger for what will be reduced once it is drawn."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (width * scale, height * scale), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def measure(text: str, size: int) -> int:
    """The width in pixels of one line of text in type of `size` pixels."""
    return math.ceil(_font(size).getlength(text))


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str,
    colour: tuple[int, ...] = INK,
    room: float | None = None,
    scale: int = 1,
) -> None:
    """Write one line of text, cut short with an ellipsis where it does not fit into `room` pixels."""
    text = " ".join(text.split())
    while room is not None and len(text) > 1 and measure(text, size) > room:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    draw.text((at[0] * scale, at[1] * scale), text, colour, _font(size * scale), anchor)
