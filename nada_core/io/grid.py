"""The one place where images change range, size or kind, and where they are arranged for people to look at.

Inside the core an image is float32 [N, 3, H, W] in -1..1; files and user interfaces want bytes. Grids come back in the
core's own convention, so `save_image` takes them like any other image. `blank_sheet`, `measure` and `write` are what
every drawing begins with, here and in plots.py.

Shapes: N images, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .images import _expect_images, from_pil, resize, to_pil

if TYPE_CHECKING:
    from PIL import Image, ImageDraw


_CELL = 192  # images smaller than this are enlarged by a whole factor in grids, so that pixels stay pixels

_LARGEST = 512  # larger ones are reduced, so that a sheet can be taken in at a glance and its labels be read

_GAP = 8

PAPER = (255, 255, 255)

INK = (38, 38, 46)


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


def compare_grid(columns: Mapping[str, Tensor], rows: Sequence[str] | None = None, title: str | None = None) -> Tensor:
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
