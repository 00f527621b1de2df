"""Command-line arguments by tyro: the fields of a command's dataclass, and of the settings in it, are its flags."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from ..runtime.config import Setting, describe

C = TypeVar("C", bound="Command")

PROGRAM = "python -m nada_core"
MAX_SEEDS = 10_000

#: Settings classes whose flags have a prefix, because their fields share names with those of another class.
_PREFIXES = {"LayerChoice": "layers-", "TuneConfig": "tune-", "PairSettings": "pairs-"}


class UsageError(ValueError):
    """The command line has an unknown, a missing or an invalid argument."""


def flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def required(help: str) -> Any:
    return field(metadata={"help": help})


def value(metavar: str, read: Callable[[str], Any] = str, show: Callable[[Any], str] = str, **more: Any) -> Any:
    """How a word becomes a value; `read` raises ValueError for a wrong one, `show` is the reverse."""
    return PrimitiveConstructorSpec(
        1, metavar, lambda words: read(words[0]), lambda _: True, lambda v: [show(v)], **more
    )


def one_of(choices: Iterable[str]) -> Any:
    names = tuple(choices)
    return value(f"{{{','.join(names)}}}", choices=names)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"got {text!r}, expected a whole number of at least 1.")
    return int(text)


Positive = Annotated[int, value("N", _positive)]


@dataclass(frozen=True)
class Machine:
    """Where to compute."""

    device: Literal["auto", "cpu", "cuda"] = flag("auto", "auto takes a GPU if there is one")
    threads: Positive | None = flag(None, "CPU threads; None: as PyTorch")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A sub-command: its fields are the flags, `run` does the work."""

    machine: Machine = Machine()

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Any:
        """Return an instance with the defaults of this command line. They may depend on its arguments: see `draft`."""
        return tyro.MISSING_NONPROP

    def run(self) -> None:
        raise NotImplementedError


def parse(commands: Mapping[str, type[Command]], words: Sequence[str]) -> Command:
    """Read a command line.

    Raises:
        UsageError: for wrong usage.
        SystemExit: with code 0, after printing help.
    """
    if words and words[0] in commands:
        command = commands[words[0]]
        return _read(command, f"{PROGRAM} {words[0]}", words[1:], command.defaults(words[1:]))
    about = {name: (command.__doc__ or "").partition("\n")[0] for name, command in commands.items()}
    options = [Annotated[commands[name], subcommand(name, description=about[name])] for name in commands]
    return _read(Union[tuple(options)], PROGRAM, words)  # noqa: UP007


def draft(command: type[C], words: Sequence[str]) -> C | None:
    """Read a command line without checking its settings, to choose defaults by it; None where it cannot be read."""
    words = [word for word in words if word not in ("-h", "--help")]
    blank: dict[str, Any] = {name: () if name == "photos" else "" for name in _required(command)}
    with contextlib.suppress(UsageError):
        return _read(command, PROGRAM, words, command(**blank), checked=False)
    return None


def with_defaults(command: type[C], **values: Any) -> C:
    """An instance with these defaults; required arguments stay required."""
    return command(**{name: tyro.MISSING for name in _required(command)}, **values)


def _required(command: type[Command]) -> list[str]:
    return [item.name for item in dataclasses.fields(command) if item.default is dataclasses.MISSING]


def _read(
    form: Any, program: str, words: Sequence[str], default: Any = tyro.MISSING_NONPROP, checked: bool = True
) -> Any:
    if {"-h", "--help"} & set(words):  # before any positional argument is consumed, or help would not list it
        words = ["--help"]
    errors, registry = io.StringIO(), ConstructorRegistry()
    registry.struct_rule(lambda info: _settings_rule(info, checked))
    about = "Adapt a StyleGAN2 generator to a new domain by text (StyleGAN-NADA). --version prints the version."
    description = about if program == PROGRAM else None
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                form,
                prog=program,
                description=description,
                args=words,
                default=default,
                config=(OmitArgPrefixes,),
                registry=registry,
            )
    except SystemExit as leave:
        if leave.code:
            raise UsageError(f"{_one_line(errors.getvalue())} See {program} --help.") from None
        raise


def _settings_rule(info: Any, checked: bool) -> StructConstructorSpec | None:
    """Make flags from a settings class; its default instance gives their defaults."""
    cls = info.type
    if not hasattr(cls, "__pydantic_fields__"):
        return None
    defaults = info.default if isinstance(info.default, cls) else cls()
    types = dict.fromkeys(cls.__pydantic_fields__) | {item.name: _flag_type(cls, item) for item in describe(cls)}
    fields = [(name, kind, getattr(defaults, name)) for name, kind in types.items()]
    specs = (StructFieldSpec(name, kind or type(default), default) for name, kind, default in fields)
    return StructConstructorSpec(cls if checked else lambda **_: defaults, tuple(specs))


def _flag_type(cls: type, item: Setting) -> Any:
    kind: Any = Literal[item.choices] if item.kind is str and item.choices else _KINDS.get(item.kind, item.kind)
    name = _PREFIXES.get(cls.__name__, "") + item.name.replace("_", "-")
    text = f"{item.help};{item.limits}" if item.limits else item.help
    return Annotated[kind | None if item.optional else kind, arg(name=name, prefix_name=False, help=text)]


def _one_line(box: str) -> str:
    """The message in tyro's box of an error, which has a title and sections, with flags for the settings' fields."""
    sections = [" ".join(part.split()) for part in re.split(r"[─-]{8,}", re.sub("[│╭╮╰╯]", " ", box))]
    title, text, *others = [part for part in sections if part]
    close = [match[1] for part in others if (match := re.match(r"Perhaps you meant: (--[\w-]+)", part))]

    def as_flag(match: re.Match[str]) -> str:
        return f"--{_PREFIXES.get(match[1], '')}{match[2].replace('_', '-')}"

    text = re.sub(r"(?:Error parsing [a-z.-]+: )?\b([A-Z]\w+(?:Config|Choice|Settings))\.(\w+)", as_flag, text)
    return f"{text.rstrip('.')}.{''.join(f' Did you mean {flag}?' for flag in close)}"


def _pairs(text: str) -> dict[str, float]:
    pairs = [part.partition("=") for part in _names(text)]
    try:
        return {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ValueError(f"got {text!r}, expected NAME=NUMBER, with commas between several.") from None


def _names(text: str) -> tuple[str, ...]:
    return () if text.lower() == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def _show(given: Any) -> str:
    parts = [f"{name}={number:g}" for name, number in given.items()] if isinstance(given, dict) else list(given)
    return ",".join(parts) or "none"


def _span(text: str, example: str) -> range:
    """Numbers with both ends included: "4" or "0-3"."""
    match = re.fullmatch(r"\s*(\d{1,10})(?:\s*-\s*(\d{1,10}))?\s*", text)
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not 0 < len(numbers) <= MAX_SEEDS:
        raise ValueError(f"got {text!r}, expected {example}, and at most {MAX_SEEDS} numbers.")
    return numbers


def _row_range(text: str) -> tuple[int, int]:
    rows = _span(text, "a row or a range of rows, such as 4 or 0-3")
    return rows.start, rows.stop


def _seed_list(text: str) -> list[int]:
    seeds = [seed for part in text.split(",") for seed in _span(part, "seeds such as 0-15 or 1,5,9")]
    if len(seeds) > MAX_SEEDS:
        raise ValueError(f"got {len(seeds)} seeds, expected at most {MAX_SEEDS}.")
    return seeds


def _weighted(text: str) -> tuple[str, float]:
    name, mark, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if mark else (text, 1.0)
    except ValueError:  # the equals sign belongs to a path
        return text, 1.0


_KINDS: dict[type, Any] = {
    tuple: Annotated[tuple, value("A,B", _names, _show)],
    dict: Annotated[dict, value("NAME=X,...", _pairs, _show)],
}

# The types of the commands' fields.
GeneratorName = Positional[Annotated[str, arg(metavar="GENERATOR", help="a generator file, or a built-in name")]]
Rows = Annotated[tuple[int, int] | None, value("A-B", _row_range)]
Seeds = Annotated[list[int], value("LIST", _seed_list, lambda seeds: f"{seeds[0]}-{seeds[-1]}")]
Guides = UseAppendAction[
    tuple[Annotated[tuple[str, float], value("NAME[=WEIGHT]", _weighted, lambda pair: f"{pair[0]}={pair[1]:g}")], ...]
]
Perceptual = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help_behavior_hint="(optional)",
        help="network of the lpips term: vgg, alex or squeeze, or one with :imagenet or :FILE",
    ),
]
Identity = Annotated[
    str | None,
    arg(metavar="NAME", help="face recognizer of the id term: a file such as model_ir_se50.pth, or portraits"),
]
File = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(optional)")]
Files = UseAppendAction[tuple[Annotated[str, arg(metavar="FILE")], ...]]
Folder = Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(optional)")]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(optional)")]
Whole = Annotated[int | None, arg(metavar="N", help_behavior_hint="(optional)")]
