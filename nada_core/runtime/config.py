"""Validated settings: one declaration gives a field its default, limits, command-line flag and node widget.

A settings class is a frozen pydantic dataclass with fields such as `steps: int = setting(300, "steps", low=1)`.
`describe` lists them for the command line and the nodes.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One field of a settings class. kind: int, float, bool, str, tuple (of str) or dict (of str to float)."""

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
    def limits(self) -> str:
        if self.low is None:
            return ""
        return f" of at least {self.low:.10g}" if self.high is None else f" from {self.low:.10g} to {self.high:.10g}"


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """Declare a field of a settings class, of type int, float, bool, str, tuple[str, ...] or dict[str, float].

    Args:
        low, high: inclusive limits of a number, or of the values of a dict; high needs low. step: for widgets.
        choices: the allowed texts: of a str, the items of a tuple, or the keys of a dict.
    """
    extra: Any = {"low": low, "high": high, "step": step, "choices": tuple(choices) if choices else None}
    limits, options = Setting("", object, False, default, help, **extra).limits, list(choices or ())

    def check(value: Any) -> Any:
        numbers = value.values() if isinstance(value, dict) else [value] if isinstance(value, int | float) else []
        texts = [value] if isinstance(value, str) else value if isinstance(value, tuple | dict) else []
        if any(not (n if low is None else low) <= n <= (n if high is None else high) for n in numbers):
            raise PydanticCustomError("limits", f"expected a value{limits}")
        if options and (unknown := [text for text in texts if text not in options]):
            near = [f" (did you mean {text}?)" for text in difflib.get_close_matches(unknown[0], options, 1)]
            raise PydanticCustomError("choice", f"expected one of {', '.join(options)}{''.join(near)}")
        return value

    start: Any = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    field: Any = pydantic.Field(**start, description=help, json_schema_extra=extra)
    field.metadata.append(pydantic.AfterValidator(check))
    return field


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that validates strictly; a ValueError names the class, the field and the value."""
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=strict)(cls)
    validate = made.__init__

    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ValueError(" ".join(_explain(cls.__name__, detail) for detail in error.errors())) from None

    made.__init__ = init
    return made


def describe(cls: Any) -> tuple[Setting, ...]:
    """List the settings of a class in order of declaration; nested settings classes are skipped."""
    return tuple(
        Setting(name, *_kind(info.annotation), info.get_default(call_default_factory=True), info.description, **extra)
        for name, info in cls.__pydantic_fields__.items()
        if (extra := info.json_schema_extra)
    )


def _kind(annotation: Any) -> tuple[type, bool]:
    optional = type(None) in (parts := typing.get_args(annotation))
    return (parts[0] if optional else typing.get_origin(annotation) or annotation), optional


def _explain(owner: str, detail: Any) -> str:
    if not detail["loc"]:  # raised by __post_init__, with a message of its own
        return str(detail["ctx"]["error"])
    expected = detail["msg"].replace("Input should be", "expected").rstrip(".")
    return f"{owner}.{'.'.join(map(str, detail['loc']))} is {detail['input']!r}, {expected}."
