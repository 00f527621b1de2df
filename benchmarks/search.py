"""Measure whether a search finds better settings than the recipe, by a judge that the search does not use.

    python -m benchmarks.search --targets zombie joker --leak 0.1 --trials 20 --steps 100

Every target is searched from the recommended settings with the text direction of all CLIP models, the held-out one
too, misaligned by `--leak` (see `benchmarks.misalignment`). The recipe and the settings that were found are then
compared by the classifier of the built-in world and the true pictures. Studies are journal files in `--runs`: the same
command continues them, and several processes share them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from nada_core import AdaptConfig, SearchConfig, TextShift, adapt, find_settings, load_generator, load_guide, save_image
from nada_core.portraits import GUIDES, HELD_OUT, RECIPE, SOURCE, TARGETS, Judge, Verdict, examine
from nada_core.portraits.content import Content
from nada_core.portraits.misalignment import PictureSpan, Tilt, misalign


class Comparison:
    """Searches settings for targets and compares them with those to start from."""

    def __init__(self, leak: float, base: AdaptConfig, search: SearchConfig, runs: Path) -> None:
        self.tilt, self.base, self.search, self.runs = Tilt(leak), base, search, runs
        self.source, self.content, self.judge = load_generator("portraits"), Content.load(), Judge.load()
        self.guides, self.held_out = [(load_guide(name), weight) for name, weight in GUIDES], load_guide(HELD_OUT)
        self.models = [*(guide for guide, _ in self.guides), self.held_out]
        self.spans = {guide.fingerprint: PictureSpan.measure(guide) for guide in self.models}

    def rows(self, target: str) -> str:
        """Return the rows of a target, after its search."""
        shift = misalign(TextShift(SOURCE, target), self.models, self.tilt, self.spans)
        folder = self.runs / f"{target.replace(' ', '-')}-{self.tilt.leak:g}-{self.base.steps}"
        places = folder / "study.journal", folder / "trials"
        found = find_settings(self.source, self.guides, shift, self.held_out, self.base, self.search, *places)
        save_image(found.plot(), folder / "search.png")
        (folder / "trials.txt").write_text(found.describe() + "\n", encoding="utf-8")
        start = next(trial for trial in found.trials() if "is_base" in trial.user_attrs)
        rows = []
        for name, config, trial in (("recipe", self.base, start), ("found", found.config(), found.best())):
            adapted = adapt(self.source, self.guides, shift, config).generator
            verdict = examine(self.judge, self.content, self.source, adapted, target)
            rows.append(row(target, name, trial.value or 0.0, verdict, found.space.describe(trial.params)))
        return "\n".join(rows)


def row(target: str, name: str, score: float, verdict: Verdict, settings: str) -> str:
    near = f"{verdict.distance:.3f} ({verdict.source_distance:.3f})"
    figures = f"{verdict.judge:.2f} | {verdict.kept:.2f} | {near} | {verdict.diversity:.2f}"
    return f"| {target} | {name} | {score:+.3f} | {figures} | {settings} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS, metavar="TARGET")
    parser.add_argument("--leak", type=float, default=0.1)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="of the recipe (%(default)s)")
    parser.add_argument("--over", nargs="+", default=list(SearchConfig().over), metavar="SETTING")
    parser.add_argument("--runs", type=Path, default=Path("out/search"), help="folder of the studies (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    search = SearchConfig(trials=args.trials, over=tuple(args.over))
    comparison = Comparison(args.leak, replace(RECIPE, steps=args.steps), search, args.runs)
    sys.stdout.write("| target | settings | score | judge | kept | distance (source's) | diversity | |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
    for target in args.targets:
        sys.stdout.write(comparison.rows(target) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
