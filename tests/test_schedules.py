"""Learning-rate schedules."""

import pytest

from nada_core.runtime.schedules import lr_scale


def test_lr_scale_ramps_up_linearly_and_down_along_a_cosine() -> None:
    assert lr_scale(0, 0.05, 0.25) == 0 and lr_scale(0.025, 0.05, 0.25) == pytest.approx(0.5)
    assert lr_scale(0.05, 0.05, 0.25) == lr_scale(0.75, 0.05, 0.25) == 1
    assert lr_scale(0.875, 0.05, 0.25) == pytest.approx(0.5) and lr_scale(1, 0.05, 0.25) == pytest.approx(0)


def test_lr_scale_is_one_without_ramps() -> None:
    assert lr_scale(0, 0, 0) == lr_scale(0.99, 0, 0) == 1
