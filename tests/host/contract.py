"""contract.json in Python: signatures that reject what the chosen version of ComfyUI would reject."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSIONS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("contract.json").read_text(encoding="utf-8"))


def facts(version: str) -> dict[str, Any]:
    if version not in VERSIONS:
        raise ValueError(
            f"Got ComfyUI {version}, expected one of {', '.join(VERSIONS)}; make_contract.py adds a version."
        )
    return VERSIONS[version]


def signature(parameters: str) -> inspect.Signature:
    """Parse `a, *b, c=1, **d` into a signature."""
    args = ast.parse(f"def function({parameters}): ...").body[0].args
    kinds = inspect.Parameter
    result = []
    positional = [*args.posonlyargs, *args.args]
    missing = [None] * (len(positional) - len(args.defaults))
    for arg, default in zip(positional, [*missing, *args.defaults], strict=True):
        result.append(_parameter(arg, kinds.POSITIONAL_OR_KEYWORD, default))
    if args.vararg:
        result.append(_parameter(args.vararg, kinds.VAR_POSITIONAL, None))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        result.append(_parameter(arg, kinds.KEYWORD_ONLY, default))
    if args.kwarg:
        result.append(_parameter(args.kwarg, kinds.VAR_KEYWORD, None))
    return inspect.Signature(result)


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
    return inspect.Parameter(arg.arg, kind, default=value)


def bind(expected: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, with defaults; TypeError, worded as by Python, if the signature does not fit."""
    try:
        bound = expected.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}{expected}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def with_signature(name: str, parameters: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it takes exactly these parameters and passes them on by name."""
    expected = signature(parameters)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(**bind(expected, name, args, kwargs))

    wrapped.__name__, wrapped.__signature__ = name, expected
    return wrapped
