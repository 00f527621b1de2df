"""Measure adaptations in the built-in world: every target, every method, several seeds.

    python -m benchmarks.quality                                  everything; takes hours and can be interrupted
    python -m benchmarks.quality --targets zombie --seeds 0       a part
    python -m benchmarks.quality --methods recipe plain --page    also write docs/quality/ with one grid per target

Finished runs are stored under out/ and reused while weights and settings are the same.

Methods:

- `recipe`: the recommended settings of the built-in generator.
- `paper`: the settings of StyleGAN-NADA (directional loss, adaptive layer selection in every step) with the learning
  rate that this small generator needs.
- `fresh`: like `recipe`, but with new latents in every step, two augmented views and fewer steps, for the same time.
- All other methods are `fresh` with one change. `global`: global CLIP loss. `plain`: directional loss only. `+ NAME`:
  one more loss term. `selected`: adaptive layer selection. `convolutions`, `affines`, `offsets`, `low-rank`: what is
  trained. `guide NAME`: other CLIP guides. `chosen`: twice the steps, and the held-out guide selects the best one.
  `long`: 1000 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from nada_core import (
    AdaptConfig,
    LayerChoice,
    TextShift,
    adapt,
    compare_grid,
    load_generator,
    load_guide,
    load_identity,
    save_image,
)
from nada_core.adaptation.layer_selection import count_trained
from nada_core.guidance import metrics
from nada_core.guidance.prompts import fill
from nada_core.io.checkpoint_file import BUILTIN, sha256
from nada_core.latents.sampling import render as render_latents
from nada_core.latents.sampling import sample
from nada_core.models.clip_loading import built_in_guides
from nada_core.portraits import GUIDES, HELD_OUT, RECIPE, SOURCE, TARGETS, Judge, Verdict, examine, render
from nada_core.portraits.content import Content


@dataclass(frozen=True)
class Method:
    """Settings, the CLIP guides with their weights, and the held-out guide that selects the step."""

    config: AdaptConfig
    guides: tuple[tuple[str, float], ...] = GUIDES
    judge: str | None = None


def _with(base: AdaptConfig, layers: Mapping[str, Any] | None = None, **changes: Any) -> AdaptConfig:
    return replace(base, layers=replace(base.layers, **(layers or {})), **changes)


#: The recipe without a pool of latents: slower steps, and fewer of them in about the same time.
_FRESH = replace(RECIPE, pool=0, steps=240, views=2)
_DIRECTION = {"direction": 1.0}
_PLAIN = replace(_FRESH, terms=_DIRECTION)
#: The paper's settings (section 4, appendix I) at the built-in world's learning rate; k = 5 of 9 layers.
_PAPER = AdaptConfig(lr=_FRESH.lr, batch=_FRESH.batch, noise="const", layers=LayerChoice(mode="adaptive", count=5))
_TERMS = {"relation": 10.0, "covariance": 1.0, "global": 0.3}
#: Other parametrizations, and their learning rate as a multiple of the recipe's.
_TRAINED: dict[str, tuple[dict[str, Any], float]] = {
    "selected": ({"mode": "adaptive"}, 1.0),
    "convolutions": ({"train": "convolutions"}, 1.0),
    "affines": ({"train": "affines"}, 2.0),
    "offsets": ({"train": "offsets"}, 20.0),
    "low-rank": ({"train": "low-rank"}, 2.0),
    "low-rank 16": ({"train": "low-rank", "rank": 16}, 0.7),
}

METHODS: dict[str, Method] = {
    "recipe": Method(RECIPE),
    "fresh": Method(_FRESH),
    "paper": Method(_PAPER),
    "global": Method(replace(_FRESH, terms={"global": 1.0})),
    "plain": Method(_PLAIN),
    **{f"+ {name}": Method(replace(_FRESH, terms={**_FRESH.terms, name: weight})) for name, weight in _TERMS.items()},
    "+ weight_reg": Method(replace(_FRESH, weight_reg=1.0)),
    "+ weight_reg, Fisher": Method(replace(_FRESH, weight_reg=1.0, fisher_samples=64)),
    "+ id": Method(replace(_FRESH, id=0.25)),
    **{name: Method(_with(_FRESH, layers, lr=_FRESH.lr * pace)) for name, (layers, pace) in _TRAINED.items()},
    **{f"guide {name}": Method(_FRESH, ((name, 1.0),)) for name, _ in GUIDES},
    "guides all three": Method(_FRESH, (*GUIDES, (HELD_OUT, 1.0))),
    "chosen": Method(replace(_FRESH, steps=2 * _FRESH.steps, keep_every=40), judge=HELD_OUT),
    "plain, long": Method(replace(_PLAIN, steps=1000)),
    "fresh, long": Method(replace(_FRESH, steps=1000)),
    "recipe, long": Method(replace(RECIPE, steps=1000)),
}
SHOWN = 5
_DRAWN = ("recipe", "fresh", "paper", "global", "plain, long")
_FIGURES = ("judge", "attributes", "source_attributes", "distance", "source_distance", "diversity")
_LARGE_CHANGE = 0.1  # distance between photos and reference images above which the higher bar limits the distance


def run(target: str, name: str, seed: int) -> tuple[str, str, int, dict[str, Any], torch.Tensor]:
    """Run one adaptation; return its metrics and the images of fixed latents."""
    torch.set_num_threads(1)
    method, source, content = METHODS[name], load_generator("portraits"), Content.load()
    judge = load_guide(method.judge) if method.judge else None
    shift = TextShift(SOURCE, target)
    identity = load_identity("portraits") if method.config.id else None
    guides = [(load_guide(guide), weight) for guide, weight in method.guides]
    result = adapt(source, guides, shift, replace(method.config, seed=seed), judge=judge, identity=identity)
    row: dict[str, Any] = examine(Judge.load(), content, source, result.generator, target).as_row()
    row["bytes"] = 4 * count_trained(method.config.layers, source)
    latents = sample(source, range(10_000, 10_096), psi=1.0)
    before, after = (render_latents(one, latents, batch=16).clamp(-1, 1) for one in (source, result.generator))
    row["structure"] = metrics.structure(before, after)
    row["true_structure"] = metrics.structure(before, render(content(latents.ws), target))
    guide = load_guide(HELD_OUT)
    seen = [metrics.embed(guide, images) for images in (before, after)]
    row["quality"] = metrics.quality(seen[1], guide.encode_text(fill(target)))
    row["direction"] = metrics.direction(seen[0], seen[1], shift.direction(guide))
    row["because"] = result.chosen_because
    return target, name, seed, row, render_latents(result.generator, sample(source, range(SHOWN), psi=1.0), batch=8)


def key(target: str, name: str, seed: int) -> str:
    """Identify a run by its settings and by the weights of all networks it uses."""
    method = METHODS[name]
    names = {HELD_OUT, *(guide for guide, _ in method.guides)}
    files = [path.with_suffix(".safetensors") for guide, path in built_in_guides().items() if guide in names]
    files += [BUILTIN / f"{part}.safetensors" for part in ("generator", "content", "judge")]
    weights = [sha256(path)[:12] for path in files]
    settings = {**_changed(method.config, AdaptConfig()), "layers": _changed(method.config.layers, LayerChoice())}
    return f"{target}|{settings}|{method.guides}|{method.judge}|{seed}|{weights}"


def _changed(settings: AdaptConfig | LayerChoice, defaults: AdaptConfig | LayerChoice) -> dict[str, Any]:
    """The settings that differ from their defaults, so that a new setting does not invalidate stored runs."""
    return {name: value for name, value in sorted(vars(settings).items()) if value != getattr(defaults, name)}


def higher_bar(row: Verdict) -> bool:
    """A stricter test than `Verdict.passed`. The distance counts only for styles that change many pixels."""
    near = row.source_distance < _LARGE_CHANGE or row.distance <= 0.6 * row.source_distance
    return row.judge >= 0.9 and row.kept >= 0.8 and 0.85 <= row.diversity <= 1.2 and near


def table(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterable[str]:
    """Markdown: one row per target and method, with mean and standard deviation over seeds."""
    yield (
        "| target | method | judge | attributes | distance (source's) | diversity | structure (reference's) "
        "| held-out quality | held-out direction | passed | higher bar |"
    )
    yield "|---" * 11 + "|"
    for (target, name), figures in rows.items():

        def mean(figure: str, digits: int = 2, figures: list[dict[str, Any]] = figures) -> str:
            values = [row[figure] for row in figures]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.fmean(values):.{digits}f}{spread}"

        own = {figure: statistics.fmean(row[figure] for row in figures) for figure in _FIGURES}
        verdicts = [Verdict(**{figure: row[figure] for figure in _FIGURES}) for row in figures]
        passed, high = sum(v.passed for v in verdicts), sum(map(higher_bar, verdicts))
        trained = HELD_OUT in dict(METHODS[name].guides) or HELD_OUT == METHODS[name].judge
        held_out = ("used" if trained else mean(figure) for figure in ("quality", "direction"))
        yield (
            f"| {target} | {name} | {mean('judge')} | {mean('kept')} | {mean('distance', 3)} "
            f"({own['source_distance']:.3f}) | {mean('diversity')} | {mean('structure')} "
            f"({statistics.fmean(row['true_structure'] for row in figures):.2f}) | {' | '.join(held_out)} "
            f"| {passed} of {len(figures)} | {high} of {len(figures)} |"
        )


def overview(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> Iterable[str]:
    """Markdown: one row per method, means over its targets and seeds."""
    yield "| method | targets | judge | attributes | distance / source's | diversity | passed | trained bytes |"
    yield "|---" * 8 + "|"
    for name in dict.fromkeys(name for _, name in rows):
        figures = [row for (_, other), some in rows.items() if other == name for row in some]
        verdicts = [Verdict(**{figure: row[figure] for figure in _FIGURES}) for row in figures]
        mean = {figure: statistics.fmean(row[figure] for row in figures) for figure in ("judge", "kept", "diversity")}
        near = statistics.geometric_mean(row["distance"] / row["source_distance"] for row in figures)
        yield (
            f"| {name} | {len({target for target, other in rows if other == name})} | {mean['judge']:.2f} "
            f"| {mean['kept']:.2f} | {near:.2f} | {mean['diversity']:.2f} "
            f"| {sum(v.passed for v in verdicts)} of {len(figures)} | {figures[0]['bytes']:,} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=tuple(METHODS),
        metavar="METHOD",
        help=f"some of: {'; '.join(METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, one core each")
    parser.add_argument("--page", action="store_true", help="write README.md and the grids to --out")
    parser.add_argument("--out", type=Path, default=Path("docs/quality"), help="folder of the page (%(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=Path("out/quality"), help="folder of the stored runs (%(default)s)"
    )
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    store = args.runs / "rows.jsonl"
    stored = dict(map(json.loads, store.read_text().splitlines())) if store.exists() else {}
    jobs = [(t, m, s) for s in args.seeds for m in args.methods for t in args.targets]
    first = args.seeds[0]
    todo = [job for job in jobs if key(*job) not in stored or (job[2] == first and not shown(args.runs, *job).exists())]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, *job) for job in todo]):
            target, name, seed, row, images = done.result()
            job = (target, name, seed)
            stored[key(*job)] = row
            with store.open("a") as file:
                file.write(json.dumps([key(*job), row]) + "\n")
            torch.save(images, shown(args.runs, *job))
            figures = ", ".join(f"{figure} {value:.3g}" for figure, value in row.items() if isinstance(value, float))
            sys.stderr.write(f"{', '.join(map(str, job))}: {figures} {row['because']}\n")
    if args.page:  # all stored runs
        args.targets, args.methods, args.seeds = TARGETS, METHODS, range(10)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for target in args.targets:
        for name in args.methods:
            if seeds := [stored[k] for seed in args.seeds if (k := key(target, name, seed)) in stored]:
                rows[target, name] = seeds
    lines = [*overview(rows), "", *table(rows)]
    sys.stdout.write("\n".join(lines) + "\n")
    if args.page:
        draw(args.runs, args.out, rows, first)
        (args.out / "README.md").write_text(page(lines, first))


def shown(runs: Path, target: str, name: str, seed: int) -> Path:
    """The file with the images of a run."""
    return runs / f"{target}-{name}-{seed}.pt".replace(" ", "_")


def draw(runs: Path, folder: Path, rows: Iterable[tuple[str, str]], seed: int) -> None:
    """Draw one grid per target: source, some methods, reference; one latent per row."""
    source, content = load_generator("portraits"), Content.load()
    latents = sample(source, range(SHOWN), psi=1.0)
    for target in TARGETS:
        columns = {SOURCE: render_latents(source, latents, batch=8)}
        for name in (name for name in _DRAWN if (target, name) in rows and shown(runs, target, name, seed).exists()):
            columns[name] = torch.load(shown(runs, target, name, seed), weights_only=True)[:SHOWN]
        columns["reference"] = render(content(latents.ws), target)
        save_image(compare_grid(columns, title=f"{SOURCE} to {target}"), folder / f"{target.replace(' ', '_')}.png")


def page(lines: list[str], seed: int) -> str:
    """The text of docs/quality/README.md."""
    pictures = "\n\n".join(f"![{t}]({t.replace(' ', '_')}.png)" for t in TARGETS)
    return f"""# Adaptation quality in the built-in world

Printed by `python -m benchmarks.quality`: mean ± standard deviation over one to three seeds (their number is in the
column "passed"), 192 held-out latents. The docstring of `benchmarks/quality.py` describes the methods. Methods and
targets that are not listed have not been measured.

- **judge**: share of images that an independent network classifies as the target style.
- **attributes**: correlation of the attributes it predicts with those of the latent, relative to the source's images.
- **distance**: mean absolute difference to the reference image, 0..1; in brackets that of the source's image.
- **diversity**: mean pairwise distance of the images, relative to the reference images; far below 1 is mode collapse.
- **structure**: overlap of edges with the source's image; in brackets that of the reference image.
- **held-out quality, direction**: CLIP similarity and directional similarity by `{HELD_OUT}`; "used" where that guide
  took part in the training or in selecting the step.
- **passed**: judge >= 0.90, attributes >= 0.75, distance <= 0.85 of the source's, diversity 0.8 to 1.25.
- **higher bar**: judge >= 0.90, attributes >= 0.8, diversity 0.85 to 1.2, and distance <= 0.6 of the source's for
  styles whose source distance is at least {_LARGE_CHANGE:g}. An elf differs from a photo by the ears only.

The recipe was tuned with seed 0 on a part of these latents; other seeds were not used.

{chr(10).join(lines)}

Grids of seed {seed}: source, some methods and the reference; one latent per row.

{pictures}
"""


if __name__ == "__main__":
    main()
