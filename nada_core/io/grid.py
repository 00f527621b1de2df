"""Labeled grids of images, drawn with Pillow.

Grids are images themselves, float32 [1, 3, H, W] in -1..1. Shapes: N images, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .images import check_rgb, from_pil, resize, to_pil

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_MIN_SIDE = 192  # smaller images are enlarged by an integer factor, which keeps pixels sharp
_MAX_SIDE = 512  # larger images are reduced, so that labels stay readable when the grid is scaled to a screen
_GAP = 8
_INK = (38, 38, 46)


def grid(
    images: Tensor, columns: int | None = None, labels: Sequence[str] | None = None, title: str | None = None
) -> Tensor:
    """Arrange images [N, 3, H, W] row by row on white.

    Args:
        columns: by default about the square root of N.
        labels: captions under the images, one per image.
    """
    check_rgb(images)
    columns = columns or math.ceil(math.sqrt(len(images)))
    if columns < 1 or (labels is not None and len(labels) != len(images)):
        count = "no" if labels is None else len(labels)
        raise ValueError(f"Got {len(images)} images, {columns} columns, {count} labels; expected one label an image.")
    cells = _cells(images)
    width, height = cells[0].size
    caption = 22 if labels else 0
    top = 40 if title else _GAP
    rows = math.ceil(len(cells) / columns)
    sheet, draw = _blank_sheet(_GAP + min(columns, len(cells)) * (width + _GAP), top + rows * (height + caption + _GAP))
    if title:
        _write(draw, (_GAP, top // 2), title, 18, "lm", sheet.width - 2 * _GAP)
    for index, cell in enumerate(cells):
        x = _GAP + index % columns * (width + _GAP)
        y = top + index // columns * (height + caption + _GAP)
        sheet.paste(cell, (x, y))
        if labels:
            _write(draw, (x + width // 2, y + height + caption // 2), labels[index], 14, "mm", width)
    return from_pil(sheet)


def compare_grid(columns: Mapping[str, Tensor], rows: Sequence[str] | None = None, title: str | None = None) -> Tensor:
    """Arrange images in labeled columns, one row per latent, to compare the same latents side by side.

    Args:
        columns: label -> images [N, 3, H, W], with the same N; H and W may differ.
        rows: N labels on the left.
    """
    counts = {label: len(images) for label, images in columns.items()}
    if not counts or len(set(counts.values())) != 1 or (rows is not None and len(rows) not in counts.values()):
        raise ValueError(f"Got {counts or 'no columns'}, expected columns of equally many images and one label a row.")
    side = min(max(_MIN_SIDE, *(max(images.shape[-2:]) for images in columns.values())), _MAX_SIDE)
    stacks = [_cells(images, side) for images in columns.values()]
    widths = [stack[0].width for stack in stacks]
    height = max(stack[0].height for stack in stacks)
    header = 30
    top = (40 if title else 4) + header
    left = _GAP + (max(math.ceil(_font(14).getlength(row)) for row in rows) + _GAP if rows else 0)
    sheet, draw = _blank_sheet(left + sum(widths) + len(widths) * _GAP, top + len(stacks[0]) * (height + _GAP))
    if title:
        _write(draw, (_GAP, 20), title, 18, "lm", sheet.width - 2 * _GAP)
    x = left
    for label, stack, width in zip(columns, stacks, widths, strict=True):
        _write(draw, (x + width // 2, top - header // 2), label, 16, "mm", width)
        for index, cell in enumerate(stack):
            sheet.paste(cell, (x, top + index * (height + _GAP) + (height - cell.height) // 2))
        x += width + _GAP
    for index, row in enumerate(rows or ()):
        _write(draw, (_GAP, top + index * (height + _GAP) + height // 2), row, 14, "lm")
    return from_pil(sheet)


def _cells(images: Tensor, side: int = _MIN_SIDE) -> list[Image.Image]:
    """Pillow images: small ones enlarged by an integer factor up to `side`, large ones reduced."""
    check_rgb(images)
    height, width = images.shape[-2:]
    factor = max(1, side // max(height, width))
    scaled = images.detach().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    if (shrink := _MAX_SIDE / max(height, width)) < 1:
        scaled = resize(scaled, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return [to_pil(image) for image in scaled]


def _blank_sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (width, height), "white")
    return sheet, ImageDraw.Draw(sheet)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str, width: int | None = None
) -> None:
    """Draw one line of text, truncated with an ellipsis to `width` pixels."""
    font = _font(size)
    text = " ".join(text.split())
    while width is not None and len(text) > 1 and math.ceil(font.getlength(text)) > width:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    draw.text(at, text, _INK, font, anchor)
