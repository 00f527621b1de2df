"""The one place where images change range, size or kind, and where pictures for people are drawn.

Inside the core an image is float32 [N, 3, H, W] in -1..1; files and user interfaces want bytes. Grids and plots come
back in the core's own convention, so `save_image` takes them like any other image. The plots use Pillow alone: the
core should not need a plotting library to show one loss curve.

Shapes: N images, H height, W width, S steps, R rows.
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
_SHARPER = 2  # plots are drawn this much larger and reduced, which smooths their lines

_PAPER = (255, 255, 255)
_INK = (38, 38, 46)
_PALE = (110, 112, 122)
_RULE = (228, 229, 234)
_HEAT = (0, 90, 160)
# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out because it vanishes on white.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (70, 70, 78))


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
    sheet, draw = _sheet(
        _GAP + min(columns, len(cells)) * (width + _GAP), top + rows * (height + caption + _GAP) + (0 if rows else _GAP)
    )
    if title:
        _write(draw, (_GAP, top // 2), title, 18, anchor="lm", room=sheet.width - 2 * _GAP)
    for index, cell in enumerate(cells):
        x = _GAP + index % columns * (width + _GAP)
        y = top + index // columns * (height + caption + _GAP)
        sheet.paste(cell, (x, y))
        if labels:
            _write(draw, (x + width // 2, y + height + caption // 2), labels[index], 14, anchor="mm", room=width)
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
    left = _GAP + (max(_measure(row, 14) for row in rows) + _GAP if rows else 0)
    count = len(stacks[0])
    sheet, draw = _sheet(left + sum(widths) + len(widths) * _GAP, top + count * (height + _GAP))
    if title:
        _write(draw, (_GAP, 20), title, 18, anchor="lm", room=sheet.width - 2 * _GAP)
    x = left
    for label, stack, width in zip(columns, stacks, widths, strict=True):
        _write(draw, (x + width // 2, top - header // 2), label, 16, anchor="mm", room=width)
        for index, cell in enumerate(stack):
            sheet.paste(cell, (x, top + index * (height + _GAP) + (height - cell.height) // 2))
        x += width + _GAP
    for index, row in enumerate(rows or ()):
        _write(draw, (_GAP, top + index * (height + _GAP) + height // 2), row, 14, anchor="lm")
    return from_pil(sheet)


# ---- plots --------------------------------------------------------------------------------------------------------


def plot_lines(
    series: Mapping[str, Sequence[float]],
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    smooth: float = 0.0,
    size: tuple[int, int] = (760, 420),
) -> Tensor:
    """Curves over their index, with axes and a legend; values that are not finite leave a gap.

    `smooth` in 0..1 is the decay of a moving average drawn over the pale raw curve: losses of small batches are noisy.
    `size` is width and height in pixels. Returns [1, 3, h, w] in -1..1.
    """
    values = {label: [float(v) for v in curve] for label, curve in series.items()}
    finite = [v for curve in values.values() for v in curve if math.isfinite(v)]
    if not finite:
        raise ValueError(f"Got {list(values) or 'no series'} without one finite value, expected something to draw.")
    if not 0 <= smooth < 1:
        raise ValueError(f"Got smooth={smooth}, expected 0 (off) up to but not including 1.")
    width, height = size
    y_ticks = _ticks(min(finite), max(finite))
    last = max(max(len(curve) for curve in values.values()) - 1, 1)
    x_ticks = [t for t in _ticks(0, last, whole=True, about=8) if t <= last]
    y_texts = [_number(t, y_ticks) for t in y_ticks]
    frame = _Frame(
        left=24 + max(_measure(t, 12) for t in y_texts) + (20 if y_label else 0),
        top=52 if title else 18,
        right=width - 28 - max(_measure(label, 13) for label in values) - 26,
        bottom=height - 50,
        x_range=(0.0, float(last)),
        y_range=(y_ticks[0], y_ticks[-1]),
    )
    sheet, draw = _sheet(width, height, _SHARPER)
    _axes(sheet, draw, frame, title, x_label, y_label)
    for tick, text in zip(y_ticks, y_texts, strict=True):
        y = frame.y(tick)
        _line(draw, [(frame.left, y), (frame.right, y)], _RULE, 1)
        _write(draw, (frame.left - 8, y), text, 12, "rm", _PALE, scale=_SHARPER)
    for tick in x_ticks:
        _line(draw, [(frame.x(tick), frame.bottom), (frame.x(tick), frame.bottom + 4)], _PALE, 1)
        _write(draw, (frame.x(tick), frame.bottom + 8), _number(tick, x_ticks), 12, "mt", _PALE, scale=_SHARPER)
    _line(draw, [(frame.left, frame.bottom), (frame.right, frame.bottom)], _PALE, 1)
    for index, (label, curve) in enumerate(values.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        if smooth:
            _curve(draw, frame, curve, tuple((2 * 255 + c) // 3 for c in colour), 1)
        _curve(draw, frame, _averaged(curve, smooth), colour, 2)
        y = frame.top + 8 + index * 22
        _line(draw, [(frame.right + 16, y), (frame.right + 34, y)], colour, 3)
        _write(draw, (frame.right + 42, y), label, 13, "lm", scale=_SHARPER)
    return _reduced(sheet)


def plot_heat(
    matrix: Tensor | Sequence[Sequence[float]],
    row_labels: Sequence[str],
    title: str = "",
    x_label: str = "step",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A table of numbers as shades of blue, [R, S]: one labelled row a line, one step a column, white is zero
    or the lowest value below it.

    Made to show which rows of W+ were chosen at each step. Returns [1, 3, h, w] in -1..1.
    """
    from PIL import Image

    table = torch.as_tensor(matrix, dtype=torch.float32).cpu()
    if table.ndim != 2 or not table.numel() or len(row_labels) != len(table) or not table.isfinite().all():
        got = f"a table of shape {list(table.shape)} with {len(row_labels)} labels"
        raise ValueError(f"Got {got}, expected finite numbers [R, S] and R labels.")
    count, steps = table.shape
    low = min(float(table.min()), 0.0)  # nothing chosen stays white, everything chosen is blue
    high = max(float(table.max()), low + 1e-12)
    width, height = size or (760, max(150, 24 * count + 102))
    frame = _Frame(
        left=24 + max(_measure(label, 12) for label in row_labels),
        top=52 if title else 18,
        right=width - 92,
        bottom=height - 50,
        x_range=(0.0, float(steps)),
        y_range=(float(count), 0.0),  # the first row is on top
    )
    sheet, draw = _sheet(width, height, _SHARPER)
    _axes(sheet, draw, frame, title, x_label, "")
    inner = (_SHARPER * int(frame.right - frame.left), _SHARPER * int(frame.bottom - frame.top))
    shade = ((table - low) / (high - low))[..., None]
    white, blue = torch.tensor(_PAPER), torch.tensor(_HEAT)
    cells = Image.fromarray((white + shade * (blue - white)).round().to(torch.uint8).numpy())
    # More steps than pixels: averaging shows how often, where nearest would show every other step.
    kind = Image.Resampling.BOX if steps > inner[0] else Image.Resampling.NEAREST
    sheet.paste(cells.resize(inner, kind), (_SHARPER * int(frame.left), _SHARPER * int(frame.top)))
    for row in range(count + 1):
        _line(draw, [(frame.left, frame.y(row)), (frame.right, frame.y(row))], _RULE, 1)
    for row, label in enumerate(row_labels):
        _write(draw, (frame.left - 8, frame.y(row + 0.5)), label, 12, "rm", _PALE, scale=_SHARPER)
    ticks = [t for t in _ticks(0, max(steps - 1, 1), whole=True, about=8) if t < steps]
    for tick in ticks:
        _write(draw, (frame.x(tick + 0.5), frame.bottom + 8), _number(tick, ticks), 12, "mt", _PALE, scale=_SHARPER)
    _scale_bar(draw, frame, low, high)
    return _reduced(sheet)


# ---- drawing ------------------------------------------------------------------------------------------------------


class _Frame:
    """The rectangle a plot is drawn in, in final pixels, and the map from values to pixels."""

    def __init__(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
    ) -> None:
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        self._x_range, self._y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self._x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


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


def _sheet(width: int, height: int, scale: int = 1) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (width * scale, height * scale), _PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _reduced(sheet: Image.Image) -> Tensor:
    from PIL import Image

    return from_pil(sheet.resize((sheet.width // _SHARPER, sheet.height // _SHARPER), Image.Resampling.LANCZOS))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _measure(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str,
    colour: tuple[int, ...] = _INK,
    room: float | None = None,
    scale: int = 1,
) -> None:
    """Write one line of text, cut short with an ellipsis where it does not fit into `room` pixels."""
    text = " ".join(text.split())
    while room is not None and len(text) > 1 and _measure(text, size) > room:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    draw.text((at[0] * scale, at[1] * scale), text, colour, _font(size * scale), anchor)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, ...], width: int
) -> None:
    draw.line([(x * _SHARPER, y * _SHARPER) for x, y in points], colour, width * _SHARPER, joint="curve")


def _axes(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, frame: _Frame, title: str, x_label: str, y_label: str
) -> None:
    from PIL import Image

    _write(draw, (18, 24), title, 17, "lm", room=sheet.width / _SHARPER - 36, scale=_SHARPER)
    middle = (frame.left + frame.right) / 2
    _write(draw, (middle, frame.bottom + 36), x_label, 13, "mm", _PALE, scale=_SHARPER)
    if y_label:  # Pillow writes sideways only by turning a picture of the text
        strip, pen = _sheet(int(frame.bottom - frame.top), 20, _SHARPER)
        _write(pen, (strip.width / 2 / _SHARPER, 10), y_label, 13, "mm", _PALE, scale=_SHARPER)
        sheet.paste(strip.transpose(Image.Transpose.ROTATE_90), (8 * _SHARPER, int(frame.top) * _SHARPER))


def _curve(
    draw: ImageDraw.ImageDraw, frame: _Frame, curve: Sequence[float], colour: tuple[int, ...], width: int
) -> None:
    run: list[tuple[float, float]] = []
    for index, value in enumerate([*curve, math.nan]):  # the last gap flushes the last run
        if math.isfinite(value):
            run.append((frame.x(index), frame.y(value)))
            continue
        if len(run) == 1:  # a lone point has no line to be seen by
            (x, y), r = run[0], 2.5
            draw.ellipse([v * _SHARPER for v in (x - r, y - r, x + r, y + r)], colour)
        elif run:
            _line(draw, run, colour, width)
        run = []


def _scale_bar(draw: ImageDraw.ImageDraw, frame: _Frame, low: float, high: float) -> None:
    """The meaning of the shades, at the right of a heat plot."""
    left, right = frame.right + 18, frame.right + 30
    tall = int((frame.bottom - frame.top) * _SHARPER)
    for offset in range(tall):
        part = 1 - offset / max(tall - 1, 1)
        colour = tuple(round(w + part * (b - w)) for w, b in zip(_PAPER, _HEAT, strict=True))
        y = frame.top * _SHARPER + offset
        draw.line([(left * _SHARPER, y), (right * _SHARPER, y)], colour)
    draw.rectangle([v * _SHARPER for v in (left, frame.top, right, frame.bottom)], outline=_RULE, width=_SHARPER)
    for value, y in ((high, frame.top + 6), (low, frame.bottom - 6)):
        _write(draw, (right + 8, y), f"{value:.3g}", 12, "lm", _PALE, scale=_SHARPER)


def _ticks(low: float, high: float, whole: bool = False, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-30):
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    gap = max(gap, 1.0) if whole else gap
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [gap * i for i in range(first, last + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """A tick's text, with as many decimals as its neighbours need."""
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if max(abs(t) for t in ticks) >= 1e6 or gap < 1e-4:
        return f"{value:.3g}"
    return f"{value + 0.0:,.{max(0, -math.floor(math.log10(gap) + 1e-9))}f}"


def _averaged(curve: Sequence[float], decay: float) -> list[float]:
    """Exponential moving average without the usual pull towards its first value (weights sum to one)."""
    averaged: list[float] = []
    total = weight = 0.0
    for value in curve:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        averaged.append(total / weight if math.isfinite(value) else math.nan)
    return averaged
