"""The rows of `benchmarks.misalignment`: methods, one run, and the journal that several processes share."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from benchmarks.misalignment_anchors import adapt_with_anchors
from benchmarks.quality import METHODS as QUALITY
from nada_core import (
    AdaptConfig,
    Generator,
    LayerChoice,
    PairsConfig,
    PairShift,
    TextShift,
    adapt,
    adapt_to_pairs,
    load_generator,
    load_guide,
    load_identity,
)
from nada_core.adaptation.adapt import Step
from nada_core.guidance.shifts import Shift
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.models.clip import ClipGuide
from nada_core.models.clip_loading import built_in_guides
from nada_core.portraits import GUIDES, HELD_OUT, SOURCE, Judge, contents, examine, render
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
#: Finished steps after which runs of full length are measured, so that methods can be compared at equal quality.
_CHECKS = (10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400)
_SHORT = 100
_ORACLE_STEPS, _ORACLE_LATENTS = 300, 512
_PAIRS = 64  # of the methods whose direction is that of true pairs
#: Plain L1 at several scales, as `Verdict.distance` measures; no pair is wrong and none is held out.
_ORACLE_PAIRS = PairsConfig(l1=4.0, edges=0.0, focus=0.0, align=0.0, hold_out=0.0, min_direction=0.0, max_rank=1.0)


def _layers(name: str, **changes: Any) -> AdaptConfig:
    config = QUALITY[name].config
    return replace(config, layers=replace(config.layers, **changes))


def _oracle(train: str, pace: float) -> AdaptConfig:
    changes = {"steps": _ORACLE_STEPS, "batch": 8, "pool": 0}
    return replace(_layers("recipe", mode="all", train=train), lr=QUALITY["recipe"].config.lr * pace, **changes)


_TERMS = ("relation", "covariance", "global")
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
MAIN = {**_FULL, **{f"short {name}": replace(config, steps=_SHORT) for name, config in _FULL.items()}, **ORACLES}
#: What the search of settings found for most targets where the directions are wrong (docs/results.md).
FOUND = {
    f"recipe + covariance{name}": replace(_FULL["recipe"], terms={**_FULL["recipe"].terms, "covariance": weight})
    for name, weight in (("", 1.0), (" 3", 3.0))
}
#: Other numbers of layers.
COUNTED = {
    f"short recipe k={count}": replace(_layers("recipe", mode="adaptive", count=count), steps=_SHORT)
    for count in (2, 6)
}

CAPTIONS = "guide-captions"  # the CLIP model of `nada_core.portraits.fitting.caption_guide`, in the folder of the rows
#: One change of the short recipe each; the weights of the terms are those of `benchmarks.quality`.
CHANGED = {
    f"short recipe {name}": replace(MAIN["short recipe"], **change)
    for name, change in {
        "- angle": {"terms": {"direction": 1.0}},
        **{f"+ {term}": {"terms": QUALITY[f"+ {term}"].config.terms} for term in _TERMS},
        "+ weight_reg": {"weight_reg": QUALITY["+ weight_reg"].config.weight_reg},
        "+ weight_reg, Fisher": {"weight_reg": 10.0, "fisher_samples": 64},
        "+ id": {"id": QUALITY["+ id"].config.id},
        "only global": {"terms": {"global": 1.0}},
        "all guides": {},
        **{
            train: {"layers": replace(MAIN["short recipe"].layers, train=train), "lr": MAIN["short recipe"].lr * pace}
            for train, pace in _PACE.items()
        },
    }.items()
}
FIRST = GUIDES[0][0]  # of the architecture of the caption guide, but fitted with all losses
ALONE = {f"{name} {FIRST}": MAIN[name] for name in ("short recipe", "short paper")}
BY_CAPTIONS = {f"{name} captions": MAIN[name] for name in ("recipe", "paper", "short recipe", "short paper")}
#: The same with the direction of true pairs instead of the text's: the effect of the image tower alone.
BY_PAIRS = {f"{name} pairs": config for name, config in BY_CAPTIONS.items() if name.startswith("short")}
#: With refined directions; see `benchmarks.misalignment_anchors`.
ANCHORED = {"short paper anchors": MAIN["short paper"]}
METHODS = {**MAIN, **FOUND, **COUNTED, **ANCHORED, **CHANGED, **ALONE, **BY_CAPTIONS, **BY_PAIRS}
#: The CLIP models of the methods that do not use `GUIDES`.
_OTHER_GUIDES: dict[str, tuple[tuple[str, float], ...]] = {
    "short recipe all guides": (*GUIDES, (HELD_OUT, 1.0)),
    **dict.fromkeys(ALONE, ((FIRST, 1.0),)),
    **dict.fromkeys([*BY_CAPTIONS, *BY_PAIRS], ((CAPTIONS, 1.0),)),
}

# ---- one row ------------------------------------------------------------------------------------------------------


class World:
    """The networks of the benchmark, loaded and measured once a process. runs: the folder of the caption guide."""

    def __init__(self, runs: Path) -> None:
        self.source, self.content, self.judge = load_generator("portraits"), Content.load(), Judge.load()
        self.identity = load_identity("portraits")
        self._runs, self._guides = runs, dict[str, ClipGuide]()
        self.spans: dict[str, PictureSpan] = {}

    def guides(self, method: str) -> list[tuple[ClipGuide, float]]:
        """Return the CLIP models of a method and their weights."""
        pairs = _OTHER_GUIDES.get(method, GUIDES)
        for name in (name for name, _ in pairs if name not in self._guides):
            path = self._runs / f"{name}.safetensors"
            guide = load_guide(path, path.with_suffix(".json")) if name == CAPTIONS else load_guide(name)
            self._guides[name], self.spans[guide.fingerprint] = guide, PictureSpan.measure(guide)
        return [(self._guides[name], weight) for name, weight in pairs]

    def run(self, job: Job) -> tuple[dict[str, Any], torch.Tensor]:
        """Run one adaptation; return its figures and the images of fixed latents."""
        row, adapted = self._oracle(job) if job.method in ORACLES else self._adapt(job)
        figures = self._examine(adapted, job)
        images = render_latents(adapted, sample(self.source, range(SHOWN), psi=1.0), batch=8)
        return {"job": list(job), **row, **figures}, images

    def _adapt(self, job: Job) -> tuple[dict[str, Any], Generator]:
        tilt, guides = Tilt(job.leak, job.noise, _GAP if job.noise else 0.0, job.seed), self.guides(job.method)
        tilted = misalign(TextShift(SOURCE, job.target), [guide for guide, _ in guides], tilt, self.spans)
        shift: Shift = tilted
        if job.method in BY_PAIRS:
            content = contents(range(_PAIRS))
            shift = PairShift(render(content, SOURCE), render(content, job.target))
        measured = {}
        for guide, _ in guides:
            m = self.spans[guide.fingerprint].misalignment(shift.direction(guide), SOURCE, job.target)
            measured[guide.name] = asdict(m)
        config, path = replace(METHODS[job.method], seed=job.seed), []

        def check(step: Step) -> None:
            if job.method in {**_FULL, **FOUND} and (done := step.index + 1) in _CHECKS:
                path.append({"steps": done, **self._examine(step.generator, job)})

        if job.method in ANCHORED:
            return {"measured": measured, "path": path}, adapt_with_anchors(self.source, guides, tilted, config)
        result = adapt(self.source, guides, shift, config, on_step=check, identity=self.identity if config.id else None)
        return {"measured": measured, "path": path}, result.generator

    def _examine(self, adapted: Generator, job: Job) -> dict[str, float]:
        return examine(self.judge, self.content, self.source, adapted, job.target).as_row()

    def _oracle(self, job: Job) -> tuple[dict[str, Any], Generator]:
        latents = sample(self.source, range(20_000, 20_000 + _ORACLE_LATENTS), psi=1.0)
        training = replace(METHODS[job.method], seed=job.seed)
        config = replace(_ORACLE_PAIRS, training=training)
        images = render(self.content(latents.ws), job.target)
        return {"path": []}, adapt_to_pairs(self.source, latents, images, config).generator


def weights_digest() -> str:
    """Identify the weights of the networks that all rows use."""
    names = {name for name, _ in GUIDES}
    files = [path.with_suffix(".safetensors") for guide, path in built_in_guides().items() if guide in names]
    files += [BUILTIN / f"{part}.safetensors" for part in ("generator", "content", "judge")]
    return ",".join(sha256(path)[:8] for path in files)


def further_weights(runs: Path) -> dict[str, str]:
    """Identify the networks of each method beyond those that all rows use."""
    files = {CAPTIONS: runs / f"{CAPTIONS}.safetensors", HELD_OUT: BUILTIN / "guide.safetensors"}
    digests = {name: sha256(path)[:8] if path.exists() else "missing" for name, path in files.items()}
    found = {m: [digests[name] for name, _ in pairs if name in digests] for m, pairs in _OTHER_GUIDES.items()}
    found |= dict.fromkeys(ALONE, [FIRST])
    faces = {m: [sha256(BUILTIN / "identity.safetensors")[:8]] for m, config in METHODS.items() if config.id}
    return {method: ",".join(digests) for method, digests in (found | faces).items()}


def key(job: Job, weights: str, further: Mapping[str, str]) -> str:
    """Identify a row by its settings and by the weights of the networks.

    Args:
        weights: as from `weights_digest`.
        further: as from `further_weights`.
    """
    config = METHODS[job.method]
    data = f"oracle {_ORACLE_LATENTS}|" if job.method in ORACLES else ""
    data += f"{further[job.method]}|" if job.method in further else ""
    data += f"{_PAIRS} pairs|" if job.method in BY_PAIRS else ""
    data += "anchors|" if job.method in ANCHORED else ""
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
    needs: str = ""  # a value without which a row counts as unfinished

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the finished rows by key."""
        return {line["key"]: line["row"] for line in self._lines() if "row" in line}

    def claim(self, keys: Sequence[str]) -> str | None:
        """Take the first key that is neither finished nor claimed; None where there is none."""
        with self._locked():
            taken = {line["key"] for line in self._lines() if self._is_finished(line) or self._is_fresh(line)}
            free = next((key for key in keys if key not in taken), None)
            if free is not None:
                self._append({"key": free, "time": time.time(), "worker": f"{socket.gethostname()} {os.getpid()}"})
        return free

    def _is_finished(self, line: Mapping[str, Any]) -> bool:
        return "row" in line and (not self.needs or self.needs in line["row"])

    def _is_fresh(self, line: Mapping[str, Any]) -> bool:
        return (
            "row" not in line and abs(time.time() - line["time"]) < self.stale
        )  # a claim of the future was made before the clock was set

    def finish(self, key: str, row: dict[str, Any]) -> None:
        with self._locked():
            self._append({"key": key, "time": time.time(), "row": row})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):  # released when the process is killed, too
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


def work(by_key: Mapping[str, Job], runs: Path, journal: Journal) -> None:
    """Run the rows that no other process has taken, one after the other."""
    torch.set_num_threads(1)
    world: World | None = None
    while (free := journal.claim(list(by_key))) is not None:
        job, world = by_key[free], world or World(runs)
        started = time.perf_counter()
        row, images = world.run(job)
        torch.save(images, shown(runs, job))
        journal.finish(free, row)
        figures = ", ".join(f"{name} {row[name]:.3f}" for name in ("judge", "kept", "distance", "diversity"))
        sys.stderr.write(f"{job}: {figures} ({time.perf_counter() - started:.0f} s)\n")


def shown(runs: Path, job: Job) -> Path:
    """The file with the images of a row."""
    return runs / f"{job.target}-{job.method}-{job.leak:g}-{job.noise:g}-{job.seed}.pt".replace(" ", "_")
