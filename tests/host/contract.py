"""contract.json as Python: signatures that refuse what the chosen version would refuse."""

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
        raise ValueError(f"no facts of ComfyUI {version}, only of {', '.join(VERSIONS)}; see make_contract.py")
    return VERSIONS[version]


def signature(text: str) -> inspect.Signature:
    """`a, *b, c=1, **d` as a signature."""
    args = ast.parse(f"def told({text}): ...").body[0].args
    kinds = inspect.Parameter
    made = []
    positional = [*args.posonlyargs, *args.args]
    missing = [None] * (len(positional) - len(args.defaults))
    for arg, default in zip(positional, [*missing, *args.defaults], strict=True):
        made.append(_parameter(arg, kinds.POSITIONAL_OR_KEYWORD, default))
    if args.vararg:
        made.append(_parameter(args.vararg, kinds.VAR_POSITIONAL, None))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        made.append(_parameter(arg, kinds.KEYWORD_ONLY, default))
    if args.kwarg:
        made.append(_parameter(args.kwarg, kinds.VAR_KEYWORD, None))
    return inspect.Signature(made)


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
    return inspect.Parameter(arg.arg, kind, default=value)


def bind(told: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name with defaults; TypeError, as Python words it, for what the signature does not have."""
    try:
        bound = told.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}{told}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)


def speaking(name: str, text: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is called like the host's and does what `behaviour` does with the same names."""
    told = signature(text)

    def spoken(*args: Any, **kwargs: Any) -> Any:
        return behaviour(**bind(told, name, args, kwargs))

    spoken.__name__, spoken.__signature__ = name, told
    return spoken
