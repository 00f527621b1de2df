"""Snapshots of a run every N steps, to compare them and to pick one as the result.

The authors of StyleGAN-NADA (arXiv:2108.00946) advise to train past the desired point and to take an earlier
checkpoint. A snapshot is a float16 domain file named after its step. It holds what the run would return if it ended
at that step: the average of the weights with `AdaptConfig.ema`, else the latest weights; a judge has no influence.
A run of that many steps returns the same domain bit for bit, except with the cosine schedule, whose learning rates
depend on the number of steps; a run stopped at that step returns it with every schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import check_devices, clip_targets, source_images
from ..io.errors import CheckpointError
from ..io.grid import compare_grid
from ..io.images import resize
from ..io.metadata import check_writable, read_metadata, read_object
from ..models.clip import ClipGuide
from ..models.domain import Domain, read_domain, save_domain
from ..models.generator import Generator
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import rank
from .config import AdaptConfig
from .validation import CHUNK, Candidate, ValidationHistory, Validator

_log = logging.getLogger(__name__)

MAX_SNAPSHOTS = 50  # of a run; the weights of 1024 pixels take about 50 MB each

_WIDTH = 4096  # pixels of a filmstrip, unless its images would be smaller than 192 pixels
_PATTERN = "step-*.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `step` steps, in a file; `loss` is that of its last step."""

    step: int
    loss: float
    path: Path

    def read(self) -> Domain:
        """Read the domain. Raises CheckpointError as `read_domain` does."""
        if not self.path.exists():
            raise CheckpointError(
                f"{self.path}: the snapshot of step {self.step} was removed. Train again to write it; a cached run "
                "starts again when snapshot_every changes."
            )
        return read_domain(self.path)


def snapshot_steps(every: int, steps: int) -> list[int]:
    """The steps at which a run of `steps` steps takes snapshots: every N steps, and the last."""
    return [*range(every, steps, every), steps]


def check_snapshots(folder: str | Path | None, every: int, steps: int) -> None:
    """Refuse a folder without an interval, an interval without a folder, and more than 50 snapshots."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 0 or (folder is None) != (every == 0):
        raise ValueError(
            f"Got snapshot_every {every!r} and the snapshots folder {folder}; expected a number of steps with a "
            "folder, or 0 without one."
        )
    if every and (count := len(snapshot_steps(every, steps))) > MAX_SNAPSHOTS:
        least = -(-steps // MAX_SNAPSHOTS)
        raise ValueError(
            f"Got snapshot_every {every}, which gives {count} snapshots in {steps} steps; expected at most "
            f"{MAX_SNAPSHOTS}: use {least} or more."
        )
    if folder is not None and Path(folder).is_file():
        raise NotADirectoryError(f"{folder} is a file; name a folder for the snapshots.")
    if folder is not None:
        check_writable(_snapshot_path(folder, steps))


def _snapshot_path(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step-{step:06}.safetensors"


class SnapshotWriter:
    """The snapshots of one run, written by rank 0 of the processes."""

    def __init__(
        self, folder: str | Path, every: int, fingerprint: str, source: Generator, provenance: Mapping[str, Any]
    ) -> None:
        self.folder, self.every, self.fingerprint = Path(folder), every, fingerprint
        self.source = source.weights_fingerprint() if rank() == 0 else ""
        self.provenance = provenance

    def warn_of_missing(self, done: int) -> None:
        """Log which snapshots a run lacks that continues after `done` steps, the last of which can still be written."""
        steps = range(self.every, done, self.every)
        found = {snapshot.step for snapshot in find_snapshots(self.folder, self.fingerprint, steps)}
        if rank() == 0 and (missing := [str(step) for step in steps if step not in found]):
            _log.warning(
                "The run continues after %d steps and lacks the snapshots of the steps %s. To have them, train again "
                "without the autosave.",
                done,
                ", ".join(missing),
            )

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether this process writes a snapshot after `step` steps."""
        return rank() == 0 and step > 0 and (step % self.every == 0 or is_last)

    def write(self, domain: Domain, step: int, loss: float) -> None:
        """Write a snapshot atomically; one of an earlier attempt is replaced."""
        entry = {"step": step, "loss": loss, "run": self.fingerprint, "source": self.source}
        path = _snapshot_path(self.folder, step)
        save_domain(domain, path, half=True, provenance={**self.provenance, "snapshot": entry})

    def written(self, steps: int) -> tuple[Snapshot, ...]:
        """The snapshots of a run that has ended after `steps` steps, those before an interruption included."""
        return find_snapshots(self.folder, self.fingerprint, snapshot_steps(self.every, steps)) if rank() == 0 else ()


def find_snapshots(
    folder: str | Path, fingerprint: str | None = None, steps: Sequence[int] | None = None
) -> tuple[Snapshot, ...]:
    """List the snapshots in a folder in the order of their steps, without reading their weights.

    Files that cannot be read and other files are left out.

    Args:
        fingerprint: of the run, see `run_fingerprint`; snapshots of other runs are left out. None: of any run.
        steps: only these. None: all.
    """
    found = []
    for path in Path(folder).glob(_PATTERN):
        entry = _read_entry(path)
        if entry and fingerprint in (None, entry["run"]) and (steps is None or entry["step"] in steps):
            found.append(Snapshot(entry["step"], entry["loss"], path))
    return tuple(sorted(found, key=lambda snapshot: snapshot.step))


def _read_entry(path: Path) -> dict[str, Any]:
    try:
        return dict(read_object(path, read_metadata(path), "provenance").get("snapshot", {}))
    except CheckpointError:
        return {}


def check_source(generator: Generator, snapshots: Sequence[Snapshot]) -> None:
    """Refuse a generator that is not the source of the run, such as one that is adapted already.

    A snapshot is a change relative to the weights of the source.

    Raises:
        ValueError: for other weights, and for no snapshots.
    """
    _check_any(snapshots)
    got = generator.weights_fingerprint()
    for snapshot in snapshots:
        expected = _read_entry(snapshot.path).get("source", got)
        if expected != got:
            raise ValueError(
                f"Got a generator with the weights {got[:12]}, but the training of these snapshots started from "
                f"{expected[:12]}. Use the source generator of the training, not an adapted one: a snapshot is a "
                "change relative to its weights."
            )


def filmstrip(
    generator: Generator,
    snapshots: Sequence[Snapshot],
    draw: Callable[[Generator], Tensor],
    on_snapshot: Callable[[Snapshot, Generator], None] | None = None,
) -> Tensor:
    """Draw the same latents with the source and with every snapshot, one column each.

    Args:
        generator: the source of the run.
        draw: returns the images [N, 3, H, W] of a generator; one row each.
        on_snapshot: called with every snapshot and its generator, such as to measure it with `snapshot_judge`.

    Returns:
        [1, 3, H, W], at most about 4096 pixels wide, or as wide as images of 192 pixels need.

    Raises:
        ValueError: as `check_source` does.
    """
    check_source(generator, snapshots)
    side = max(192, min(512, _WIDTH // (len(snapshots) + 1)))
    columns = {"source": _shrink(draw(generator), side)}
    for snapshot in snapshots:
        adapted = snapshot.read().apply(generator)
        columns[f"step {snapshot.step}"] = _shrink(draw(adapted), side)
        if on_snapshot is not None:
            on_snapshot(snapshot, adapted)
    return compare_grid(columns)


def snapshot_judge(
    generator: Generator, snapshots: Sequence[Snapshot], judge: ClipGuide, shift: Shift
) -> Callable[[Snapshot, Generator], Candidate]:
    """Return a function that measures a snapshot and its generator with a held-out CLIP model, as a run does.

    Args:
        generator: the source of the run, on the judge's device.
        judge: must not be one of the models the run was trained with.
        shift: from the source to the target domain, as in the training.

    Raises:
        ValueError: for a judge the run was trained with, and for inputs that do not fit each other.
    """
    check_source(generator, snapshots)
    provenance = snapshots[0].read().provenance
    if judge.fingerprint in {guide["fingerprint"] for guide in provenance["guides"]}:
        raise ValueError(
            f"Got {judge.name} as judge, but the run was trained with it; a judge must be a CLIP model the run does "
            "not use."
        )
    config = AdaptConfig(**{name: provenance["config"][name] for name in ("seed", "psi", "label")})
    check_devices(generator, judge, config.label)
    images = source_images(generator, config.seed, config.label) if needs_source_images(shift) else None
    validator = Validator(clip_targets(judge, shift, images)[0], generator, config)
    batcher = MicroBatcher(CHUNK)
    return lambda snapshot, adapted: batcher.run(validator.measure, adapted, snapshot.step)


def judge_snapshots(
    generator: Generator, snapshots: Sequence[Snapshot], judge: ClipGuide, shift: Shift
) -> tuple[Candidate, ...]:
    """Measure every snapshot; see `snapshot_judge`."""
    measure = snapshot_judge(generator, snapshots, judge, shift)
    return tuple(measure(snapshot, snapshot.read().apply(generator)) for snapshot in snapshots)


def pick_snapshot(snapshots: Sequence[Snapshot], step: int) -> Snapshot:
    """Return the snapshot of a step; -1 is the last.

    Raises:
        ValueError: when there is none of that step.
    """
    _check_any(snapshots)
    by_step = {snapshot.step: snapshot for snapshot in snapshots}
    if step == -1:
        return by_step[max(by_step)]
    if step not in by_step:
        raise ValueError(f"Got step {step}, expected one of {', '.join(map(str, by_step))}, or -1 for the last.")
    return by_step[step]


def best_step(candidates: Sequence[Candidate]) -> int:
    """The step with the highest score; of equal ones the first, which is nearest the source."""
    return candidates[ValidationHistory(list(candidates)).best_index].steps


def describe_snapshots(snapshots: Sequence[Snapshot], candidates: Sequence[Candidate] = ()) -> str:
    """One line for each snapshot: step, loss and, where it was judged, its score and what that is made of."""
    measured = {candidate.steps: f", score {candidate.score:+.4f}: {candidate}" for candidate in candidates}
    return "\n".join(f"step {one.step}: loss {one.loss:.3f}{measured.get(one.step, '')}" for one in snapshots)


def _check_any(snapshots: Sequence[Snapshot]) -> None:
    if not snapshots:
        raise ValueError("Got no snapshots, expected at least one; set snapshot_every of the training, such as to 25.")


def _shrink(images: Tensor, side: int) -> Tensor:
    return resize(images, side) if images.shape[-1] > side else images
