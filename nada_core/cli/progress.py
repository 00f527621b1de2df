"""Terminal output, the device and the output paths of all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def prepare(path: Path, force: bool) -> None:
    """Check, before the work, that a result can be written to this path."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; name another file, or overwrite it with --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is not writable; name another folder.")


def device_of(name: str) -> torch.device:
    """The device that --device names."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch finds no GPU; use --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr: tick(done, text). It starts with the first tick, so a resumed run counts from there."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0  # in a log file every update is a line
    bar: tqdm[Any] | None = None

    def tick(done: int, text: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done - 1, unit="step", dynamic_ncols=True, mininterval=interval)
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    try:
        yield tick
    finally:
        if bar is not None:
            bar.close()
