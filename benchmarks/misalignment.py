"""Measure adaptations in the built-in world with text directions that are as wrong as those of real CLIP models.

    python -m benchmarks.misalignment --targets joker zombie --leaks 0 0.1 --methods recipe "recipe k=4"
    python -m benchmarks.misalignment --targets joker --leaks 0 --noises 0.4 --methods recipe
    python -m benchmarks.misalignment --page                   only write docs/misalignment.md from the stored rows
    python -m benchmarks.misalignment --fit-captions 40        only fit the CLIP model of the `captions` methods

A row is a target, a seed, a leak, a noise and a method; `nada_core.portraits.misalignment` defines leak and noise, and
the seed also decides which attributes leak. A noise above 0 comes with a modality gap of 0.8. Rows are stored in a
journal of JSON lines under a file lock. Any number of processes, on one or several machines that share the folder,
may run the same command: each takes the next row that no other has. A row whose process ended early is taken again
after --stale minutes.

Runs of full length are also measured on their way, so that the page can compare methods where they have reached equal
quality instead of after equal steps. Older rows lack this; --paths runs them again.

Methods:

- `recipe`: the recommended settings of the built-in generator, all layers. `recipe k=4`: the four layers (of nine)
  that the text moves most, selected every four steps.
- `paper`: the settings of StyleGAN-NADA with the learning rate that this small generator needs, all layers.
  `paper k=4`: four layers, selected in every step.
- `short` before a name: 100 steps instead of 400 (recipe) or 300 (paper), for a quarter of the time.
- `short recipe k=2`, `k=6`: other numbers of layers, which do not run by default.
- `recipe + covariance`: the recipe with the covariance loss, weight 1, as in the recipes `style` and `creature`.
  `recipe + covariance 3`: with weight 3, as `benchmarks.search` found for most targets. Both do not run by default.
- `short paper anchors`: AIR, as `benchmarks.misalignment_anchors` describes. Does not run by default.
- `oracle`: no CLIP model. The generator is fitted to the true pictures of 512 latents: what its weights can do.
  `oracle NAME`: the same with another parametrization.
- `short recipe` and a change, which do not run by default. `- angle`: the directional loss alone. `+ NAME`: one more
  loss term, or the weight regularizer, or the identity loss. `convolutions` and so on: another parametrization.
  `only global`: the global loss alone, as a naive method. `all guides`: the held-out CLIP model leads too.
- `captions` after a name: the CLIP model is one that was fitted by noisy captions alone, so that its text directions
  are wrong without a tilt. `--fit-captions` writes it into the folder of the rows, as it differs in every fit: all
  machines must use the same one. `python -m nada_core.portraits.check out/misalignment/guide-captions.json` measures
  it. `captions pairs`: the direction of 64 true pairs of pictures instead of the text's, which separates the effect of
  the image tower from that of the text. `portraits-64` after a name: this built-in CLIP model alone, which has the same
  architecture, for comparison. None of these rows run by default.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.misalignment_page import TABLES, Rows, draw, page
from benchmarks.misalignment_rows import (
    BY_CAPTIONS,
    BY_PAIRS,
    CAPTIONS,
    MAIN,
    METHODS,
    ORACLES,
    Job,
    Journal,
    further_weights,
    key,
    weights_digest,
    work,
)
from nada_core.portraits import TARGETS
from nada_core.portraits.fitting import caption_guide


def plan(
    targets: Iterable[str],
    seeds: Iterable[int],
    leaks: Iterable[float],
    noises: Iterable[float],
    methods: Iterable[str],
) -> list[Job]:
    """Return all rows, by seed first, so that a part of them holds whole comparisons.

    Oracles and methods whose direction is that of pairs read no text: no tilt.
    """
    untilted = {*ORACLES, *BY_PAIRS}
    jobs = [Job(t, s, *tilt, m) for s, t, *tilt, m in itertools.product(seeds, targets, leaks, noises, methods)]
    return list(dict.fromkeys(job._replace(leak=0.0, noise=0.0) if job.method in untilted else job for job in jobs))


def fit_captions(runs: Path, minutes: float) -> None:
    """Fit the CLIP model of the `captions` methods; it appears in the folder of the rows when it is complete."""
    torch.set_num_threads(1)
    fitted = caption_guide.fit(runs / "fit", minutes, log=runs / "fit.log")
    for suffix in (".json", ".safetensors"):
        fitted.with_suffix(suffix).replace(runs / f"{CAPTIONS}{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.misalignment", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--methods", nargs="+", default=list(MAIN), choices=tuple(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--leaks", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--noises", nargs="+", type=float, default=[0.0])
    parser.add_argument("--stale", type=float, default=60.0, help="minutes after which an unfinished row is run again")
    parser.add_argument("--fit-captions", type=float, metavar="MINUTES", help="run nothing; fit the caption guide")
    parser.add_argument("--paths", action="store_true", help="run rows again that were not measured on their way")
    parser.add_argument("--page", action="store_true", help="run nothing; write the page and grids of all stored rows")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("out/misalignment"), help="folder of the rows (%(default)s)")
    args = parser.parse_args()
    guide = args.runs / f"{CAPTIONS}.safetensors"
    if args.fit_captions:
        if guide.exists():
            parser.error(f"{guide} exists, and stored rows depend on it; delete it to fit another one")
        fit_captions(args.runs, args.fit_captions)
        return
    if (
        not args.page
        and not guide.exists()
        and (needing := [m for m in args.methods if m in {*BY_CAPTIONS, *BY_PAIRS}])
    ):
        parser.error(f"{', '.join(needing)} need {guide}; run --fit-captions 40 first")
    journal = Journal(args.runs / "rows.jsonl", args.stale * 60, "path" if args.paths else "")
    weights, further = weights_digest(), further_weights(args.runs)
    by_key = {
        key(job, weights, further): job for job in plan(args.targets, args.seeds, args.leaks, args.noises, args.methods)
    }
    if not args.page:
        work(by_key, args.runs, journal)
    stored = journal.rows()
    rows: Rows = {job: stored[k] for k, job in by_key.items() if k in stored}
    if args.page:  # all rows whose settings are still those of their method
        known = (row for row in stored.values() if row["job"][-1] in METHODS)
        rows = {job: row for row in known if key(job := Job(*row["job"]), weights, further) in stored}
        folder = args.out / "misalignment"
        folder.mkdir(parents=True, exist_ok=True)
        (args.out / "misalignment.md").write_text(page(rows, draw(args.runs, rows, folder)))
    for table in TABLES.values():
        sys.stdout.write("\n".join(table(rows)) + "\n\n")


if __name__ == "__main__":
    main()
