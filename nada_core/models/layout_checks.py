"""Refuse StyleGAN2 variants that have the usual tensor shapes but render different images."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..io.errors import UnsupportedCheckpointError
from .ops.fir import TAPS

_SQRT2 = math.sqrt(2)

# Pattern of a setting in NVIDIA's or rosinality's modules -> the only supported value.
_ONLY: dict[str, Any] = {
    r"synthesis\.b\d+\.conv[01]\.activation": "lrelu",
    r"synthesis\.b\d+\.conv[01]\.act_gain": _SQRT2,
    r"synthesis\.b\d+\.architecture": "skip",
    r"synthesis\.architecture": "skip",
    r"mapping\.fc\d+\.activation": "lrelu",
    r".*\.affine\.bias_gain": 1.0,
    r"mapping\.embed\.bias_gain": 1.0,
    r".*\.activate\.negative_slope": 0.2,
    r".*\.activate\.scale": _SQRT2,
    r"style\.\d+\.activation": "fused_lrelu",
    r"(conv1|convs\.\d+)\.conv\.demodulate": True,
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpointError for settings other than those of StyleGAN2."""
    for name, value in settings.items():
        for pattern, expected in _ONLY.items():
            if re.fullmatch(pattern, name) and not _equal(value, expected):
                raise UnsupportedCheckpointError(
                    f"{name} is {reprlib.repr(value)}, expected {expected!r}; other settings would give wrong images."
                )


def only_value(settings: Mapping[str, Any], pattern: str) -> Any:
    """Return the value that all settings of this name share; None if there are none.

    Raises:
        UnsupportedCheckpointError: the values differ.
    """
    values = {name: value for name, value in settings.items() if re.fullmatch(pattern, name)}
    first = next(iter(values), None)
    for name, value in values.items():
        if first is not None and value != values[first]:
            raise UnsupportedCheckpointError(
                f"{first} is {reprlib.repr(values[first])} and {name} is {reprlib.repr(value)}, expected one value for "
                "the whole network."
            )
    return None if first is None else values[first]


def check_filter(name: str, taps: Tensor) -> None:
    """Raise UnsupportedCheckpointError for a resampling filter other than [1, 3, 3, 1]; the gain does not matter."""
    expected = torch.tensor(TAPS)
    taps = taps.float()
    if taps.shape == (4,):
        taps = torch.outer(taps, taps)
    if taps.shape != (4, 4) or not torch.allclose(4 * taps / taps.sum(), torch.outer(expected, expected), atol=1e-5):
        raise UnsupportedCheckpointError(
            f"{name} is not the filter [1, 3, 3, 1]; no other resampling filter is supported."
        )


def check_picture(state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Raise UnsupportedCheckpointError for networks of other than square RGB images. state: by our names."""
    for name, value in state.items():
        if name.endswith("torgb.weight") and value.ndim == 4 and len(value) != 3:
            kind = {1: " (gray images)", 4: " (RGBA images)"}.get(len(value), "")
            raise UnsupportedCheckpointError(
                f"{names.get(name, name)} has {len(value)} output channels{kind}, expected 3 (RGB)."
            )
        sides = value.shape[-2:] if name.endswith((".const", ".noise_const")) and value.ndim >= 2 else (1, 1)
        if sides[0] != sides[1]:
            raise UnsupportedCheckpointError(
                f"{names.get(name, name)} has {sides[0]} x {sides[1]} positions: the images are not square, which is "
                "not supported."
            )


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return isinstance(value, int | float) and math.isclose(value, expected, rel_tol=1e-5)
    return bool(value == expected)
