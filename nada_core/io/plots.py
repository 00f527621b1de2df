"""Plots as images, drawn by matplotlib's Agg renderer; neither pyplot nor the global settings are touched.

Every function returns float32 [1, 3, H, W] in -1..1, as `save_image` takes it; `size` is W and H in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .images import from_uint8

_INK, _GRAY, _RULE, _STRONG, _PALE = "#26262e", "#6e707a", "#d9dae0", "#08519c", "#b7cde2"
# Okabe and Ito's palette for color-blind readers, without the yellow that is invisible on white.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#46464e")


def plot_lines(
    series: Mapping[str, Sequence[float]],
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    smooth: float = 0.0,
    size: tuple[int, int] = (760, 420),
) -> Tensor:
    """Plot curves over their index, with a legend. Values that are not finite leave a gap.

    Args:
        smooth: decay, 0 <= smooth < 1, of a moving average drawn over the pale raw curve.
    """
    curves = {label: [float(v) if math.isfinite(v) else math.nan for v in curve] for label, curve in series.items()}
    if all(math.isnan(value) for curve in curves.values() for value in curve):
        raise ValueError(f"Got {list(curves) or 'no series'} without one finite value, expected values to plot.")
    if not 0 <= smooth < 1:
        raise ValueError(f"Got smooth={smooth}, expected 0 (off) up to but not including 1.")
    axes = _axes(size, title, x_label, y_label)
    axes.grid(axis="y", color=_RULE)
    for color, (label, curve) in zip(cycle(_COLORS), curves.items(), strict=False):
        if smooth:
            axes.plot(curve, color=color, linewidth=1, alpha=0.3)
        average, padded = _debiased_average(curve, smooth), [math.nan, *curve, math.nan]
        axes.plot(average, color=color, linewidth=2, label=_plain(label))
        isolated = [i for i in range(len(curve)) if math.isnan(padded[i]) and math.isnan(padded[i + 2])]
        axes.plot(isolated, [average[i] for i in isolated], "o", color=color, markersize=5)
    axes.margins(x=0.01)
    axes.locator_params(axis="x", integer=True)
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK)
    return _render(axes)


def plot_heat(
    matrix: Tensor | Sequence[Sequence[float]],
    row_labels: Sequence[str],
    title: str = "",
    x_label: str = "step",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Plot a table [R, S] of R labeled rows as shades of blue; the lightest is 0, or the minimum where it is lower."""
    table = torch.as_tensor(matrix, dtype=torch.float32).cpu()
    if table.ndim != 2 or not table.numel() or len(row_labels) != len(table) or not table.isfinite().all():
        shape = f"a table of shape {list(table.shape)} with {len(row_labels)} labels"
        raise ValueError(f"Got {shape}, expected finite numbers [R, S] and R labels.")
    low = min(float(table.min()), 0.0)
    high = max(float(table.max()), low + 1e-12)
    width, height = size or (760, max(150, 24 * len(table) + 102))
    axes = _axes((width, height), title, x_label)
    averaged = "auto" if table.shape[1] > width / 2 else "nearest"  # steps narrower than two pixels
    shades = axes.imshow(table.numpy(), "Blues", aspect="auto", vmin=low, vmax=high, interpolation=averaged)
    axes.set_yticks(range(len(table)), [_plain(label) for label in row_labels])
    for row in range(1, len(table)):
        axes.axhline(row - 0.5, color="white", linewidth=1)
    axes.locator_params(axis="x", integer=True)
    bar = axes.figure.colorbar(shades, ax=axes, aspect=12, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=_RULE, labelcolor=_GRAY)
    return _render(axes)


def plot_bars(
    values: Mapping[str, float],
    title: str = "",
    x_label: str = "",
    chosen: Collection[str] = (),
    legend: str = "chosen",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Plot one horizontal bar per label, from top to bottom, with its number at its end.

    Args:
        chosen: labels of the bars to highlight, which `legend` explains; without any, no bar is pale.
    """
    numbers = {label: float(value) for label, value in values.items()}
    broken = [label for label, value in numbers.items() if not math.isfinite(value)]
    if not numbers or broken:
        raise ValueError(f"Got {f'no finite value for {broken}' if broken else 'no values'}, expected finite numbers.")
    if missing := [name for name in chosen if name not in numbers]:
        raise ValueError(f"Got {missing} as chosen, expected names among the bars: {list(numbers)}.")
    axes = _axes(size or (760, 24 * len(numbers) + 100), title, x_label, rows=len(numbers))
    colors = [_STRONG if label in chosen or not chosen else _PALE for label in numbers]
    bars = axes.barh(range(len(numbers)), list(numbers.values()), color=colors)
    axes.bar_label(bars, [f" {value:.3g} " for value in numbers.values()], color=_GRAY)
    axes.set_yticks(range(len(numbers)), [_plain(label) for label in numbers])
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.axvline(0, color=_GRAY, linewidth=0.8)
    if chosen:
        highlighted = bars[colors.index(_STRONG)]
        axes.figure.legend([highlighted], [_plain(legend)], loc="outside lower center", frameon=False, labelcolor=_INK)
    return _render(axes)


def _axes(size: tuple[int, int], title: str, x_label: str, y_label: str = "", rows: int = 0) -> Any:
    """Matplotlib Axes on a figure of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = size
    if width < 200 or height < 60 + 12 * rows:
        raise ValueError(f"Got size {size} for {rows} bars, expected at least {(200, 60 + 12 * rows)}.")
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    axes.set_title(_plain(title, 80), loc="left", color=_INK, fontsize=13)
    axes.set_xlabel(_plain(x_label, 80), color=_GRAY)
    axes.set_ylabel(_plain(y_label, 80), color=_GRAY)
    axes.tick_params(color=_RULE, labelcolor=_GRAY)
    axes.spines[:].set_visible(False)
    return axes


def _plain(text: str, longest: int = 40) -> str:
    """One line of at most `longest` characters, whose dollar signs are no formulas."""
    text = " ".join(text.split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _render(axes: Any) -> Tensor:
    import numpy

    axes.figure.canvas.draw()
    return from_uint8(torch.from_numpy(numpy.array(axes.figure.canvas.buffer_rgba()))[None, ..., :3])


def _debiased_average(curve: Sequence[float], decay: float) -> list[float]:
    """Exponential moving average whose weights sum to one; NaN stays NaN."""
    averages: list[float] = []
    total = weight = 0.0
    for value in curve:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        averages.append(total / weight if math.isfinite(value) else math.nan)
    return averages
