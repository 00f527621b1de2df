"""What all commands share: words on the terminal, the device, places for results, a progress bar."""

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
    """Find out before the work, not after it, that the result has no place to go."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} is already there; name another file, or overwrite it with --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written to; name another folder.")


def device_of(name: str) -> torch.device:
    """What --device means on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr: tick(done, words). It appears with the first tick, so that a refusal stays one line and
    a resumed run is timed from where it went on."""
    from tqdm import tqdm

    patience = 0.2 if sys.stderr.isatty() else 10.0  # a log file wants a line now and then, not a film
    bar: tqdm[Any] | None = None

    def tick(done: int, words: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, initial=done - 1, unit="step", dynamic_ncols=True, mininterval=patience)
        bar.set_postfix_str(words, refresh=False)
        bar.update(done - bar.n)

    try:
        yield tick
    finally:
        if bar is not None:
            bar.close()
