"""Measure learning from pairs in the built-in world: every target, several numbers of pairs, two teachers.

    python -m benchmarks.pairs                            everything; can be interrupted and continued
    python -m benchmarks.pairs --targets joker --seeds 0  a part
    python -m benchmarks.pairs --filter                   what the filter finds, without training
    python -m benchmarks.pairs --page                     write docs/pairs/ with the tables and one grid per target

The teacher plays the image model: it draws the content of a latent in another style. Finished runs are stored under
out/ and reused while settings and weights are the same.

Teachers:

- `clean`: the true picture.
- `bad`: pictures shifted by up to 3 of 64 pixels, with scattered colors, and 20 % wrong pairs: in turn another person,
  the unchanged photo, and another style.

Methods:

- `pairs`: pairs alone; no CLIP model enters the loss. The filter uses those of the recipe and the face recognizer.
- `pairs, not aligned`: like `pairs`, but moves of the pictures are not undone.
- `text + pairs`: also the directional and the angle loss of the recipe, on the pairs and on as many random latents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality import higher_bar
from nada_core import (
    AdaptConfig,
    Latents,
    PairsConfig,
    TextShift,
    adapt_to_pairs,
    compare_grid,
    load_generator,
    load_guide,
    load_identity,
    save_image,
)
from nada_core.guidance.pair_filter import wrong_pairs
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.models.generator import Generator
from nada_core.portraits import GUIDES, SOURCE, STYLES, TARGETS, Judge, Verdict, examine, render
from nada_core.portraits.content import Content

TEACHERS, METHODS, COUNTS = ("clean", "bad"), ("pairs", "pairs, not aligned", "text + pairs"), (4, 8, 32, 128)
WRONG = ("another person", "unchanged", "another style")
_WRONG_SHARE, _MAX_SHIFT, _GAIN, _OFFSET = 0.2, 3 / 32, 0.15, 0.1
SHOWN = 5
_FIGURES = ("judge", "attributes", "source_attributes", "distance", "source_distance", "diversity")

Job = tuple[str, str, str, int, int]  # method, teacher, target, pairs, seed


@lru_cache(maxsize=1)
def world() -> tuple[Generator, Content, Judge, list[tuple[Any, float]], Any]:
    guides = [(load_guide(name), weight) for name, weight in GUIDES]
    return load_generator("portraits"), Content.load(), Judge.load(), guides, load_identity("portraits")


@torch.no_grad()
def teach(teacher: str, target: str, count: int, seed: int) -> tuple[Latents, Tensor, dict[int, str]]:
    """Latents, the teacher's pictures [N, 3, 64, 64], and the kind of each wrong pair by index."""
    source, content, *_ = world()
    latents = sample(source, range(1000 * (seed + 1), 1000 * (seed + 1) + count), psi=1.0)
    attributes = content(latents.ws)
    pictures, wrong = render(attributes, target), dict[int, str]()
    if teacher == "clean":
        return latents, pictures, wrong
    rng = torch.Generator().manual_seed(seed)
    others = [style for style in STYLES if style not in (SOURCE, target)]
    for index, row in enumerate(torch.randperm(count, generator=rng)[: round(_WRONG_SHARE * count)].tolist()):
        wrong[row] = WRONG[index % len(WRONG)]
        if wrong[row] == "another person":
            z = torch.randn(1, source.z_dim, generator=rng)
            pictures[row] = render(content(source.map(z)), target)[0]
        elif wrong[row] == "unchanged":
            pictures[row] = source.synthesize(latents.ws[row : row + 1])[0].clamp(-1, 1)
        else:
            style = others[int(torch.randint(len(others), (1,), generator=rng))]
            pictures[row] = render(attributes[row : row + 1], style)[0]
    moves = torch.eye(2, 3).repeat(count, 1, 1)
    moves[:, :, 2] = (torch.rand(count, 2, generator=rng) * 2 - 1) * _MAX_SHIFT
    grid = F.affine_grid(moves, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    gain = 1 + _GAIN * (torch.rand(count, 3, 1, 1, generator=rng) * 2 - 1)
    offset = _OFFSET * (torch.rand(count, 3, 1, 1, generator=rng) * 2 - 1)
    return latents, (moved * gain + offset).clamp(-1, 1), wrong


def settings(method: str, seed: int) -> PairsConfig:
    config = PairsConfig.for_training(world()[0].recommended_settings("adapt", AdaptConfig))
    align = 0.0 if method == "pairs, not aligned" else config.align
    return replace(config, align=align, training=replace(config.training, seed=seed))


def run(job: Job) -> tuple[dict[str, Any], Tensor]:
    """Train; return the figures and the images of fixed latents."""
    method, teacher, target, count, seed = job
    source, content, judge, guides, identity = world()
    latents, pictures, wrong = teach(teacher, target, count, seed)
    shift = TextShift(SOURCE, target) if method == "text + pairs" else None
    result = adapt_to_pairs(source, latents, pictures, settings(method, seed), guides, shift, identity=identity)
    row: dict[str, Any] = examine(judge, content, source, result.generator, target).as_row()
    rejected = result.domain.provenance["pairs"]["rejected"]
    found = sum(index in rejected for index in wrong)
    row |= {"steps": len(result.history), "wrong": len(wrong), "found": found, "alarms": len(rejected) - found}
    return row, render_latents(result.generator, sample(source, range(SHOWN), psi=1.0), batch=8)


def key(job: Job) -> str:
    """Identify a run by its settings and by the weights of all networks it uses."""
    weights = [sha256(BUILTIN / f"{part}.safetensors")[:12] for part in ("generator", "content", "judge")]
    return json.dumps(
        [*job, asdict(settings(job[0], job[-1])), weights, [guide.fingerprint for guide, _ in world()[3]]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=TEACHERS, metavar="TEACHER")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), help="numbers of pairs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--filter", action="store_true", help="measure the filter alone")
    parser.add_argument("--page", action="store_true", help="write README.md and the grids of all stored runs to --out")
    parser.add_argument("--out", type=Path, default=Path("docs/pairs"), help="folder of the page (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("out/pairs"), help="folder of the stored runs (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    found = args.runs / "filter.md"
    if args.filter:
        found.write_text("\n".join(filter_table(args.targets, args.counts, args.seeds)) + "\n")
        sys.stdout.write(found.read_text())
        return
    store = args.runs / "rows.jsonl"
    stored = dict(map(json.loads, store.read_text().splitlines())) if store.exists() else {}
    jobs = [
        (method, teacher, target, count, seed)
        for seed in args.seeds
        for count in args.counts
        for teacher in args.teachers
        for method in args.methods
        for target in args.targets
    ]
    for job in jobs if not args.page else ():
        if key(job) not in stored:
            row, images = run(job)
            stored[key(job)] = row
            with store.open("a") as file:
                file.write(json.dumps([key(job), row]) + "\n")
            torch.save(images, shown(args.runs, job))
            sys.stderr.write(f"{', '.join(map(str, job))}: {summary(row)}\n")
    rows = {job: stored[key(job)] for job in jobs if key(job) in stored}
    sys.stdout.write("\n".join([*overview(rows), "", *table(rows)]) + "\n")
    if args.page:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(args.runs, args.out, rows)
        (args.out / "README.md").write_text(page(rows, found.read_text() if found.exists() else ""))


def summary(row: dict[str, Any]) -> str:
    ratio = row["distance"] / row["source_distance"]
    return (
        f"judge {row['judge']:.2f}, attributes {row['kept']:.2f}, distance {ratio:.2f}, diversity "
        f"{row['diversity']:.2f}, {row['steps']} steps, found {row['found']} of {row['wrong']}, {row['alarms']} alarms"
    )


def reaches(row: dict[str, Any]) -> bool:
    return higher_bar(Verdict(**{figure: row[figure] for figure in _FIGURES}))


def overview(rows: dict[Job, dict[str, Any]]) -> Iterable[str]:
    """Markdown: one row per teacher, number of pairs and method, over its targets and seeds."""
    yield "| teacher | pairs | method | judge | attributes | distance / source's | diversity | runs | targets |"
    yield "|---" * 9 + "|"
    for teacher, count, method in sorted({(job[1], job[3], job[0]) for job in rows}, key=_order):
        some = {job: row for job, row in rows.items() if (job[1], job[3], job[0]) == (teacher, count, method)}
        mean = {name: statistics.fmean(row[name] for row in some.values()) for name in ("judge", "kept", "diversity")}
        near = statistics.geometric_mean(row["distance"] / row["source_distance"] for row in some.values())
        targets = {job[2] for job in some}
        missed = {job[2] for job, row in some.items() if not reaches(row)}
        yield (
            f"| {teacher} | {count} | {method} | {mean['judge']:.2f} | {mean['kept']:.2f} | {near:.2f} "
            f"| {mean['diversity']:.2f} | {sum(map(reaches, some.values()))} of {len(some)} "
            f"| {len(targets - missed)} of {len(targets)} |"
        )


def _order(group: tuple[str, int, str]) -> tuple[int, int, int]:
    return TEACHERS.index(group[0]), group[1], METHODS.index(group[2])


def table(rows: dict[Job, dict[str, Any]]) -> Iterable[str]:
    """Markdown: one row per target, teacher, number of pairs and method; mean and standard deviation over seeds."""
    yield "| target | teacher | pairs | method | judge | attributes | distance (source's) | diversity | higher bar |"
    yield "|---" * 9 + "|"
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for (method, teacher, target, count, _), row in rows.items():
        groups.setdefault((target, teacher, count, method), []).append(row)
    for target in TARGETS:
        for teacher, count, method in sorted({group[1:] for group in groups if group[0] == target}, key=_order):
            some = groups[target, teacher, count, method]
            own = statistics.fmean(row["source_distance"] for row in some)
            yield (
                f"| {target} | {teacher} | {count} | {method} | {_mean(some, 'judge')} | {_mean(some, 'kept')} "
                f"| {_mean(some, 'distance', 3)} ({own:.3f}) | {_mean(some, 'diversity')} "
                f"| {sum(map(reaches, some))} of {len(some)} |"
            )


def _mean(rows: list[dict[str, Any]], figure: str, digits: int = 2) -> str:
    values = [row[figure] for row in rows]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def filter_table(targets: Iterable[str], counts: Iterable[int], seeds: Iterable[int]) -> Iterable[str]:
    """Markdown: what the filter finds among the pairs of the bad teacher, over the seeds."""
    source, _, _, guides, identity = world()
    yield "| target | pairs | wrong pairs found | correct pairs rejected |"
    yield "|---" * 4 + "|"
    config, total = settings(METHODS[0], 0), [0, 0, 0, 0]
    for target in targets:
        for count in counts:
            figures = [0, 0, 0, 0]
            for seed in seeds:
                latents, pictures, wrong = teach("bad", target, count, seed)
                before = render_latents(source, latents, batch=8).clamp(-1, 1)
                limits = config.min_direction, config.max_rank
                rejected = set(wrong_pairs(before, pictures, guides, identity, *limits))
                some = len(rejected & set(wrong)), len(wrong), len(rejected - set(wrong)), count - len(wrong)
                figures = [one + other for one, other in zip(figures, some, strict=True)]
            total = [one + other for one, other in zip(total, figures, strict=True)]
            yield f"| {target} | {count} | {_share(*figures[:2])} | {_share(*figures[2:])} |"
    yield f"| all | all | {_share(*total[:2])} | {_share(*total[2:])} |"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"


def shown(runs: Path, job: Job) -> Path:
    """The file with the images of a run."""
    return runs / ("-".join(map(str, job)).replace(" ", "_") + ".pt")


def draw(runs: Path, folder: Path, rows: Iterable[Job]) -> None:
    """Draw one grid per target: source, stored runs of the first seed, reference; one latent per row."""
    source, content, *_ = world()
    latents = sample(source, range(SHOWN), psi=1.0)
    for target in TARGETS:
        columns = {SOURCE: render_latents(source, latents, batch=8)}
        for job in (job for job in rows if job[2] == target and job[4] == 0 and shown(runs, job).exists()):
            columns[f"{job[3]} {job[1]}, {job[0]}"] = torch.load(shown(runs, job), weights_only=True)[:SHOWN]
        columns["reference"] = render(content(latents.ws), target)
        save_image(compare_grid(columns, title=f"{SOURCE} to {target}"), folder / f"{target.replace(' ', '_')}.png")


def page(rows: dict[Job, dict[str, Any]], found: str) -> str:
    """The text of README.md in the folder of the page."""
    lines = "\n".join([*overview(rows), "", *table(rows)])
    pictures = "\n\n".join(f"![{target}]({target.replace(' ', '_')}.png)" for target in TARGETS)
    return f"""# Learning from pairs in the built-in world

Printed by `python -m benchmarks.pairs`: mean, and ± standard deviation where there are several seeds; 192 held-out
latents. The docstring of `benchmarks/pairs.py` describes teachers and methods. Of at least 8 pairs, a quarter is held
out. Rows that are missing have not been measured, nor have a trained diffusion model, published generators, and LPIPS.

- **judge**, **attributes**, **distance**, **diversity**, **higher bar**: as in [quality](../quality/README.md), whose
  method `recipe` trains by text without pairs.
- **runs**: runs that meet the higher bar. **targets**: targets that meet it with every seed that was run.

{lines}

## The filter

Printed by `python -m benchmarks.pairs --filter`: the pairs of the bad teacher, 20 % of them wrong; three seeds. It uses
the two CLIP models of the recipe and the face recognizer.

{found}
## Grids

Seed 0: source, the runs, and the reference; one latent per row.

{pictures}
"""


if __name__ == "__main__":
    main()
