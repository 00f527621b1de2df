"""Widgets made from the core's settings classes, which declare default, limits, step and help.

A node lists the settings it shows in the order of its widgets. Saved workflows store widget values by position, so new
names go to the end of such a list.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..nada_core.guidance.clip_losses import TERMS
from ..nada_core.runtime.config import Setting, describe
from ._host import io

T = TypeVar("T")

AUTOMATIC, ON, OFF = "automatic", "on", "off"  # options of switches and choices that may keep their value
BY_HAND = "by hand"


RECOMMENDED = "the settings recommended by the generator's file, or those for published generators"


def settings_input(
    cls: type, names: Sequence[str], automatic: Sequence[str] = ("steps",), base: str = RECOMMENDED
) -> Any:
    """Return the input `settings`: automatic shows the settings `automatic`, by hand shows all of `names`.

    base: what the settings are that the user does not change.
    """
    return io.DynamicCombo.Input(
        "settings",
        options=[
            io.DynamicCombo.Option(AUTOMATIC, changes_inputs(cls, automatic)),
            io.DynamicCombo.Option(BY_HAND, changes_inputs(cls, names)),
        ],
        tooltip=f"automatic: {base}. by hand: change any of them.",
    )


def settings_of(
    base: T, names: Sequence[str], values: Mapping[str, Any], automatic: Sequence[str] = ("steps",), **fixed: Any
) -> T:
    """Return `base` with the fields `fixed` and what the widgets of `settings_input` change.

    Raises:
        ValueError: If settings do not fit each other.
    """
    own = changes(type(base), names if values["settings"] == BY_HAND else automatic, values)
    return replace(base, **{**fixed, **own})  # type: ignore[type-var]


def numbers(name: str, text: str) -> list[float]:
    """Read the numbers of a text widget. Raises ValueError for anything else."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"Got {text!r} for {name}, expected numbers, such as 0 0 1 1.") from None


def changes_inputs(cls: type, names: Sequence[str], prefix: str = "") -> list[Any]:
    """Return one input for each name: a setting, or "terms.angle" for one of the weights in a setting.

    Their defaults keep the value they would replace: -1 for numbers, "automatic" for choices and switches.
    prefix: for the ids of the inputs.
    """
    items = {item.name: item for item in describe(cls)}
    return [_change_input(items[name.partition(".")[0]], name.partition(".")[2], prefix) for name in names]


def changes(cls: type, names: Sequence[str], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields that the widgets of `changes_inputs` change; weights of terms as a dict.

    Raises:
        ValueError: If a number lies between -1 and the lowest value.
    """
    items = {item.name: item for item in describe(cls)}
    result: dict[str, Any] = {}
    for name in names:
        first, _, key = name.partition(".")
        item, widget = items[first], prefix + (_term(key) if key else first)
        value = values[widget]
        if value in (-1, AUTOMATIC):
            continue
        if item.low is not None and value < item.low:
            raise ValueError(f"Got {widget} {value}, expected{item.limits.removeprefix(' of')}, or -1 for automatic.")
        if key:
            result.setdefault(first, {})[key] = value
        else:
            result[first] = value == ON if item.kind is bool else value
    return result


def _change_input(item: Setting, key: str, prefix: str) -> Any:
    name = prefix + (_term(key) if key else item.name)
    if item.kind is bool or (item.choices and item.kind is str):
        options = [AUTOMATIC, *((ON, OFF) if item.kind is bool else item.choices or ())]
        return io.Combo.Input(name, options=options, default=AUTOMATIC, tooltip=f"{_sentence(item)}.")
    shared = {"tooltip": f"{_meaning(key) if key else _sentence(item)}. -1: automatic."}
    if item.kind is int:
        return io.Int.Input(name, default=-1, min=-1, max=_whole(item.high, 2**31 - 1), step=1, **shared)
    return _float(name, replace(item, low=-1.0), -1.0, shared)


def _float(name: str, item: Setting, default: float, shared: dict[str, Any]) -> Any:
    step = item.step
    assert step, f"{item.name} needs a step, or the frontend would round it to halves"
    # The frontend rounds typed values: a hundredth of a step keeps the precision that matters, and stays readable.
    return io.Float.Input(
        name, default=default, min=item.low, max=item.high, step=step, round=min(step / 100, 1.0), **shared
    )


def _whole(limit: float | None, otherwise: int) -> int:
    return otherwise if limit is None else int(limit)


def _term(key: str) -> str:
    return f"{key}_loss"


def _sentence(item: Setting) -> str:
    """The help with the limits, which the frontend does not show."""
    limits = f" ({item.limits.strip()})" if item.limits else ""
    return f"{item.help[0].upper()}{item.help[1:]}{limits}"


def _meaning(term: str) -> str:
    meaning = " ".join((inspect.getdoc(TERMS[term]) or "").partition(";")[0].split())
    return f"Weight of the {term} loss: {meaning}"


def seed_input(tooltip: str, redraw: bool = False) -> Any:
    """A seed in the range of torch, numpy and the frontend. redraw: offer to change it after every run."""
    return io.Int.Input("seed", default=0, min=0, max=2**32 - 1, step=1, control_after_generate=redraw, tooltip=tooltip)


def label_input() -> Any:
    return io.Int.Input(
        "label",
        default=-1,
        min=-1,
        max=2**31 - 1,
        step=1,
        advanced=True,
        tooltip="The class of a conditional generator. -1: none.",
    )


def class_of(label: int) -> int | None:
    """The class that `label_input` stands for: -1 is None."""
    return None if label == -1 else label
