"""Settings that describe themselves: one declaration gives the default, the limits, the flag and the widget.

A settings class is a frozen dataclass whose fields are made by `setting(...)` and whose `__post_init__` calls
`check(self)`. The command line reads the same metadata through `add_flags` and `from_flags`, a user interface through
`describe`. Fields not made by `setting`, nested settings classes among them, are left to the caller.

    @dataclass(frozen=True)
    class AdaptConfig:
        steps: int = setting(300, "optimiser steps", low=1)

        def __post_init__(self) -> None:
            check(self)
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_KEY = "setting"

_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "text",
    tuple: "a tuple of texts",
    dict: "a dict of texts to finite numbers",
}

_METAVAR = {int: "N", float: "X", str: "TEXT", tuple: "A,B", dict: "NAME=X,NAME=X"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one field says about itself. `kind` is int, float, bool, str, tuple (of str) or dict (of str to float)."""

    name: str
    kind: type
    optional: bool  # None is allowed
    default: Any
    help: str
    low: float | None
    high: float | None
    step: float | None
    choices: tuple[str, ...] | None

    @property
    def expected(self) -> str:
        """What a value must look like, in words: "a finite number from 0 to 1"."""
        words = _EXPECTED[self.kind]
        if self.choices:
            words += f", {'one' if self.kind is str else 'each one'} of {', '.join(self.choices)}"
        return words + self.limits + (", or None" if self.optional else "")

    @property
    def limits(self) -> str:
        low, high = (None if limit is None else f"{limit:.10g}" for limit in (self.low, self.high))
        if low is not None and high is not None:
            return f" from {low} to {high}"
        if low is not None:
            return f" of at least {low}"
        return f" of at most {high}" if high is not None else ""


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Make a dataclass field that carries its help text and limits.

    low and high bound numbers (and the values of a dict) inclusively, step is a hint for widgets, choices names the
    allowed texts (the items of a tuple, the keys of a dict).
    """
    told = {"help": help, "low": low, "high": high, "step": step, "choices": tuple(choices) if choices else None}
    if isinstance(default, dict):  # dataclasses rightly refuse a shared mutable default
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata={_KEY: told})
    return dataclasses.field(default=default, metadata={_KEY: told})


def describe(cls: type) -> tuple[Setting, ...]:
    """The settings of a dataclass in order of declaration; fields made otherwise are skipped."""
    hints = typing.get_type_hints(cls)
    return tuple(
        Setting(field.name, *_kind(hints[field.name]), _default(field), **field.metadata[_KEY])
        for field in dataclasses.fields(cls)
        if _KEY in field.metadata
    )


def check(instance: Any) -> None:
    """Refuse wrong types, NaN and infinity, values out of range and unknown choices.

    Raises:
        ValueError: naming the field, what it got, what it expected and what to do.
    """
    owner = type(instance).__name__
    for item in describe(type(instance)):
        value = getattr(instance, item.name)
        if not _fits(item, value):
            hint = _near(item, value) or f"Correct it, or leave it out for the default {_text(item.default)}."
            raise ValueError(f"{owner}.{item.name} is {value!r}, expected {item.expected}. {hint}")


def add_flags(parser: argparse.ArgumentParser, cls: type, defaults: Any = None, prefix: str = "") -> None:
    """Add one `--flag` a setting. `defaults` is an instance of cls whose values replace the declared defaults;
    `prefix` keeps two classes with equal field names apart: prefix "layers" turns `steps` into `--layers-steps`.
    """
    for item in describe(cls):
        default = item.default if defaults is None else getattr(defaults, item.name)
        dest = _dest(prefix, item.name)
        flag = "--" + dest.replace("_", "-")
        told = f"{item.help} (default {_text(default)}{',' if item.limits else ''}{item.limits})".replace("%", "%%")
        if item.kind is bool:
            parser.add_argument(flag, dest=dest, default=default, help=told, action=argparse.BooleanOptionalAction)
            continue
        listed = item.choices if item.kind is str else None
        names = "{" + ",".join(listed) + "}" if listed else _METAVAR[item.kind]
        parser.add_argument(flag, dest=dest, default=default, help=told, type=_parser(item), metavar=names)


def from_flags(cls: type[T], namespace: argparse.Namespace, prefix: str = "") -> T:
    """Build cls from parsed flags; what the flags do not cover keeps its default.

    Raises:
        ValueError: from the class's own check.
    """
    return cls(**{item.name: getattr(namespace, _dest(prefix, item.name)) for item in describe(cls)})


def _kind(hint: Any) -> tuple[type, bool]:
    """Reduce a type hint to (kind, optional)."""
    optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        assert len(rest) == 1, f"a setting is one type or None, not {hint}"
        hint, optional = rest[0], True
    known = {tuple[str, ...]: tuple, dict[str, float]: dict}
    kind = known.get(hint, hint)
    assert kind in _EXPECTED, f"a setting cannot be of type {hint}"
    return kind, optional


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _fits(item: Setting, value: Any) -> bool:
    if value is None:
        return item.optional
    if item.kind is tuple:
        return isinstance(value, tuple) and all(isinstance(v, str) and _chosen(item, v) for v in value)
    if item.kind is dict:
        return isinstance(value, dict) and all(
            isinstance(k, str) and _chosen(item, k) and _in_range(item, v) for k, v in value.items()
        )
    if item.kind is str:
        return isinstance(value, str) and _chosen(item, value)
    if item.kind is bool:
        return isinstance(value, bool)
    return (item.kind is float or isinstance(value, int)) and _in_range(item, value)


def _in_range(item: Setting, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return (item.low is None or value >= item.low) and (item.high is None or value <= item.high)


def _chosen(item: Setting, value: str) -> bool:
    return item.choices is None or value in item.choices


def _near(item: Setting, value: Any) -> str:
    """A suggestion for a misspelt choice, or nothing."""
    if not item.choices:
        return ""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | dict) else []
    close = [m for g in given if g not in item.choices for m in difflib.get_close_matches(str(g), item.choices, 1)]
    return f"Did you mean {', '.join(close)}?" if close else ""


def _dest(prefix: str, name: str) -> str:
    return f"{prefix}_{name}" if prefix else name


def _text(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ",".join(f"{k}={v:g}" for k, v in value.items())
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _parser(item: Setting) -> Callable[[str], Any]:
    """Text to value. argparse shows an ArgumentTypeError to the user word for word."""

    def parse(text: str) -> Any:
        try:
            value = _read(item, text)
        except ValueError:
            value = text  # never fits, so the message below tells what was expected
        if not _fits(item, value):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {item.expected}. {_near(item, value)}".rstrip())
        return value

    return parse


def _read(item: Setting, text: str) -> Any:
    if item.optional and text.lower() == "none":
        return None
    parts = [] if text.lower() in ("", "none") else [part.strip() for part in text.split(",") if part.strip()]
    if item.kind is tuple:
        return tuple(parts)
    if item.kind is dict:
        pairs = [part.partition("=") for part in parts]
        return {name.strip(): float(number) for name, _, number in pairs}
    return item.kind(text)
