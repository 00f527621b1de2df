"""Plots: curves, shades and bars, drawn with Pillow alone.

The core should not need a plotting library to show one loss curve. Plots come back as images do, float32 [1, 3, h, w]
in -1..1, so `save_image` takes them; they are drawn larger than they leave and reduced, which smooths their lines.

Shapes: S steps, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .grid import INK, PAPER, blank_sheet, measure, write
from .images import from_pil

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_SHARPER = 2

_PALE = (110, 112, 122)

_RULE = (228, 229, 234)

_HEAT = (0, 90, 160)

_PALE_BAR = (183, 205, 226)

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is left out because it vanishes on white.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (70, 70, 78))


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
        left=24 + max(measure(t, 12) for t in y_texts) + (20 if y_label else 0),
        top=52 if title else 18,
        right=width - 28 - max(measure(label, 13) for label in values) - 26,
        bottom=height - 50,
        x_range=(0.0, float(last)),
        y_range=(y_ticks[0], y_ticks[-1]),
    )
    sheet, draw = blank_sheet(width, height, _SHARPER)
    _axes(sheet, draw, frame, title, x_label, y_label)
    for tick, text in zip(y_ticks, y_texts, strict=True):
        y = frame.y(tick)
        _line(draw, [(frame.left, y), (frame.right, y)], _RULE, 1)
        write(draw, (frame.left - 8, y), text, 12, "rm", _PALE, scale=_SHARPER)
    for tick in x_ticks:
        _line(draw, [(frame.x(tick), frame.bottom), (frame.x(tick), frame.bottom + 4)], _PALE, 1)
        write(draw, (frame.x(tick), frame.bottom + 8), _number(tick, x_ticks), 12, "mt", _PALE, scale=_SHARPER)
    _line(draw, [(frame.left, frame.bottom), (frame.right, frame.bottom)], _PALE, 1)
    for index, (label, curve) in enumerate(values.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        if smooth:
            _curve(draw, frame, curve, tuple((2 * 255 + c) // 3 for c in colour), 1)
        _curve(draw, frame, _averaged(curve, smooth), colour, 2)
        y = frame.top + 8 + index * 22
        _line(draw, [(frame.right + 16, y), (frame.right + 34, y)], colour, 3)
        write(draw, (frame.right + 42, y), label, 13, "lm", scale=_SHARPER)
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
        left=24 + max(measure(label, 12) for label in row_labels),
        top=52 if title else 18,
        right=width - 92,
        bottom=height - 50,
        x_range=(0.0, float(steps)),
        y_range=(float(count), 0.0),  # the first row is on top
    )
    sheet, draw = blank_sheet(width, height, _SHARPER)
    _axes(sheet, draw, frame, title, x_label, "")
    inner = (_SHARPER * int(frame.right - frame.left), _SHARPER * int(frame.bottom - frame.top))
    shade = ((table - low) / (high - low))[..., None]
    white, blue = torch.tensor(PAPER), torch.tensor(_HEAT)
    cells = Image.fromarray((white + shade * (blue - white)).round().to(torch.uint8).numpy())
    # More steps than pixels: averaging shows how often, where nearest would show every other step.
    kind = Image.Resampling.BOX if steps > inner[0] else Image.Resampling.NEAREST
    sheet.paste(cells.resize(inner, kind), (_SHARPER * int(frame.left), _SHARPER * int(frame.top)))
    for row in range(count + 1):
        _line(draw, [(frame.left, frame.y(row)), (frame.right, frame.y(row))], _RULE, 1)
    for row, label in enumerate(row_labels):
        write(draw, (frame.left - 8, frame.y(row + 0.5)), label, 12, "rm", _PALE, scale=_SHARPER)
    ticks = [t for t in _ticks(0, max(steps - 1, 1), whole=True, about=8) if t < steps]
    for tick in ticks:
        write(draw, (frame.x(tick + 0.5), frame.bottom + 8), _number(tick, ticks), 12, "mt", _PALE, scale=_SHARPER)
    _scale_bar(draw, frame, low, high)
    return _reduced(sheet)


def plot_bars(
    values: Mapping[str, float],
    title: str = "",
    x_label: str = "",
    chosen: Collection[str] = (),
    legend: str = "chosen",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """One labelled bar a name, from top to bottom, with its number at its end; bars start at zero.

    Made to show how much each layer would change: bars named in `chosen` are strong, the others pale, and `legend` says
    what that means. With nothing chosen all are strong. `size` is width and height in pixels; without it the plot is as
    high as its bars need. Returns [1, 3, h, w] in -1..1. Raises ValueError for no values, values that are not finite,
    a chosen name that has no bar, and a size too small to be read.
    """
    numbers = {label: float(value) for label, value in values.items()}
    odd = [label for label, value in numbers.items() if not math.isfinite(value)]
    if not numbers or odd:
        got = f"no finite value for {odd}" if odd else "no values"
        raise ValueError(f"Got {got}, expected one finite number a bar.")
    if missing := [name for name in chosen if name not in numbers]:
        raise ValueError(f"Got {missing} as chosen, expected names among the bars: {list(numbers)}.")
    texts = _bar_texts(list(numbers.values()))
    top = (48 if title else 18) + (26 if chosen else 0)
    under = 42 if x_label else 18
    width, height = size or (760, top + 24 * len(numbers) + under)
    names = min(max(measure(label, 12) for label in numbers), width // 3)
    room = max(measure(text, 12) for text in texts) + 8  # for a number beyond the end of its bar
    low, high = min(0.0, *numbers.values()), max(0.0, *numbers.values())
    frame = _Frame(
        left=18 + names + 10 + (room if low < 0 else 0),
        top=top,
        right=width - 18 - room,
        bottom=height - under,
        x_range=(low, high if high > low else low + 1),  # all zero: any range will do, there is nothing to draw
        y_range=(float(len(numbers)), 0.0),
    )
    if frame.right - frame.left < 40 or frame.bottom - frame.top < 14 * len(numbers):
        least = (width + 40 - int(frame.right - frame.left), top + 14 * len(numbers) + under)
        raise ValueError(f"Got size {(width, height)} for {len(numbers)} bars, expected about {least} or more.")
    sheet, draw = blank_sheet(width, height, _SHARPER)
    _axes(sheet, draw, frame, title, "", "")
    if chosen:
        _bar(draw, (18, top - 26, 30, top - 14), _HEAT)
        write(draw, (36, top - 20), legend, 12, "lm", room=width - 54, scale=_SHARPER)
    zero = frame.x(0.0)
    for row, ((label, value), text) in enumerate(zip(numbers.items(), texts, strict=True)):
        strong = not chosen or label in chosen
        y, end = frame.y(row + 0.5), frame.x(value)
        thick = (frame.y(row + 1) - frame.y(row)) * 0.34
        _bar(draw, (min(zero, end), y - thick, max(zero, end), y + thick), _HEAT if strong else _PALE_BAR)
        ink = INK if strong else _PALE
        write(draw, (18 + names, y), label, 12, "rm", ink, room=names, scale=_SHARPER)
        write(
            draw,
            (end - 6, y) if value < 0 else (end + 6, y),
            text,
            12,
            "rm" if value < 0 else "lm",
            ink,
            scale=_SHARPER,
        )
    _line(draw, [(zero, frame.top), (zero, frame.bottom)], _PALE, 1)
    write(draw, ((frame.left + frame.right) / 2, frame.bottom + 22), x_label, 13, "mm", _PALE, scale=_SHARPER)
    return _reduced(sheet)


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


def _reduced(sheet: Image.Image) -> Tensor:
    from PIL import Image

    return from_pil(sheet.resize((sheet.width // _SHARPER, sheet.height // _SHARPER), Image.Resampling.LANCZOS))


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, ...], width: int
) -> None:
    draw.line([(x * _SHARPER, y * _SHARPER) for x, y in points], colour, width * _SHARPER, joint="curve")


def _axes(sheet: Image.Image, draw: ImageDraw.ImageDraw, frame: _Frame, title: str, x_label: str, y_label: str) -> None:
    from PIL import Image

    write(draw, (18, 24), title, 17, "lm", room=sheet.width / _SHARPER - 36, scale=_SHARPER)
    middle = (frame.left + frame.right) / 2
    write(draw, (middle, frame.bottom + 36), x_label, 13, "mm", _PALE, scale=_SHARPER)
    if y_label:  # Pillow writes sideways only by turning a picture of the text
        strip, pen = blank_sheet(int(frame.bottom - frame.top), 20, _SHARPER)
        write(pen, (strip.width / 2 / _SHARPER, 10), y_label, 13, "mm", _PALE, scale=_SHARPER)
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
        colour = tuple(round(w + part * (b - w)) for w, b in zip(PAPER, _HEAT, strict=True))
        y = frame.top * _SHARPER + offset
        draw.line([(left * _SHARPER, y), (right * _SHARPER, y)], colour)
    draw.rectangle([v * _SHARPER for v in (left, frame.top, right, frame.bottom)], outline=_RULE, width=_SHARPER)
    for value, y in ((high, frame.top + 6), (low, frame.bottom - 6)):
        write(draw, (right + 8, y), f"{value:.3g}", 12, "lm", _PALE, scale=_SHARPER)


def _bar(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: tuple[int, ...]) -> None:
    left, top, right, bottom = (round(v * _SHARPER) for v in box)
    if right > left:  # Pillow counts both corners in, so that a bar of no length would still be a line
        draw.rectangle((left, top, right - 1, bottom - 1), colour)


def _bar_texts(values: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as the largest needs for three digits, so that they compare at a glance."""
    largest = max(abs(value) for value in values)
    if not largest:
        return ["0"] * len(values)
    power = math.floor(math.log10(largest))
    decimals = max(0, 2 - power) if -4 < power < 6 else None  # None: too small or large to be written out
    texts = []
    for value in values:
        text = "0" if decimals is None else f"{value:,.{decimals}f}"
        if value and not any(digit in text for digit in "123456789"):  # a small number is not zero
            text = f"{value:.2e}" if decimals is None else f"{value:.1g}"
            text = text.replace("e-0", "e-").replace("e+0", "e+")
        texts.append(text if value else "0")
    return texts


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
