"""Find the settings of an adaptation (StyleGAN-NADA, arXiv:2108.00946) that a held-out CLIP model scores highest.

See `study` for the search, `search_space` for what it varies, and `trials` for the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..guidance.reconstruction import FaceRecognizer, Features
from ..guidance.shifts import Shift
from ..io.images import save_image
from ..io.plots import plot_bars, plot_lines
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .adapt import Step
from .config import AdaptConfig, LayerChoice
from .layer_selection import selectable_layers
from .provenance import run_fingerprint
from .recipes import Recipe
from .search_space import SearchConfig, Space
from .study import open_study, run_trials
from .trials import Measured, TrialRunner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_MIN_SCORES = 4  # different ones, to tell which setting is important


@dataclass(frozen=True)
class Progress:
    """A training step of a search: the trials that are finished, and the highest score so far."""

    finished: int
    trials: int
    best: float | None
    step: Step


@dataclass(frozen=True)
class FoundSettings:
    """A study and its result; read from the storage at every call, other workers included.

    Attributes:
        own: the generator's own settings, which the recipe changes.
        texts: further attributes of the recipe.
    """

    study: Study
    space: Space
    own: AdaptConfig
    texts: Mapping[str, Any]

    def trials(self) -> list[FrozenTrial]:
        """The trials that have ended by themselves; those that were cut short are PRUNED."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]

    def best(self) -> FrozenTrial:
        """Raises ValueError when no trial was completed."""
        try:
            return self.study.best_trial
        except ValueError:
            raise ValueError(
                "No trial was completed, so there are no settings to return; search on with more trials, or start from "
                "a lower learning rate."
            ) from None

    def config(self) -> AdaptConfig:
        """The settings of the best trial."""
        return self.space.config(self.best().params)

    def recipe(self) -> Recipe:
        """The settings of the best trial as changes to the generator's own."""
        return Recipe.between(self.own, self.config(), **self.texts)

    def describe(self) -> str:
        """One line for each trial, the best first: its figures, settings and time."""
        order = sorted(self.trials(), key=lambda trial: (trial.state.name, -(trial.value or 0)))
        return "\n".join(_describe_trial(trial, self.space) for trial in order)

    def plot(self) -> Tensor:
        """Plot the score of every trial and, if there are enough, the importance of the settings."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        trials, curves = self.trials(), dict[str, list[float]]()
        for label, state in (("score", "COMPLETE"), ("cut short", "PRUNED")):
            values = [(trial.value if trial.state.name == state else None) for trial in trials]
            curves[label] = [math.nan if value is None else value for value in values]
        curves["best so far"] = list(accumulate(curves["score"], max, initial=-math.inf))[1:]
        plots = [plot_lines(curves, "Search", x_label="trial")]
        if len({value for value in curves["score"] if math.isfinite(value)}) >= _MIN_SCORES:
            importance = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
            plots.append(plot_bars(importance, "Importance of the settings"))
        return torch.cat(plots, dim=2)


def _describe_trial(trial: FrozenTrial, space: Space) -> str:
    values, is_cut = trial.user_attrs, trial.state.name == "PRUNED"
    figures = [f"{name} {values[name]:+.4f}" for name in ("score", "gain") if name in values]
    figures += [f"{name} {values[name]:.2f}" for name in ("direction", "diversity", "correspondence") if name in values]
    seconds = f"{values['seconds']:.0f} s" if "seconds" in values else ""
    note = "diverged" if "diverged" in values else "cut short" if is_cut else ""
    start = "the settings to start from" if "is_base" in values else ""
    parts = [", ".join(figures), space.describe(trial.params), seconds, note, start]
    return f"trial {trial.number}: " + "; ".join(filter(None, parts))


def find_settings(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    judge: ClipGuide,
    base: AdaptConfig | None = None,
    config: SearchConfig | None = None,
    storage: str | Path | None = None,
    strips: str | Path | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> FoundSettings:
    """Search settings of `adapt` that a held-out CLIP model scores highest, or continue an earlier search.

    Args:
        judge: a CLIP model that is not one of the guides.
        base: settings to start from, of which `keep_every` and `patience` do not matter. None takes those recommended
            by the generator's file.
        storage: a journal file or the URL of a database, such as sqlite:///study.db, where any number of workers with
            equal inputs, on machines whose clocks agree, share one study. None: memory.
        strips: a folder for `trial-000.png` and so on: the same latents before and after each trial.
        perceptual, identity: as in `adapt`.
        on_step: called after every training step; an exception it raises ends the search. Its trial is queued again.
        on_wait: called about once a second while other workers run the last trials.

    Raises:
        ValueError: for inputs that do not fit each other, before the first trial, and without Optuna.
    """
    config = config or SearchConfig()
    own = generator.recommended_settings("adapt", AdaptConfig)
    base = replace(base or own, keep_every=0, patience=0)
    space = Space(base, config.over, len(selectable_layers(LayerChoice(mode="adaptive", count=1), generator)))
    _check_networks(config.over, perceptual, identity)
    runner = TrialRunner(generator, guides, shift, judge, base, perceptual, identity)
    name = run_fingerprint(generator, guides, shift, base, judge, perceptual, identity)
    study = open_study(f"{name} {' '.join(config.over)}", storage)
    found = FoundSettings(study, space, own, _texts(shift, runner.guides, judge))

    def evaluate(number: int, settings: AdaptConfig, is_behind: Callable[[int, Measured], bool]) -> Measured:
        finished = found.trials()
        best = max((trial.value or 0.0 for trial in finished if trial.state.name == "COMPLETE"), default=None)

        def report(step: Step) -> None:
            if on_step is not None:
                on_step(Progress(len(finished), config.trials, best, step))

        measured, strip = runner.run(settings, is_behind, report)
        if strips is not None:
            save_image(strip, strip_path(strips, number))
        return measured

    run_trials(study, space, evaluate, config, base.seed, on_wait)
    return found


def strip_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"trial-{number:03}.png"


def _texts(shift: Shift, guides: Sequence[tuple[ClipGuide, float]], judge: ClipGuide) -> dict[str, Any]:
    source, target = getattr(shift, "source", "Photo"), getattr(shift, "target", "")
    return {
        "about": f"found by a search for {target or 'images'}, measured by {judge.name}",
        "source": source,
        "targets": (target,) if target else (),
        "advice": "Other targets may need other settings.",
        "guides": tuple(guide.name for guide, _ in guides),
    }


def _check_networks(over: Sequence[str], perceptual: Any, identity: Any) -> None:
    for name, network in (("lpips", perceptual), ("id", identity)):
        if name in over and network is None:
            raise ValueError(f"Got {name} to search without its network; give the network, or omit {name}.")
