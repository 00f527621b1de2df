"""The summary of the rows of `benchmarks.misalignment`: tables, paired tests, grids and the page."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.misalignment_rows import (
    ANCHORED,
    CHANGED,
    COUNTED,
    FIRST,
    FOUND,
    MAIN,
    METHODS,
    ORACLES,
    SHOWN,
    Job,
    shown,
)
from benchmarks.quality import higher_bar
from nada_core import compare_grid, load_generator, save_image
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.portraits import SOURCE, TARGETS, Verdict, render
from nada_core.portraits.content import Content

_DRAWN = ("recipe", "recipe k=4", *FOUND, "paper", "oracle")
_MIN_PAIRS = 6  # with fewer, Wilcoxon's test cannot reach p = 0.05
_QUALITY = 0.9  # the judge's share at which methods are compared on their way
_MIN_GAIN = 0.1  # of the source's distance: where the oracle gains less, such as for elves, a share says nothing
_FIGURES = tuple(Verdict.__dataclass_fields__)
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
        "| leak | noise | method | targets | rows | judge | attributes | distance | gain | diversity | rank | passed "
        "| higher bar |"
    )
    yield "|---" * 13 + "|"
    groups = by_condition(rows)
    oracle = groups.get(Condition("oracle", 0.0, 0.0), {})
    for condition, group in groups.items():
        values = list(group.values())

        def mean(figure: Callable[[dict[str, Any]], float], values: list[dict[str, Any]] = values) -> str:
            numbers = [figure(row) for row in values]
            spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
            return f"{statistics.fmean(numbers):.2f}{spread}"

        verdicts = [Verdict(**{name: row[name] for name in _FIGURES}) for row in values]
        columns = (mean(FIGURES[name][0]) for name in ("judge", "attributes", "distance"))
        diversity, passed = mean(lambda row: float(row["diversity"])), sum(v.passed for v in verdicts)
        yield (
            f"| {condition.leak:g} | {condition.noise:g} | {condition.method} | {len({t for t, _ in group})} "
            f"| {len(group)} | {' | '.join(columns)} | {gains(group, oracle)} | {diversity} "
            f"| {mean_rank(groups, condition)} | {passed} of {len(group)} "
            f"| {sum(map(higher_bar, verdicts))} of {len(group)} |"
        )


def mean_rank(groups: dict[Condition, dict[tuple[str, int], dict[str, Any]]], condition: Condition) -> str:
    """The mean rank by attributes among methods of the same tilt and length, over the rows that all of them have."""
    rivals = {c: group for c, group in groups.items() if c[1:] == condition[1:] and family(c) == family(condition)}
    common = set.intersection(*(set(group) for group in rivals.values()))
    if len(rivals) < 2 or not common:
        return "-"
    ranks = []
    for pair in common:
        own = rivals[condition][pair]["kept"]
        ranks.append(1 + sum(group[pair]["kept"] > own for group in rivals.values()))
    return f"{statistics.fmean(ranks):.1f} of {len(rivals)}"


def family(condition: Condition) -> str:
    """Methods are ranked among those of the same kind: full, short, oracle, changes of the short recipe, one guide."""
    if condition.method in ORACLES:
        return "oracle"
    length = "short" if condition.method.startswith("short") else "full"
    if condition.method in {*MAIN, *FOUND, *COUNTED, *ANCHORED}:
        return length
    return f"{length}, changed" if condition.method in CHANGED else "one guide"


def gains(group: Mapping[tuple[str, int], dict[str, Any]], oracle: Mapping[tuple[str, int], dict[str, Any]]) -> str:
    """How much nearer to the reference images the rows are than the source's, as a share of the oracle's gain."""
    shares = []
    for (target, _), row in group.items():
        best = [other["distance"] for (t, _), other in oracle.items() if t == target]
        if not best:
            return "-"
        possible = row["source_distance"] - statistics.fmean(best)
        if possible > _MIN_GAIN * row["source_distance"]:
            shares.append((row["source_distance"] - row["distance"]) / possible)
    return f"{statistics.fmean(shares):.2f}" if shares else "-"


def comparisons(groups: Iterable[Condition]) -> Iterator[tuple[Condition, Condition]]:
    """Pairs of conditions that differ in one thing: layers, one setting, CLIP model, recipe, leak or noise."""
    known = list(groups)
    for one, other in itertools.permutations(known, 2):
        same_tilt = one[1:] == other[1:]
        changed = same_tilt and one.method.startswith(f"{other.method} ")
        replaced = {one.method.replace(name, "paper") for name in ("recipe", "recipe k=4", *FOUND)}
        recipe = same_tilt and other.method in replaced - {one.method}
        tilted = one.method == other.method and (one.leak > other.leak == 0) != (one.noise > other.noise == 0)
        captions = same_tilt and one.method.replace("captions", FIRST) == other.method != one.method
        if changed or captions or recipe or (tilted and (one.leak == other.leak or one.noise == other.noise)):
            yield one, other


def paired(rows: Rows, names: Sequence[str] = tuple(FIGURES)) -> Iterator[str]:
    """Markdown: mean differences over equal targets and seeds, and p where there are enough pairs."""
    yield "| first | against | pairs | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    groups = by_condition(rows)
    for one, other in comparisons(groups):
        common = sorted(set(groups[one]) & set(groups[other]))
        if not common:
            continue
        cells = []
        for figure in (FIGURES[name][0] for name in names):
            change = [figure(groups[one][pair]) - figure(groups[other][pair]) for pair in common]
            p = f" (p {p_value(change):.3f})" if len(common) >= _MIN_PAIRS else ""
            cells.append(f"{statistics.fmean(change):+.3f}{p}")
        yield f"| {one} | {other} | {len(common)} | {' | '.join(cells)} |"


def matched(rows: Rows) -> Iterator[str]:
    """Markdown: paired differences where the judge first accepts `_QUALITY` of the images; other runs are omitted."""
    reached = {job: found for job, row in rows.items() if (found := first_reaching(row.get("path", ()), _QUALITY))}
    return paired(reached, ("attributes", "distance", "diversity error"))


def first_reaching(path: Sequence[dict[str, Any]], quality: float) -> dict[str, Any] | None:
    """Return the figures of a run where the judge's share first reaches `quality`, interpolated, or None."""
    for before, after in itertools.pairwise(path):
        if before["judge"] < quality <= after["judge"]:
            part = (quality - before["judge"]) / (after["judge"] - before["judge"])
            return {name: value + part * (after[name] - value) for name, value in before.items()}
    return None


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
    tables = {name: "\n".join(table(rows)) for name, table in TABLES.items()}
    grids = "\n\n".join(f"![{name}](misalignment/{name})" for name in pictures)
    return _PAGE.format(**tables, grids=grids)


TABLES = {"dial": dial, "overview": overview, "paired": paired, "matched": matched, "details": details}
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
*Gain*: how much nearer to the reference images than the source's, as a share of the oracle's gain. *Diversity*:
relative to the reference images. *Rank*: by attributes among the methods of equal tilt and length, over the rows that
all of them have. *Passed* and *higher bar*: as in [quality](quality/README.md). `benchmarks/misalignment.py` describes
the methods.

{overview}

## Paired differences

First minus second, over the same targets and seeds; p of Wilcoxon's signed-rank test for six pairs and more, not
corrected for the number of tests. Pairs of one target are not independent, which makes p too small. *Diversity error*:
absolute logarithm of the diversity; lower is better. *Distance*: lower is better.

{paired}

## At equal quality

The same differences, not after equal steps, but where the judge first accepts 90 % of the images, between two of the
measurements of each run. Runs that do not reach this share are omitted, and so is the other one of the pair.

{matched}

## Every target

{details}

Grids of seed 0: source, some methods with their leak (+ noise), and the reference; one latent per row.

{grids}
"""


def draw(runs: Path, rows: Rows, folder: Path) -> list[str]:
    """Draw one grid a target that has rows with seed 0: source, some methods, reference; one latent per row."""
    source, content = load_generator("portraits"), Content.load()
    latents = sample(source, range(SHOWN), psi=1.0)
    names = []
    for target in TARGETS:
        columns = {SOURCE: render_latents(source, latents, batch=8)}
        for condition in (c for c in by_condition(rows) if c.method in _DRAWN):
            job = Job(target, 0, condition.leak, condition.noise, condition.method)
            if job in rows and shown(runs, job).exists():
                noise = f" + {condition.noise:g}" if condition.noise else ""
                columns[f"{condition.method} {condition.leak:g}{noise}"] = torch.load(
                    shown(runs, job), weights_only=True
                )
        if len(columns) > 1:
            columns["reference"] = render(content(latents.ws), target)
            names.append(f"{target.replace(' ', '_')}.png")
            save_image(compare_grid(columns, title=f"{SOURCE} to {target}, leak + noise"), folder / names[-1])
    return names
