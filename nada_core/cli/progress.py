"""Terminal output, the device and the output paths of all commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..io.metadata import check_writable


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def printable(text: str) -> str:
    """Replace control characters: a name in a file must not control the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def output_path(text: str, suffix: str) -> Path:
    """The path of a result, whose name must end in `suffix`."""
    path = Path(text)
    if path.suffix.lower() != suffix:
        raise ValueError(f"Got {path.name!r} as output, expected a name ending in {suffix}.")
    return path


def prepare(*paths: Path, force: bool) -> None:
    """Check, before the work, that every result can be written."""
    if len(set(paths)) < len(paths):
        raise ValueError(f"Got {', '.join(map(str, paths))} as outputs, expected names that differ.")
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; name a file.")
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; name another file, or overwrite it with --force.")
        check_writable(path)


@contextmanager
def printable_output() -> Iterator[None]:
    """Escape characters the console cannot print: printing must not fail a command whose work is done."""
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def device_of(name: str) -> torch.device:
    """The device that --device names."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch finds no GPU; use --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def progress(total: int, unit: str = "step") -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr: tick(done, text). It starts with the first tick, so a resumed run counts from there."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0  # in a log file every update is a line
    bar: tqdm[Any] | None = None

    def tick(done: int, text: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done - 1, unit=unit, dynamic_ncols=True, mininterval=interval)
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    try:
        yield tick
    finally:
        if bar is not None:
            bar.close()
