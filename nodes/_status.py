"""What a node says while it runs: step, loss, time left and results. ComfyUI draws the text on the node."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ._host import output_folder
from ._server import send_text, watch

_SECONDS = 0.5  # between two texts


def watch_steps(total: int) -> Callable[..., None]:
    """Return `tick(done, picture, *details)`: `watch` and a text such as "step 3/300 · loss 0.41 · 20 s left".

    A resumed run starts at a later step, so that the time left is measured from the first call.
    """
    tick, first, due = watch(total), None, -math.inf

    def tell(done: int, picture: Callable[[], Tensor] | None = None, *details: str) -> None:
        nonlocal first, due
        tick(done, picture)
        now = time.perf_counter()
        first = first or (now, done)
        if now >= due or done == total:
            started, before = first
            left = [time_left((now - started) / (done - before) * (total - done))] if done > before else []
            send_text(" · ".join([f"step {done}/{total}", *details, *left]))
            due = now + _SECONDS

    return tell


def time_left(seconds: float) -> str:
    """Format a duration: "35 s left", "4 min left", "2 h 5 min left"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{math.ceil(seconds)} s left"
    return f"{minutes} min left" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min left"


def few(names: Sequence[str], most: int = 6) -> str:
    """Join names, or count them where they are many."""
    return ", ".join(names) if len(names) <= most else f"{len(names)} layers"


def send_path(path: Path) -> None:
    """Show where a file was saved, from the output folder on."""
    send_text(f"Saved: {path.relative_to(output_folder().parent.parent)}")
