"""Trainings are not lost: unfinished ones have an autosave, the latest results stay in memory, and one can be stopped.

An autosave is called `<fingerprint>.safetensors`. The fingerprint changes with every input that can change the result,
so that the same inputs find the autosave again after Cancel, a crash or a restart. The snapshots of a training lie in
the folder `<fingerprint>`, also after it has finished.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..nada_core import Snapshot, find_snapshots
from ..nada_core.adaptation.snapshots import snapshot_steps
from ._host import output_folder
from ._server import post_route, running_node

RUNS, RUN_BYTES = 5, 4 << 30  # autosaves kept besides that of the running training, and their bytes; so for snapshots
RESULTS = 3  # finished trainings remembered
_OLD = 3600  # seconds after which a temporary file was left by a crash
_OLD_OWN = 60  # the same for one of the training that starts, which another process may be running, too
_NAME = re.compile(r"[0-9a-f]{16}(\.safetensors)?")


def autosave_path(fingerprint: str) -> Path:
    """Return the autosave of a training. Remove autosaves and snapshots of others beyond the limits, oldest first."""
    folder = output_folder() / "runs"
    own = folder / f"{fingerprint}.safetensors"
    others = [path for path in folder.glob("*") if _NAME.fullmatch(path.name) and path.stem != fingerprint]
    _correct_times(others)
    for path in _beyond_limits([path for path in others if path.suffix]):
        path.unlink(missing_ok=True)
    for path in _beyond_limits([path for path in others if path.is_dir()]):
        remove_snapshots(path.name)
    for path in folder.rglob(".*.safetensors.*.part"):
        is_own = path.name.startswith(f".{own.name}") or path.parent.name == fingerprint
        # A file of the future is old, too: the clock was set back.
        if abs(time.time() - _changed(path)) > (_OLD_OWN if is_own else _OLD):
            path.unlink(missing_ok=True)
    return own


def _correct_times(paths: Sequence[Path]) -> None:
    """Date files of the future to the present, in their order: the clock was set back, and new files would be older."""
    now = time.time_ns()
    future = sorted((path for path in paths if _changed(path) > now / 1e9), key=_changed)
    for index, path in enumerate(future):
        stamp = now - (len(future) - index) * 1000_000
        with suppress(FileNotFoundError):
            os.utime(path, ns=(stamp, stamp))


def _beyond_limits(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the autosaves, or the folders of snapshots, that the latest ones leave no room for."""
    total = 0
    for index, path in enumerate(sorted(paths, key=_changed, reverse=True)):
        total += sum(_status(one)[1] for one in ([path] if path.is_file() else path.glob("*")))
        if index >= RUNS or total > RUN_BYTES:
            yield path


def _changed(path: Path) -> float:
    return _status(path)[0]


def _status(path: Path) -> tuple[float, int]:
    """When a file was changed, and its size; zeros where another process has removed it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return status.st_mtime, status.st_size


def snapshot_folder(fingerprint: str) -> Path:
    return output_folder() / "runs" / fingerprint


def saved_snapshots(fingerprint: str, every: int, done: int, is_over: bool) -> tuple[Snapshot, ...] | None:
    """Return the snapshots of the first `done` steps; None if one of them is missing.

    Args:
        is_over: the training has ended, so that the last step has a snapshot, too. Otherwise the last step needs
            none yet: a training that continues writes it.
    """
    if not every:
        return ()
    steps = snapshot_steps(every, done) if is_over else list(range(every, done, every))
    found = find_snapshots(snapshot_folder(fingerprint), fingerprint, steps)
    return found if len(found) == len(steps) else None


def remove_snapshots(fingerprint: str) -> None:
    """Remove the snapshots of a training, and their folder if nothing else is in it."""
    folder = snapshot_folder(fingerprint)
    for path in folder.glob("step-*.safetensors"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class RecentResults:
    """The results of the latest finished trainings of this process, by fingerprint. They are on the CPU."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, Any] = OrderedDict()

    def get(self, fingerprint: str) -> Any:
        """Return a result, or None."""
        if fingerprint in self._results:
            self._results.move_to_end(fingerprint)
        return self._results.get(fingerprint)

    def add(self, fingerprint: str, result: Any) -> None:
        self._results[fingerprint] = result
        while len(self._results) > RESULTS:
            self._results.popitem(last=False)

    def clear(self) -> None:
        self._results.clear()


recent = RecentResults()

# ---- stop and keep ------------------------------------------------------------------------------------------------

_running: dict[str, threading.Event] = {}  # node id -> whether its training should stop


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the user has asked to stop the training of the running node."""
    node, event = running_node() or "", threading.Event()
    _running[node] = event
    try:
        yield event.is_set
    finally:
        del _running[node]


def request_stop(data: dict[str, Any]) -> dict[str, Any]:
    """Ask the training of a node to stop after its current step.

    Args:
        data: `node_id`, as in its own graph: the page does not know in which subgraph a node runs.

    Returns:
        `stopping`: whether that node trains at the moment.
    """
    asked = str(data.get("node_id", "")).rpartition(":")[2]
    events = [event for node, event in list(_running.items()) if node.rpartition(":")[2] == asked]
    for event in events:
        event.set()
    return {"stopping": bool(events)}


post_route("/stylegan_nada/stop", request_stop)
