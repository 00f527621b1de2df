"""Plots show the values they are given."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import pytest
import torch

from nada_core.io.plots import _debiased_average, plot_bars, plot_heat, plot_lines

LAYERS = {"b4.conv0": 1.0, "b8.conv0": 0.5, "b8.conv1": 0.0, "b16.conv0": 0.25}


def blue(picture: torch.Tensor, least: float = 0.6) -> torch.Tensor:
    """Which pixels [H, W] of a plot are blue; a `least` of 0.2 includes pale blue."""
    return picture[0, 2] - picture[0, 0] > least


def bar_lengths(picture: torch.Tensor, least: float = 0.6) -> list[int]:
    """Length in pixels of every visible bar, from the top."""
    lengths = blue(picture, least).sum(1).tolist()
    starts = [i for i in range(1, len(lengths)) if lengths[i] and not lengths[i - 1]]
    return [lengths[i + 3] for i in starts]


def test_plots_are_images_of_the_requested_size() -> None:
    for picture in (
        plot_lines({"a": [1.0, 2.0]}, size=(400, 300)),
        plot_heat([[0.0, 1.0]], ["w0"], size=(400, 300)),
        plot_bars(LAYERS, size=(400, 300)),
    ):
        assert picture.shape == (1, 3, 300, 400) and picture.dtype == torch.float32
        assert picture.max() == 1 and -1 <= picture.min() < 0  # dark text on white
        assert picture[..., :2].eq(1).all() and picture[..., -2:].eq(1).all()


def test_plots_leave_matplotlib_as_it_is() -> None:
    before = dict(matplotlib.rcParams)
    plot_lines({"a": [1.0, 2.0]}), plot_heat([[0.0, 1.0]], ["w0"]), plot_bars(LAYERS)
    assert dict(matplotlib.rcParams) == before


def test_curve_pixels_follow_the_values() -> None:
    picture = plot_lines({"loss": [0.0, 1.0]}, size=(400, 300))
    rows, columns = blue(picture)[:230].nonzero().T  # above the legend
    assert rows[columns.argmin()] > 180 and rows[columns.argmax()] < 40
    assert columns.max() - columns.min() > 300


def test_values_that_are_not_finite_leave_a_gap() -> None:
    line, gap, dots = (
        blue(plot_lines({"loss": curve}, size=(400, 300)))[:230].any(0).sum()
        for curve in ([0.0, 0.5, 1.0, 0.5], [0.0, 0.5, math.inf, 0.5], [0.0, math.nan, 1.0, math.nan])
    )
    assert line > 300 and line / 4 < gap < line / 2
    assert 6 < dots < 20  # a value without neighbors is a dot


def test_smoothing_draws_the_average_over_the_raw_curve() -> None:
    curve = [1.0, 0.0] * 50
    raw, smoothed = plot_lines({"a": curve}), plot_lines({"a": curve}, smooth=0.9)
    assert blue(smoothed).sum() < blue(raw).sum() / 2 < blue(smoothed, 0.1).sum()
    assert _debiased_average([1.0, math.nan, 0.0, 0.0], 0.5) == pytest.approx([1, math.nan, 1 / 3, 1 / 7], nan_ok=True)
    assert _debiased_average([2.0, 4.0], 0.0) == [2.0, 4.0]


@pytest.mark.parametrize("series", [{"a": [1.0]}, {"a": [0.0, 0.0]}, {"a": [1e9, 1e-9]}, {"a": [-3.0] * 5, "b": []}])
def test_unusual_curves_are_drawn(series: dict[str, list[float]]) -> None:
    assert blue(plot_lines(series)).sum() > 50


def test_labels_and_titles_are_drawn_as_they_are() -> None:
    plain = plot_lines({"a": [0.0, 1.0]})
    for other in (
        plot_lines({"b": [0.0, 1.0]}),
        plot_lines({"a": [0.0, 1.0]}, title="Loss"),
        plot_lines({"a": [0.0, 1.0]}, x_label="seconds"),
        plot_lines({"a": [0.0, 1.0]}, y_label="loss"),
    ):
        assert not torch.equal(other, plain)
    assert not torch.equal(plot_bars(LAYERS, x_label="a"), plot_bars(LAYERS, x_label="b"))
    assert not torch.equal(plot_bars({"$x$": 1.0}), plot_bars({"x": 1.0}))
    plot_bars({r"$\wrong$": 1.0}, title="$" * 3)  # as a formula, matplotlib would refuse it


def test_heat_shades_follow_the_values() -> None:
    picture = plot_heat([[1.0, 0.0], [0.0, 0.0]], ["w0", "w1"])[0]
    top_left, others = picture[:, 25:45, 60:300], (picture[:, 25:45, 360:620], picture[:, 70:90, 60:620])
    assert top_left.mean() < -0.2 and (top_left[2] - top_left[0]).mean() > 0.5
    assert all(part.mean() > 0.9 for part in others)
    every_other = torch.tensor([0.0, 1.0]).repeat(2, 2000)
    assert plot_heat(torch.zeros(2, 9), ["a", "b"]).mean() > plot_heat(torch.ones(2, 9), ["a", "b"]).mean() + 0.5
    between = plot_heat(every_other, ["a", "b"])[0, 0, 30:45, 100:500]  # more steps than pixels are averaged
    assert between.std() < 0.2 and abs(between.mean()) < 0.6


def test_heat_without_finite_values_or_labels_is_refused() -> None:
    for series in ({}, {"a": []}, {"a": [math.nan]}):
        with pytest.raises(ValueError, match="finite"):
            plot_lines(series)
    with pytest.raises(ValueError, match=r"smooth=1"):
        plot_lines({"a": [1.0]}, smooth=1)
    with pytest.raises(ValueError, match=r"\[1, 2\] with 2 labels"):
        plot_heat([[0.0, 1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="finite"):
        plot_heat([[math.inf]], ["a"])


def test_bars_are_as_long_as_their_values() -> None:
    first, second, third = bar_lengths(plot_bars(LAYERS))
    assert first > 400 and second == pytest.approx(first / 2, abs=2) and third == pytest.approx(first / 4, abs=2)
    high = bar_lengths(plot_bars({name: 2 + value for name, value in LAYERS.items()}))
    assert high[2] == pytest.approx(high[0] * 2 / 3, abs=2)  # bars start at 0, not at the minimum
    assert bar_lengths(plot_bars({name: 1e-5 * value for name, value in LAYERS.items()})) == pytest.approx(
        [first, second, third], abs=80
    )


def test_chosen_bars_are_strong_and_explained_by_the_legend() -> None:
    every = bar_lengths(plot_bars(LAYERS))
    picture = plot_bars(LAYERS, chosen=["b8.conv0"])
    strong, legend = bar_lengths(picture)
    assert strong == pytest.approx(every[1], abs=2) and legend < 40
    assert bar_lengths(picture, 0.2)[:3] == pytest.approx(every, abs=2)  # the others are pale
    assert not torch.equal(plot_bars(LAYERS, chosen=["b8.conv0"], legend="trained"), picture)
    assert bar_lengths(plot_bars(LAYERS, chosen=list(LAYERS)))[:3] == pytest.approx(every, abs=2)


def test_negative_bars_extend_to_the_left_of_zero() -> None:
    picture = plot_bars({"a": 1.0, "b": -1.0})
    columns = [half.any(0).nonzero() for half in (blue(picture)[:60], blue(picture)[60:])]
    assert columns[1].max() <= columns[0].min() + 1 and len(columns[0]) == pytest.approx(len(columns[1]), abs=2)


def test_bars_of_any_number_and_label_fit() -> None:
    many = {f"b{2 ** (index // 2 + 2)}.conv{index % 2}": 0.1 * index for index in range(18)}
    assert plot_bars(many).shape[2] > plot_bars(LAYERS).shape[2]
    for values in (many, dict.fromkeys(many, 0.0), {"label " * 40: -3.0, "b": 1e7}):
        picture = plot_bars(values, "Layers", "change of w")
        assert all(edge.eq(1).all() for edge in (picture[..., :8], picture[..., -8:], picture[..., -4:, :]))


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        ({}, {}, "no values"),
        ({"a": math.nan, "b": 1.0}, {}, r"\['a'\]"),
        ({"a": -math.inf}, {}, r"\['a'\]"),
        ({"a": 1.0}, {"chosen": ["a", "c"]}, r"\['c'\].*\['a'\]"),
        (LAYERS, {"size": (760, 60)}, r"\(760, 60\) for 4 bars.*\(200, 108\)"),
        (LAYERS, {"size": (100, 200)}, r"\(100, 200\)"),
    ],
)
def test_unusable_bars_are_refused(values: dict[str, float], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_bars(values, **arguments)
