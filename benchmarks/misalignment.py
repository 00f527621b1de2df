"""Measure adaptations in the built-in world with text directions that are as wrong as those of real CLIP models.

    python -m benchmarks.misalignment --targets joker zombie --leaks 0 0.1 --methods recipe "recipe k=4"
    python -m benchmarks.misalignment --targets joker --leaks 0 --noises 0.4 --methods recipe
    python -m benchmarks.misalignment --page                   only write docs/misalignment.md from the stored rows

A row is a target, a seed, a leak, a noise and a method; `nada_core.portraits.misalignment` defines leak and noise, and
the seed also decides which attributes leak. A noise above 0 comes with a modality gap of 0.8. Rows are stored in a
journal of JSON lines under a file lock. Any number of processes, on one or several machines that share the folder,
may run the same command: each takes the next row that nobody has taken. A row whose process died is taken again after
--stale minutes.

Methods:

- `recipe`: the recommended settings of the built-in generator, all layers. `recipe k=4`: the four layers (of nine)
  that the text moves most, selected every four steps.
- `paper`: the settings of StyleGAN-NADA with the learning rate that this small generator needs, all layers.
  `paper k=4`: four layers, selected in every step.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.quality import METHODS as QUALITY
from benchmarks.quality import higher_bar
from nada_core import (
    AdaptConfig,
    Generator,
    LayerChoice,
    TextShift,
    adapt,
    compare_grid,
    load_generator,
    load_guide,
    save_image,
)
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.models.clip import ClipGuide
from nada_core.models.clip_loading import built_in_guides
from nada_core.portraits import GUIDES, SOURCE, TARGETS, Judge, Verdict, examine, render
from nada_core.portraits.content import Content
from nada_core.portraits.misalignment import PictureSpan, Tilt, misalign


class Job(NamedTuple):
    """One row of the benchmark."""

    target: str
    seed: int
    leak: float
    noise: float
    method: str


_GAP = 0.8  # added where there is noise; about the length that Liang et al. (arXiv:2203.02053) measure for CLIP
_SHOWN = 5


def _layers(name: str, **changes: Any) -> AdaptConfig:
    config = QUALITY[name].config
    return replace(config, layers=replace(config.layers, **changes))


METHODS: dict[str, AdaptConfig] = {
    "recipe": _layers("recipe", mode="all"),
    "recipe k=4": _layers("recipe", mode="adaptive", count=4),
    "paper": _layers("paper", mode="all"),
    "paper k=4": _layers("paper", mode="adaptive", count=4),
}
_FIGURES = tuple(Verdict.__dataclass_fields__)


# ---- one row ------------------------------------------------------------------------------------------------------


class World:
    """The networks of the benchmark, loaded and measured once a process."""

    def __init__(self) -> None:
        self.source, self.content, self.judge = load_generator("portraits"), Content.load(), Judge.load()
        self.guides: tuple[tuple[ClipGuide, float], ...] = tuple((load_guide(name), w) for name, w in GUIDES)
        self.spans = {guide.fingerprint: PictureSpan.measure(guide) for guide, _ in self.guides}

    def run(self, job: Job) -> tuple[dict[str, Any], torch.Tensor]:
        """Run one adaptation; return its figures and the images of fixed latents."""
        tilt = Tilt(job.leak, job.noise, _GAP if job.noise else 0.0, job.seed)
        shift = misalign(TextShift(SOURCE, job.target), [guide for guide, _ in self.guides], tilt, self.spans)
        row: dict[str, Any] = {"job": list(job), "measured": {}}
        for guide, _ in self.guides:
            m = self.spans[guide.fingerprint].misalignment(shift.direction(guide), SOURCE, job.target)
            row["measured"][guide.name] = asdict(m)
        result = adapt(self.source, list(self.guides), shift, replace(METHODS[job.method], seed=job.seed))
        return row | self.figures(result.generator, job.target), self.images(result.generator)

    def figures(self, adapted: Generator, target: str) -> dict[str, float]:
        return examine(self.judge, self.content, self.source, adapted, target).as_row()

    def images(self, generator: Generator) -> torch.Tensor:
        return render_latents(generator, sample(self.source, range(_SHOWN), psi=1.0), batch=8)


def weights_digest() -> str:
    """Identify the weights of all networks a row uses."""
    names = {name for name, _ in GUIDES}
    files = [path.with_suffix(".safetensors") for guide, path in built_in_guides().items() if guide in names]
    files += [BUILTIN / f"{part}.safetensors" for part in ("generator", "content", "judge")]
    return ",".join(sha256(path)[:8] for path in files)


def key(job: Job, weights: str) -> str:
    """Identify a row by its settings and by the weights of the networks."""
    config = METHODS[job.method]
    settings = {**_changed(config, AdaptConfig()), "layers": _changed(config.layers, LayerChoice())}
    return f"{job.target}|{job.seed}|{job.leak:g}|{job.noise:g}|{settings}|{weights}"


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
    """Run the rows that nobody has taken, one after the other."""
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


# ---- the summary --------------------------------------------------------------------------------------------------

Rows = dict[Job, dict[str, Any]]


class Condition(NamedTuple):
    """What is compared over targets and seeds."""

    method: str
    leak: float
    noise: float

    def __str__(self) -> str:
        noise = f", noise {self.noise:g}" if self.noise else ""
        return f"{self.method}, leak {self.leak:g}{noise}"


def by_condition(rows: Rows) -> dict[Condition, dict[tuple[str, int], dict[str, Any]]]:
    """Group rows by condition, in the order of leak, noise and method; the inner keys are (target, seed)."""
    groups: dict[Condition, dict[tuple[str, int], dict[str, Any]]] = {}
    order = list(METHODS)
    for job in sorted(rows, key=lambda job: (job.noise, job.leak, order.index(job.method))):
        groups.setdefault(Condition(job.method, job.leak, job.noise), {})[job.target, job.seed] = rows[job]
    return groups


def share(row: dict[str, Any]) -> float:
    """Distance to the reference image, relative to that of the source's image."""
    return float(row["distance"] / row["source_distance"])


def imbalance(row: dict[str, Any]) -> float:
    """How far the diversity is from that of the reference images: the absolute logarithm of their ratio."""
    return abs(math.log(row["diversity"]))


#: Column to figure, and whether a larger value is better.
FIGURES: dict[str, tuple[Callable[[dict[str, Any]], float], bool]] = {
    "judge": (lambda row: float(row["judge"]), True),
    "attributes": (lambda row: float(row["kept"]), True),
    "distance": (share, False),
    "diversity error": (imbalance, False),
}


def overview(rows: Rows) -> Iterator[str]:
    """Markdown: one line a condition, with means and standard deviations over its rows."""
    yield (
        "| leak | noise | method | targets | rows | judge | attributes | distance | diversity | rank | passed "
        "| higher bar |"
    )
    yield "|---" * 12 + "|"
    groups = by_condition(rows)
    for condition, group in groups.items():
        values = list(group.values())

        def mean(figure: Callable[[dict[str, Any]], float], values: list[dict[str, Any]] = values) -> str:
            numbers = [figure(row) for row in values]
            spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
            return f"{statistics.fmean(numbers):.2f}{spread}"

        verdicts = [Verdict(**{name: row[name] for name in _FIGURES}) for row in values]
        columns = (mean(FIGURES[name][0]) for name in ("judge", "attributes", "distance"))
        yield (
            f"| {condition.leak:g} | {condition.noise:g} | {condition.method} | {len({t for t, _ in group})} "
            f"| {len(group)} | {' | '.join(columns)} | {mean(lambda row: float(row['diversity']))} "
            f"| {mean_rank(groups, condition)} | {sum(v.passed for v in verdicts)} of {len(group)} "
            f"| {sum(map(higher_bar, verdicts))} of {len(group)} |"
        )


def mean_rank(groups: dict[Condition, dict[tuple[str, int], dict[str, Any]]], condition: Condition) -> str:
    """The mean rank by attributes among the methods at the same tilt, over the rows that all of them have."""
    rivals = {other: group for other, group in groups.items() if other[1:] == condition[1:]}
    common = set.intersection(*(set(group) for group in rivals.values()))
    if len(rivals) < 2 or not common:
        return "-"
    ranks = []
    for pair in common:
        own = rivals[condition][pair]["kept"]
        ranks.append(1 + sum(group[pair]["kept"] > own for group in rivals.values()))
    return f"{statistics.fmean(ranks):.1f} of {len(rivals)}"


def comparisons(groups: Iterable[Condition]) -> Iterator[tuple[Condition, Condition]]:
    """Pairs of conditions that differ in one thing: layers, settings, leak or noise."""
    known = list(groups)
    for one, other in itertools.permutations(known, 2):
        same_tilt = one[1:] == other[1:]
        layers = same_tilt and one.method == f"{other.method} k=4"
        recipe = same_tilt and one.method.replace("recipe", "paper") == other.method != one.method
        tilted = one.method == other.method and (one.leak > other.leak == 0) != (one.noise > other.noise == 0)
        if layers or recipe or (tilted and (one.leak == other.leak or one.noise == other.noise)):
            yield one, other


def paired(rows: Rows) -> Iterator[str]:
    """Markdown: mean differences over equal targets and seeds, with p of Wilcoxon's signed-rank test."""
    yield "| first | against | pairs | " + " | ".join(FIGURES) + " |"
    yield "|---" * (3 + len(FIGURES)) + "|"
    groups = by_condition(rows)
    for one, other in comparisons(groups):
        common = sorted(set(groups[one]) & set(groups[other]))
        if not common:
            continue
        cells = []
        for figure, _ in FIGURES.values():
            change = [figure(groups[one][pair]) - figure(groups[other][pair]) for pair in common]
            cells.append(f"{statistics.fmean(change):+.3f} (p {p_value(change):.3f})")
        yield f"| {one} | {other} | {len(common)} | {' | '.join(cells)} |"


def p_value(differences: Sequence[float]) -> float:
    """Two-sided Wilcoxon signed-rank test; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if any(differences) else 1.0


def details(rows: Rows) -> Iterator[str]:
    """Markdown: one line a target and condition."""
    yield "| target | leak | noise | method | seeds | judge | attributes | distance (source's) | diversity |"
    yield "|---" * 9 + "|"
    groups = by_condition(rows)
    for target in TARGETS:
        for condition, group in groups.items():
            seeds = {seed: row for (other, seed), row in group.items() if other == target}
            if not seeds:
                continue
            mean = {name: statistics.fmean(row[name] for row in seeds.values()) for name in (*_FIGURES, "kept")}
            yield (
                f"| {target} | {condition.leak:g} | {condition.noise:g} | {condition.method} "
                f"| {', '.join(map(str, sorted(seeds)))} | {mean['judge']:.2f} | {mean['kept']:.2f} "
                f"| {mean['distance']:.3f} ({mean['source_distance']:.3f}) | {mean['diversity']:.2f} |"
            )


def dial(rows: Rows) -> Iterator[str]:
    """Markdown: the misalignment that was asked for, and the range measured over all rows and guides."""
    yield "| leak | noise | M expected | M measured | leak measured | noise measured |"
    yield "|---" * 6 + "|"
    for leak, noise in sorted({(job.leak, job.noise) for job in rows}):
        found = [m for job, row in rows.items() if job[2:4] == (leak, noise) for m in row.get("measured", {}).values()]
        ranges = (
            [f"{min(m[n] for m in found):.3f} to {max(m[n] for m in found):.3f}" for n in found[0]] if found else []
        )
        yield f"| {leak:g} | {noise:g} | {1 - (1 - leak) * (1 - noise):.3f} | {' | '.join(ranges)} |"


def page(rows: Rows, pictures: Sequence[str]) -> str:
    """The text of docs/misalignment.md."""
    tables = {name: "\n".join(table(rows)) for name, table in _TABLES.items()}
    grids = "\n\n".join(f"![{name}](misalignment/{name})" for name in pictures)
    return _PAGE.format(**tables, grids=grids)


_TABLES = {"dial": dial, "overview": overview, "paired": paired, "details": details}
_PAGE = """# Adaptation with misaligned text directions

Printed by `python -m benchmarks.misalignment --page` from the rows that have been run. Targets, seeds, methods and
tilts that are not listed have not been run.

In the built-in world the text direction of every CLIP model nearly equals the mean offset of the true pictures, because
the models are fitted for that. Real CLIP models are not. Here the directions are tilted on purpose, by M = 1 - cosine
between text direction and true image offset, in two parts with 1 - M = (1 - leak) (1 - noise):

- **leak**: inside the span of the embeddings of pictures, towards a random mix of attributes, such as other hair or
  another background. The mix depends on the seed and the target and is the same for all CLIP models.
- **noise**: outside this span, together with a modality gap of 0.8. No picture can follow it.

{dial}

## Methods

192 held-out latents; mean ± standard deviation over targets and seeds. *Attributes*: correlation of the attributes that
the judge reads with the latent's, relative to the source. *Distance*: to the reference image, relative to the source's.
*Diversity*: relative to the reference images. *Rank*: by attributes, over the rows that all methods at this tilt have.
*Passed* and *higher bar*: as in [quality](quality/README.md). `benchmarks/misalignment.py` describes the methods.

{overview}

## Paired differences

First minus second, over the same targets and seeds; p of Wilcoxon's signed-rank test, not corrected for the number of
tests. *Diversity error*: absolute logarithm of the diversity; lower is better. *Distance*: lower is better.

{paired}

## Every target

{details}

{grids}
"""


def draw(runs: Path, rows: Rows, folder: Path) -> list[str]:
    """Draw one grid a target that has rows with seed 0: source, conditions, reference; one latent per row."""
    source, content = load_generator("portraits"), Content.load()
    latents = sample(source, range(_SHOWN), psi=1.0)
    names = []
    for target in TARGETS:
        columns = {SOURCE: render_latents(source, latents, batch=8)}
        for condition in by_condition(rows):
            job = Job(target, 0, condition.leak, condition.noise, condition.method)
            if job in rows and shown(runs, job).exists():
                label = f"{condition.method} {condition.leak:g}" + (
                    f" + {condition.noise:g}" if condition.noise else ""
                )
                columns[label] = torch.load(shown(runs, job), weights_only=True)
        if len(columns) > 1:
            columns["reference"] = render(content(latents.ws), target)
            names.append(f"{target.replace(' ', '_')}.jpg")
            save_image(compare_grid(columns, title=f"{SOURCE} to {target}, leak + noise"), folder / names[-1])
    return names


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.misalignment", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=tuple(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--leaks", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--noises", nargs="+", type=float, default=[0.0])
    parser.add_argument("--stale", type=float, default=60.0, help="minutes after which an unfinished row is run again")
    parser.add_argument("--page", action="store_true", help="run nothing; write the page and grids of all stored rows")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("out/misalignment"), help="folder of the rows (%(default)s)")
    args = parser.parse_args()
    journal, weights = Journal(args.runs / "rows.jsonl", args.stale * 60), weights_digest()
    jobs = [Job(*x) for x in itertools.product(args.targets, args.seeds, args.leaks, args.noises, args.methods)]
    jobs.sort(key=lambda job: job.seed)  # a part of the rows then holds whole comparisons
    if not args.page:
        work(jobs, args.runs, journal, weights)
    stored = journal.rows()
    rows: Rows = {job: stored[k] for job in jobs if (k := key(job, weights)) in stored}
    if args.page:  # all rows whose settings are still those of their method
        rows = {job: row for row in stored.values() if key(job := Job(*row["job"]), weights) in stored}
        folder = args.out / "misalignment"
        folder.mkdir(parents=True, exist_ok=True)
        (args.out / "misalignment.md").write_text(page(rows, draw(args.runs, rows, folder)))
    for table in _TABLES.values():
        sys.stdout.write("\n".join(table(rows)) + "\n\n")


if __name__ == "__main__":
    main()
