"""A run that can be killed: its whole state as tensors and JSON, written atomically, read back bit for bit.

Nothing is pickled. Optimiser moments are stored under `optimizer.<parameter>.<moment>`, everything else under its role.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import read_checkpoint
from ..io.errors import CheckpointError
from ..io.metadata import write_safetensors


def check_autosave(autosave: str | Path | None, resume: bool) -> None:
    """Find out before the work, not in it, that it cannot be kept."""
    if autosave is None:
        if resume:
            raise ValueError("resume was asked for without an autosave file to go on from; name it.")
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
    """Everything the next step depends on. weights, average and best (the candidate to be returned so far): name ->
    tensor; moments: name -> moment -> tensor."""

    index: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    rng: Tensor
    layers: tuple[str, ...]
    history: list[dict[str, Any]]
    best: dict[str, Tensor] = field(default_factory=dict)


def save_run(path: str | Path, state: SavedRun, identity: str) -> None:
    """Write the state; a reader finds either the whole new one or the whole old one."""
    tensors = {"rng": state.rng}
    tensors |= {f"weights.{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for name, moments in state.moments.items():
        tensors |= {f"optimizer.{moment}.{name}": tensor for moment, tensor in moments.items()}
    told = {"index": state.index, "chosen": state.layers, "history": state.history}
    write_safetensors(path, tensors, {"kind": "nada_run", "identity": identity, "run": json.dumps(told)})


def load_run(path: str | Path, identity: str) -> SavedRun:
    """Read a state that was written by a run with the same generator, guides, shift and settings.

    Raises:
        CheckpointError: for a file that is no autosave, is the autosave of another run, or is damaged.
    """
    raw = read_checkpoint(path)
    if raw.container != "safetensors" or raw.hints.get("kind") != "nada_run":
        raise CheckpointError(f"{path} is no autosave of a run; name another file, or start without resuming.")
    if raw.hints.get("identity") != identity:
        raise CheckpointError(
            f"{path} belongs to another run: its generator, guides, texts or settings differ from these. Start it with "
            "the ones it was made with, or choose another autosave file."
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
    try:
        told, rng = json.loads(raw.hints["run"]), raw.tensors["rng"]
        torch.Generator().set_state(rng)
        index, chosen, history = int(told["index"]), tuple(told["chosen"]), list(told["history"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is an autosave that was tampered with ({type(error).__name__}: {error}). Remove it and start anew."
        ) from error
    return SavedRun(index, groups["weights"], groups["average"], moments, rng, chosen, history, groups["best"])
