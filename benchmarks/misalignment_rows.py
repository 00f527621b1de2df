"""The rows of `benchmarks.misalignment`: methods, one run, and the journal that several processes share."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.quality import METHODS as QUALITY
from nada_core import (
    AdaptConfig,
    Generator,
    LayerChoice,
    PairsConfig,
    TextShift,
    adapt,
    adapt_to_pairs,
    load_generator,
    load_guide,
)
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.models.clip import ClipGuide
from nada_core.models.clip_loading import built_in_guides
from nada_core.portraits import GUIDES, SOURCE, Judge, examine, render
from nada_core.portraits.content import Content
from nada_core.portraits.misalignment import PictureSpan, Tilt, misalign


class Job(NamedTuple):
    """One row of the benchmark."""

    target: str
    seed: int
    leak: float
    noise: float
    method: str


_GAP = 0.8  # added where there is noise
SHOWN = 5
_SHORT = 100
_ORACLE_STEPS, _ORACLE_LATENTS = 300, 512
#: Plain L1 at several scales, as `Verdict.distance` measures; no pair is wrong and none is held out.
_ORACLE_PAIRS = PairsConfig(l1=4.0, edges=0.0, focus=0.0, hold_out=0.0, min_direction=0.0, max_rank=1.0)


def _layers(name: str, **changes: Any) -> AdaptConfig:
    config = QUALITY[name].config
    return replace(config, layers=replace(config.layers, **changes))


def _oracle(train: str, pace: float) -> AdaptConfig:
    changes = {"steps": _ORACLE_STEPS, "batch": 8, "pool": 0}
    return replace(_layers("recipe", mode="all", train=train), lr=QUALITY["recipe"].config.lr * pace, **changes)


_FULL: dict[str, AdaptConfig] = {
    "recipe": _layers("recipe", mode="all"),
    "recipe k=4": _layers("recipe", mode="adaptive", count=4),
    "paper": _layers("paper", mode="all"),
    "paper k=4": _layers("paper", mode="adaptive", count=4),
}
#: The learning rate of other parametrizations, as a multiple of that for all weights.
_PACE = {"convolutions": 1.0, "affines": 2.0, "offsets": 20.0, "low-rank": 2.0}
ORACLES = {
    "oracle": _oracle("weights", 1.0),
    **{f"oracle {train}": _oracle(train, pace) for train, pace in _PACE.items()},
}
METHODS = {**_FULL, **{f"short {name}": replace(config, steps=_SHORT) for name, config in _FULL.items()}, **ORACLES}

# ---- one row ------------------------------------------------------------------------------------------------------


class World:
    """The networks of the benchmark, loaded and measured once a process."""

    def __init__(self) -> None:
        self.source, self.content, self.judge = load_generator("portraits"), Content.load(), Judge.load()
        self.guides: tuple[tuple[ClipGuide, float], ...] = tuple((load_guide(name), w) for name, w in GUIDES)
        self.spans = {guide.fingerprint: PictureSpan.measure(guide) for guide, _ in self.guides}

    def run(self, job: Job) -> tuple[dict[str, Any], torch.Tensor]:
        """Run one adaptation; return its figures and the images of fixed latents."""
        row, adapted = self._oracle(job) if job.method in ORACLES else self._adapt(job)
        figures = examine(self.judge, self.content, self.source, adapted, job.target).as_row()
        images = render_latents(adapted, sample(self.source, range(SHOWN), psi=1.0), batch=8)
        return {"job": list(job), **row, **figures}, images

    def _adapt(self, job: Job) -> tuple[dict[str, Any], Generator]:
        tilt = Tilt(job.leak, job.noise, _GAP if job.noise else 0.0, job.seed)
        shift = misalign(TextShift(SOURCE, job.target), [guide for guide, _ in self.guides], tilt, self.spans)
        measured = {}
        for guide, _ in self.guides:
            m = self.spans[guide.fingerprint].misalignment(shift.direction(guide), SOURCE, job.target)
            measured[guide.name] = asdict(m)
        result = adapt(self.source, list(self.guides), shift, replace(METHODS[job.method], seed=job.seed))
        return {"measured": measured}, result.generator

    def _oracle(self, job: Job) -> tuple[dict[str, Any], Generator]:
        latents = sample(self.source, range(20_000, 20_000 + _ORACLE_LATENTS), psi=1.0)
        training = replace(METHODS[job.method], seed=job.seed)
        config = replace(_ORACLE_PAIRS, training=training)
        images = render(self.content(latents.ws), job.target)
        return {}, adapt_to_pairs(self.source, latents, images, config).generator


def weights_digest() -> str:
    """Identify the weights of all networks a row uses."""
    names = {name for name, _ in GUIDES}
    files = [path.with_suffix(".safetensors") for guide, path in built_in_guides().items() if guide in names]
    files += [BUILTIN / f"{part}.safetensors" for part in ("generator", "content", "judge")]
    return ",".join(sha256(path)[:8] for path in files)


def key(job: Job, weights: str) -> str:
    """Identify a row by its settings and by the weights of the networks."""
    config = METHODS[job.method]
    data = f"oracle {_ORACLE_LATENTS}|" if job.method in ORACLES else ""
    settings = {**_changed(config, AdaptConfig()), "layers": _changed(config.layers, LayerChoice())}
    return f"{job.target}|{job.seed}|{job.leak:g}|{job.noise:g}|{data}{settings}|{weights}"


def _changed(settings: AdaptConfig | LayerChoice, defaults: AdaptConfig | LayerChoice) -> dict[str, Any]:
    """The settings that differ from their defaults, so that a new setting does not invalidate stored rows."""
    return {name: value for name, value in sorted(vars(settings).items()) if value != getattr(defaults, name)}


# ---- the journal --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """Rows and claims as JSON lines in a file that several processes append to."""

    path: Path
    stale: float  # seconds after which a claim without a row is void

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the finished rows by key."""
        return {line["key"]: line["row"] for line in self._lines() if "row" in line}

    def claim(self, keys: Sequence[str]) -> str | None:
        """Take the first key that is neither finished nor claimed; None where there is none."""
        with self._locked():
            taken = {line["key"] for line in self._lines() if "row" in line or time.time() - line["time"] < self.stale}
            free = next((key for key in keys if key not in taken), None)
            if free is not None:
                self._append({"key": free, "time": time.time(), "worker": f"{socket.gethostname()} {os.getpid()}"})
        return free

    def finish(self, key: str, row: dict[str, Any]) -> None:
        with self._locked():
            self._append({"key": key, "time": time.time(), "row": row})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released on close, also when the process is killed
            yield

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]  # others were cut off by a kill

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a+b") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")


def work(jobs: Sequence[Job], runs: Path, journal: Journal, weights: str) -> None:
    """Run the rows that no other process has taken, one after the other."""
    torch.set_num_threads(1)
    by_key = {key(job, weights): job for job in jobs}
    world: World | None = None
    while (free := journal.claim(list(by_key))) is not None:
        job, world = by_key[free], world or World()
        started = time.perf_counter()
        row, images = world.run(job)
        torch.save(images, shown(runs, job))
        journal.finish(free, row)
        figures = ", ".join(f"{name} {row[name]:.3f}" for name in ("judge", "kept", "distance", "diversity"))
        sys.stderr.write(f"{job}: {figures} ({time.perf_counter() - started:.0f} s)\n")


def shown(runs: Path, job: Job) -> Path:
    """The file with the images of a row."""
    return runs / f"{job.target}-{job.method}-{job.leak:g}-{job.noise:g}-{job.seed}.pt".replace(" ", "_")
