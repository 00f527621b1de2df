"""Validation by a held-out CLIP model: the score, the chosen checkpoint, early stopping, and resuming."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import changed, copied, generator, guide
from torch import Tensor

from nada_core.adaptation.adapt import Adaptation, adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.adaptation.validation import DIVERSITY_FLOOR, Candidate, ValidationHistory
from nada_core.guidance import metrics
from nada_core.guidance.shifts import ImageShift, TextShift
from nada_core.io.errors import CheckpointError
from nada_core.models.generator import Generator

SHIFT = TextShift("photo", "sketch")
JUDGE = 7


def settings(**changes: Any) -> AdaptConfig:
    return AdaptConfig(**({"steps": 12, "lr": 0.1, "warmup": 0, "keep_every": 3} | changes))


def run(config: AdaptConfig, on_step: Any = None, **more: Any) -> Adaptation:
    return adapt(generator(), guide(), SHIFT, config, on_step, judge=guide(JUDGE), **more)


def candidates(result: Adaptation) -> list[Candidate]:
    return [Candidate(**record["candidate"]) for record in result.history if "candidate" in record]


def best(made: list[Candidate]) -> int:
    return ValidationHistory(made).best_index


# ---- the score ----------------------------------------------------------------------------------------------------


def test_score_is_gain_times_direction_above_the_diversity_floor() -> None:
    assert Candidate(1, 0.2, 0.5, 0.9).score == pytest.approx(0.1)
    assert Candidate(1, 0.2, 0.5, DIVERSITY_FLOOR / 2).score == pytest.approx(0.05)
    assert Candidate(1, 0.2, -0.5, 0.9).score == 0.0
    assert Candidate(1, -0.2, -0.5, 0.1).score == -0.2  # two negative factors must not give a positive score


def test_best_is_the_first_of_equal_scores() -> None:
    made = [Candidate(step, gain, 0.5, 1.0) for step, gain in ((3, 0.1), (6, 0.3), (9, 0.3), (12, 0.2))]
    assert best(made) == 1
    stopped = [ValidationHistory(made[:count]).is_over(2) for count in range(5)]
    assert stopped == [False, False, False, False, True]
    assert not ValidationHistory(made).is_over(0) and not ValidationHistory().is_over(2)


def test_history_keeps_the_values_of_the_best() -> None:
    history = ValidationHistory()
    for step, gain in ((1, 0.1), (2, 0.3), (3, 0.2)):
        history.add(Candidate(step, gain, 0.5, 1.0), lambda step=step: {"step": torch.tensor(step)})
    assert history.best_values["step"].item() == 2


def test_explanation_names_steps_figures_and_the_early_stop() -> None:
    made = [Candidate(3, 0.1, 0.5, 1.0), Candidate(6, 0.3, 0.5, 1.0), Candidate(9, 0.2, 0.6, 0.4)]
    text = ValidationHistory(made).explain("ViT-L-14", 1)
    assert text.startswith("Step 6 is the best of 3 checkpoints by ViT-L-14: quality +0.300")
    assert "Step 9: quality +0.200, direction 0.60, diversity 0.40" in text and text.endswith("no improvement.")
    assert "Stopped" not in ValidationHistory(made).explain("x", 0) and ValidationHistory().explain("x", 0) == ""


# ---- the run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema": 0.6},
        {"layers": LayerChoice(train="low-rank")},
        {"layers": LayerChoice(train="offsets"), "ema": 0.6},
        {"steps": 11},
        {"terms": {"global": 1.0}},
    ],
)
def test_result_is_the_best_candidate(change: dict[str, Any]) -> None:
    """The same run is stopped at the chosen step, and gives the same weights."""
    config = settings(**change)
    whole = run(config)
    made = candidates(whole)
    assert [one.steps for one in made] == [3, 6, 9, min(12, config.steps)] and len(whole.history) == config.steps
    chosen = made[best(made)]
    short = adapt(generator(), guide(), SHIFT, settings(**{**change, "steps": chosen.steps, "keep_every": 0}))
    assert not changed(short.generator.state_dict(), whole.generator.state_dict())
    assert f"Step {chosen.steps} is the best" in whole.chosen_because and "tiny-7" in whole.chosen_because
    assert whole.domain.provenance["chosen_because"] == whole.chosen_because
    assert json.loads(json.dumps(whole.history))[2]["candidate"] == asdict(made[0])


def test_candidate_measures_the_weights_it_would_return() -> None:
    made, eye = generator(), guide(JUDGE)
    result = run(settings(steps=3, ema=0.6))
    (one,) = candidates(result)
    ws = made.map(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    before, after = (metrics.embed(eye, g.synthesize(ws).detach()) for g in (made, result.generator))
    goal = SHIFT.target_embedding(eye)
    gain = metrics.quality(after, goal) - metrics.quality(before, goal)
    assert one.gain == pytest.approx(gain, abs=1e-5)
    assert one.direction == pytest.approx(metrics.direction(before, after, SHIFT.direction(eye)), abs=1e-5)
    assert one.diversity == pytest.approx(metrics.diversity(after) / metrics.diversity(before), rel=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_validation_changes_nothing_in_the_run(ema: float) -> None:
    def weights(config: AdaptConfig, **more: Any) -> tuple[list[dict[str, Tensor]], list[float]]:
        seen: list[dict[str, Tensor]] = []
        result = adapt(
            generator(), guide(), SHIFT, config, lambda step: seen.append(copied(step.generator.state_dict())), **more
        )
        return seen, [record["loss"] for record in result.history]

    plain, losses = weights(settings(keep_every=0, ema=ema))
    looked, same = weights(settings(ema=ema), judge=guide(JUDGE))
    assert losses == same and not any(changed(a, b) for a, b in zip(plain, looked, strict=True))


def test_run_without_judge_stores_no_candidates(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    result = adapt(generator(), guide(), SHIFT, settings(keep_every=0), autosave=path)
    assert not candidates(result) and result.chosen_because == ""
    assert "chosen_because" not in result.domain.provenance
    assert not [name for name in load_file(path) if name.startswith("best.")]


def test_run_stops_early_without_improvement(tmp_path: Path) -> None:
    config, path = settings(steps=60, keep_every=2, patience=2, lr=0.5), tmp_path / "run.safetensors"
    result = run(config, autosave=path)
    made = candidates(result)
    assert len(result.history) < 60 and len(made) - 1 - best(made) == 2
    assert "Stopped early" in result.chosen_because
    again = run(config, lambda _: pytest.fail("it was over"), autosave=path, resume=True)
    assert not changed(result.generator.state_dict(), again.generator.state_dict())
    assert again.history == result.history and again.chosen_because == result.chosen_because


@pytest.mark.parametrize("change", [{"ema": 0.6}, {"layers": LayerChoice(train="low-rank")}, {"lr": 0.5}])
def test_resumed_run_chooses_the_same_checkpoint(tmp_path: Path, change: dict[str, Any]) -> None:
    config, path = settings(autosave_every=4, **change), tmp_path / "run.safetensors"
    whole = run(config)

    def kill(step: Any) -> None:
        if step.index == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, kill, autosave=path)
    resumed = run(config, autosave=path, resume=True)
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())
    assert resumed.history == whole.history and resumed.chosen_because == whole.chosen_because
    with pytest.raises(CheckpointError, match="belongs to another run"):
        adapt(generator(), guide(), SHIFT, config, autosave=path, resume=True, judge=guide(8))


def test_validation_works_with_style_images() -> None:
    style = ImageShift(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    result = adapt(generator(), guide(), style, settings(), judge=guide(JUDGE))
    assert len(candidates(result)) == 4


def test_validation_uses_the_class_of_the_run() -> None:
    made: Generator = generator(c_dim=3)
    first, second = (adapt(made, guide(), SHIFT, settings(label=label), judge=guide(JUDGE)) for label in (0, 2))
    assert candidates(first) != candidates(second)


def test_unusable_judges_are_refused() -> None:
    for config, judge, told in (
        (settings(), None, "keep_every 3 without a judge"),
        (settings(keep_every=0), guide(JUDGE), "keep_every is 0"),
        (settings(), guide(0), "tiny-0 as judge"),
        (settings(), guide(JUDGE).to("meta"), "tiny-7 on meta"),
    ):
        with pytest.raises(ValueError, match=told):
            adapt(generator(), guide(), SHIFT, config, judge=judge)
    with pytest.raises(ValueError, match="patience"):
        settings(keep_every=0, patience=3)
