"""Plots show the numbers they are given."""

from __future__ import annotations

import math

import pytest
import torch

from nada_core.plots import plot_heat, plot_lines


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
