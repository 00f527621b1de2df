"""The autosave of a run: its whole state as tensors and JSON, written atomically and read back bit for bit.

Nothing is pickled. Optimizer moments are stored as `optimizer.<moment>.<parameter>`, other tensors as
`<role>.<parameter>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import read_checkpoint
from ..io.errors import CheckpointError
from ..io.metadata import read_object, write_safetensors


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
    path.parent.mkdir(parents=True, exist_ok=True)


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


def save_run(path: str | Path, state: SavedRun, fingerprint: str) -> None:
    """Write the state atomically. fingerprint: `RunInputs.fingerprint` of the run."""
    tensors = {"rng": state.rng}
    tensors |= {f"weights.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for name, moments in state.moments.items():
        tensors |= {f"optimizer.{moment}.{name}": tensor for moment, tensor in moments.items()}
    progress = {"index": state.index, "chosen": state.layers, "history": state.history, "scaler": state.scaler}
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
    index, history, progress = read_progress(path, raw.hints)
    try:
        rng, layers, scaler = raw.tensors["rng"], tuple(progress["chosen"]), dict(progress.get("scaler", {}))
        torch.Generator().set_state(rng)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return SavedRun(index, groups["weights"], groups["average"], moments, rng, layers, history, groups["best"], scaler)


def read_progress(path: str | Path, hints: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Return the steps done, the history and everything else that the metadata of an autosave says of the run.

    Raises:
        CheckpointError: for damaged metadata.
    """
    try:
        progress = read_object(path, hints, "run")
        history = [dict(step) for step in progress["history"]]
        return int(progress["index"]), history, progress
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is a damaged autosave ({type(error).__name__}: {error}). Remove it and start again."
    )
