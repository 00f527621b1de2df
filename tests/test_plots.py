"""Plots show the numbers they are given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nada_core.io.plots import _bar_texts, plot_bars, plot_heat, plot_lines


def test_curves_are_drawn_in_their_own_colours_and_gaps_stay_empty() -> None:
    plain = plot_lines({"loss": [0.0, 0.5, 1.0]}, size=(400, 300))
    assert plain.shape == (1, 3, 300, 400)
    blue = ((plain[0, 2] - plain[0, 0]) > 0.8).sum()
    gap = plot_lines({"loss": [0.0, math.nan, 1.0]}, size=(400, 300))
    assert ((gap[0, 2] - gap[0, 0]) > 0.8).sum() < blue / 2
    smoothed = plot_lines({"a": [1.0, 0.0] * 50, "b": [3.0] * 10}, "title", y_label="loss", smooth=0.9)
    assert not torch.equal(smoothed, plot_lines({"a": [1.0, 0.0] * 50, "b": [3.0] * 10}, "title", y_label="loss"))


@pytest.mark.parametrize("series", [{"a": [1.0]}, {"a": [0.0, 0.0]}, {"a": [1e9, 1e-9]}, {"a": [-3.0] * 5, "b": []}])
def test_odd_curves_still_draw(series: dict[str, list[float]]) -> None:
    assert plot_lines(series).isfinite().all()


def test_plots_of_nothing_are_refused() -> None:
    for series in ({}, {"a": []}, {"a": [math.nan]}):
        with pytest.raises(ValueError, match="finite"):
            plot_lines(series)
    with pytest.raises(ValueError, match="R labels"):
        plot_heat([[0.0, 1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="finite"):
        plot_heat([[math.inf]], ["a"])


def test_heat_shades_follow_the_numbers() -> None:
    picture = plot_heat([[1.0, 0.0], [0.0, 0.0]], ["w0", "w1"])[0]
    middle = picture[:, 30:90, 60:620]
    quarter = middle[:, 5:20, 20:200]
    assert (quarter[2] - quarter[0]).mean() > 0.8  # blue
    assert middle[:, 5:20, 360:].mean() > 0.95 and middle[:, 40:50, :].mean() > 0.9
    assert plot_heat(torch.zeros(3, 2000), list("abc")).mean() > plot_heat(torch.ones(3, 2000), list("abc")).mean()


LAYERS = {"b4.conv0": 1.0, "b8.conv0": 0.5, "b8.conv1": 0.0, "b16.conv0": 0.25}


def blue(picture: torch.Tensor, least: float = 0.8) -> list[int]:
    """How many blue pixels the rows of four bars have, from the top; `least` 0.2 counts pale ones too."""
    return [int(((row[2] - row[0]) > least).sum()) for row in picture[0, :, 18:114].split(24, dim=1)]


def test_bars_are_as_long_as_their_numbers() -> None:
    picture = plot_bars(LAYERS)
    assert picture.shape == (1, 3, 18 + 4 * 24 + 18, 760) and picture.dtype == torch.float32
    first, second, third, fourth = blue(picture)
    assert first > 5000 and third == 0
    assert second == pytest.approx(first / 2, rel=0.01) and fourth == pytest.approx(first / 4, rel=0.01)
    high = blue(plot_bars({name: 2 + value for name, value in LAYERS.items()}))  # from zero, not from the lowest
    assert high[2] == pytest.approx(high[0] * 2 / 3, rel=0.01)
    assert blue(plot_bars({name: 1e-5 * value for name, value in LAYERS.items()}))[1] > 2000  # tiny ones fill it too


def test_chosen_bars_are_strong_the_others_pale_and_a_legend_says_why() -> None:
    picture = plot_bars(LAYERS, chosen=["b8.conv0"])
    assert picture.shape[2] == plot_bars(LAYERS).shape[2] + 26
    legend, bars = picture[:, :, :44], picture[:, :, 26:]
    first, second, _, fourth = blue(bars)
    assert first == fourth == 0 and second == blue(plot_bars(LAYERS))[1]
    assert blue(bars, 0.2)[0] > 5000 and blue(bars, 0.2)[3] > 1000
    swatch = (legend[0, 2] - legend[0, 0])[:40, :33]
    assert (swatch > 0.8).sum() == 12 * 12 and swatch.sum() == pytest.approx(12 * 12 * 160 / 127.5, rel=0.02)
    other = plot_bars(LAYERS, chosen=["b8.conv0"], legend="the one that would be trained")
    assert not torch.equal(other[:, :, :44], legend) and torch.equal(other[:, :, 44:], picture[:, :, 44:])
    assert torch.equal(plot_bars(LAYERS, chosen=list(LAYERS))[:, :, 44:], plot_bars(LAYERS)[:, :, 18:])


def test_negative_bars_go_to_the_left_of_zero() -> None:
    picture = plot_bars({"a": 1.0, "b": -1.0, "c": 1.0, "d": -1.0})
    columns = [((row[2] - row[0]) > 0.8).any(0).nonzero() for row in picture[0, :, 18:114].split(24, dim=1)]
    assert columns[1].max() <= columns[0].min() + 1 and len(columns[0]) == pytest.approx(len(columns[1]), abs=2)


def test_bars_of_every_kind_fit_the_sheet() -> None:
    many = {f"b{2 ** (index // 2 + 2)}.conv{index % 2}": 0.1 * index for index in range(18)}
    tall = plot_bars(many, "Layers", "change of w", list(many)[:5])
    assert tall.shape == (1, 3, 48 + 26 + 18 * 24 + 42, 760)
    assert plot_bars(many, size=(400, 300)).shape == (1, 3, 300, 400)
    for values in (many, dict.fromkeys(many, 0.0), {"label " * 40: -3.0, "b": 1e7}):
        picture = plot_bars(values, "Layers", "change of w")
        assert all(edge.eq(1).all() for edge in (picture[..., :8], picture[..., -8:], picture[..., -4:, :]))
    assert not torch.equal(plot_bars(many, "a"), plot_bars(many, "b"))
    assert not torch.equal(plot_bars(many, x_label="a"), plot_bars(many, x_label="b"))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0684, 0.0019, 2e-6, 0.0], ["0.0684", "0.0019", "2e-6", "0"]),
        ([1.0, 1e-5, -1e-5], ["1.00", "1e-5", "-1e-5"]),
        ([1e-5, 2.5e-12], ["1.00e-5", "2.50e-12"]),
        ([0.0, 0.0], ["0", "0"]),
        ([12345.0, -2.0], ["12,345", "-2"]),
        ([1234567.0, 3.0], ["1.23e+6", "3.00e+0"]),
        ([120.0, 0.3], ["120", "0.3"]),
    ],
)
def test_bar_numbers_compare_at_a_glance(values: list[float], texts: list[str]) -> None:
    assert _bar_texts(values) == texts


@pytest.mark.parametrize(
    ("values", "arguments", "words"),
    [
        ({}, {}, "no values"),
        ({"a": math.nan, "b": 1.0}, {}, r"no finite value for \['a'\]"),
        ({"a": -math.inf}, {}, "no finite value"),
        ({"a": 1.0}, {"chosen": ["a", "c"]}, r"\['c'\] as chosen.*\['a'\]"),
        (LAYERS, {"size": (760, 60)}, r"for 4 bars, expected about \(\d+, 92\)"),
        (LAYERS, {"size": (100, 200)}, r"size \(100, 200\)"),
    ],
)
def test_bars_that_cannot_be_drawn_are_refused(values: dict[str, float], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plot_bars(values, **arguments)
