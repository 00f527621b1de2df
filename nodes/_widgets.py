"""Widgets from the core's settings and back: default, limits, step and help are written once, in the dataclass.

A node names the settings it shows, in the order of its widgets. Saved workflows keep widget values by position, so
such a list only ever grows at its end, whatever happens to the dataclass.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..nada_core.guidance.clip_losses import TERMS
from ..nada_core.runtime.config import Setting, describe
from ._host import io

T = TypeVar("T")


def widgets(cls: type, names: Sequence[str], defaults: Any = None, advanced: Sequence[str] = ()) -> list[Any]:
    """One input a name: a setting's, or "terms.angle" for one of the weights that a setting holds.

    defaults: an instance whose values replace the declared ones. advanced: names shown only when asked for.
    """
    known = {item.name: item for item in describe(cls)}
    made: list[Any] = []
    for name in names:
        first, _, key = name.partition(".")
        default = known[first].default if defaults is None else getattr(defaults, first)
        made.append(_input(known[first], key, default, name in advanced or None))
    return made


def settings(cls: type[T], names: Sequence[str], values: Mapping[str, Any], **more: Any) -> T:
    """The dataclass that the widgets' values stand for. Raises ValueError, from the class's own check."""
    known = {item.name: item for item in describe(cls)}
    given: dict[str, Any] = {name.partition(".")[0]: {} for name in names if "." in name}
    for name in names:
        first, _, key = name.partition(".")
        if not key:
            given[name] = _value(known[name], values[name])
        elif weight := values[_term(key)]:  # what weighs nothing need not be computed
            given[first][key] = weight
    return cls(**given, **more)


def _input(item: Setting, key: str, default: Any, advanced: bool | None) -> Any:
    told = {"tooltip": _tooltip(item), "advanced": advanced}
    if key:
        meaning = " ".join((inspect.getdoc(TERMS[key]) or "").partition(";")[0].split())
        told["tooltip"] = f"Weight of the {key} loss: {meaning}."
        return _float(_term(key), item, default.get(key, 0.0), told)
    if item.kind is int:
        low = -1 if item.optional else item.low  # a number box has no "none"
        # A seed is not drawn anew after a run: that would train anew at every click.
        control = {"control_after_generate": False} if item.name == "seed" else {}
        return io.Int.Input(
            item.name,
            default=low if default is None else default,
            min=_whole(low, 0),
            max=_whole(item.high, 2**31 - 1),
            step=1,
            **control,
            **told,
        )
    if item.kind is float:
        return _float(item.name, item, default, told)
    if item.kind is bool:
        return io.Boolean.Input(item.name, default=default, **told)
    if item.choices and item.kind is str:
        return io.Combo.Input(item.name, options=list(item.choices), default=default, **told)
    return io.String.Input(item.name, default=", ".join(default) if item.kind is tuple else default, **told)


def _float(name: str, item: Setting, default: float, told: dict[str, Any]) -> Any:
    step = item.step
    assert step, f"{item.name} needs a step, or the page would round it to halves"
    # The page rounds what is typed: a hundredth of a step is finer than anybody types, and coarse enough to read.
    return io.Float.Input(name, default=default, min=item.low, max=item.high, step=step, round=step / 100, **told)


def _whole(limit: float | None, otherwise: int) -> int:
    return otherwise if limit is None else int(limit)


def _term(key: str) -> str:
    return f"{key}_loss"


def _value(item: Setting, value: Any) -> Any:
    if item.kind is tuple:
        return tuple(value.replace(",", " ").split())
    return None if item.optional and value == -1 else value


def _tooltip(item: Setting) -> str:
    """The help as a sentence, with the limits, which the page keeps to itself."""
    limits = f" ({item.limits.strip()})" if item.limits else ""
    return f"{item.help[0].upper()}{item.help[1:]}{limits}.{' -1: none.' if item.optional else ''}"


def seed_input(tooltip: str, redraw: bool = False) -> Any:
    """A seed that torch, numpy and the page's numbers all can hold. redraw: offer to draw a new one after a run."""
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
    """What `label_input` means: a number box has no "none"."""
    return None if label == -1 else label
