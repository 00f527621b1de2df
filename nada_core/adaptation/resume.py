"""The autosave of a run: its whole state as tensors and JSON, written atomically and read back bit for bit.

Nothing is pickled. Optimizer moments are stored as `optimizer.<moment>.<parameter>`, other tensors as
`<role>.<parameter>`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import read_checkpoint
from ..io.errors import CheckpointError
from ..io.metadata import check_writable, parse_json, read_metadata, read_object, write_safetensors
from ..runtime.distributed import rank

_log = logging.getLogger(__name__)


def check_autosave(autosave: str | Path | None, resume: bool) -> None:
    """Refuse an autosave file that could not be written, and `resume` without one."""
    if autosave is None:
        if resume:
            raise ValueError("Got resume without an autosave file; name the file to resume from.")
        return
    path = Path(autosave)
    if path.exists() and not resume:
        raise FileExistsError(f"{path} is already there; resume from it, remove it, or name another autosave file.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it as the autosave.")
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is a file; name another place for the autosave.")
    check_writable(path)


@dataclass(frozen=True)
class SavedRun:
    """Everything the next step depends on.

    Attributes:
        index: steps done.
        weights, average, best: values of the trained parameters by name: the latest ones, their average, and those of
            the best validated step.
        moments: parameter -> moment -> tensor.
        rng: state of the random generator.
        layers: names of the selected layers.
        scaler: state of the gradient scaler, empty without fp16.
        threads: CPU threads the steps ran with, 0 where it is not known.
    """

    index: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    rng: Tensor
    layers: tuple[str, ...]
    history: list[dict[str, Any]]
    best: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    threads: int = 0


def save_run(path: str | Path, state: SavedRun, fingerprint: str) -> None:
    """Write the state atomically. fingerprint: `RunInputs.fingerprint` of the run."""
    tensors = {"rng": state.rng}
    tensors |= {f"weights.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for name, moments in state.moments.items():
        tensors |= {f"optimizer.{moment}.{name}": tensor for moment, tensor in moments.items()}
    # A header is limited to 4 MiB, which the history of a long run would exceed.
    tensors["history"] = torch.frombuffer(bytearray(json.dumps(state.history).encode()), dtype=torch.uint8)
    progress = {"index": state.index, "chosen": state.layers, "scaler": state.scaler, "threads": state.threads}
    write_safetensors(path, tensors, {"kind": "nada_run", "identity": fingerprint, "run": progress})


def load_run(path: str | Path, fingerprint: str) -> SavedRun:
    """Read the state of the run with this fingerprint.

    Raises:
        CheckpointError: for a file that is no autosave, belongs to another run, or is damaged.
    """
    raw = read_checkpoint(path)
    if raw.kind != "nada_run":
        raise CheckpointError(f"{path} is no autosave of a run; name another file, or start without resume.")
    if raw.hints.get("identity") != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another run: its generator, guides, texts, networks or settings differ. Resume with "
            "the inputs it was started with, or choose another autosave file."
        )
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "best": {}}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in raw.tensors.items():
        role, _, name = key.partition(".")
        if role == "optimizer":
            moment, _, parameter = name.partition(".")
            moments.setdefault(parameter, {})[moment] = tensor
        elif role in groups:
            groups[role][name] = tensor
    index, history, progress = read_progress(path, raw.hints, raw.tensors)
    try:
        rng, layers, scaler = raw.tensors["rng"], tuple(progress["chosen"]), dict(progress.get("scaler", {}))
        torch.Generator().set_state(rng)
        threads = int(progress.get("threads", 0))
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    weights, average, best = groups["weights"], groups["average"], groups["best"]
    return SavedRun(index, weights, average, moments, rng, layers, history, best, scaler, threads)


def read_progress(
    path: str | Path, hints: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Return the steps done, the history and everything else that the metadata of an autosave says of the run.

    Raises:
        CheckpointError: for damaged metadata or a damaged history.
    """
    try:
        progress = read_object(path, hints, "run")
        # Version 0.1 stored the history in the metadata.
        history = tensors["history"].numpy().tobytes().decode() if "history" in tensors else None
        records = progress["history"] if history is None else parse_json(history)
        return int(progress["index"]), [dict(step) for step in records], progress
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is a damaged autosave ({type(error).__name__}: {error}). Remove it and start again."
    )


def saved_progress(path: str | Path, fingerprint: str) -> dict[str, Any]:
    """Read how far an autosave is without its tensors: `index` (steps done) and `threads`.

    Empty unless the file exists, is readable and belongs to the run with this fingerprint.
    """
    try:
        hints = read_metadata(path)
        progress = read_object(path, hints, "run")
    except CheckpointError:
        return {}
    return progress if hints.get("kind") == "nada_run" and hints.get("identity") == fingerprint else {}


class Autosave:
    """The file of one run, rewritten by rank 0 of the processes."""

    def __init__(self, path: str | Path, fingerprint: str, every: int) -> None:
        self.path, self.fingerprint, self.every = Path(path), fingerprint, every
        self.index = 0  # steps in the file; a file without steps would be of no use

    def load(self) -> SavedRun | None:
        """The state to continue from; None without a file. Raises CheckpointError as `load_run` does."""
        if not self.path.exists():
            return None
        saved = load_run(self.path, self.fingerprint)
        self.index = saved.index
        return saved

    def save(self, state: SavedRun | None) -> None:
        """Write the state unless the file holds it already.

        Args:
            state: None when the weights were just being updated; the file then keeps its earlier state.
        """
        if state is None or state.index == self.index or rank() != 0:
            return
        save_run(self.path, state, self.fingerprint)
        self.index = state.index

    def save_interrupted(self, state: SavedRun | None) -> None:
        """Write the state after the last finished step of a run that ends with an exception, which must not be lost."""
        try:
            self.save(state)
        except OSError as error:
            _log.warning("The last steps of the interrupted run were not saved to %s: %s", self.path, error)
