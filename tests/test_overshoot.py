"""Runs that go too far and what is kept of them: the score, the choice, the early end, and going on after a kill."""

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
from nada_core.adaptation.validation import DIVERSITY_FLOOR, Candidate, best, is_over, why
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


# ---- the choice ---------------------------------------------------------------------------------------------------


def test_the_score_is_gain_times_direction_unless_pictures_are_too_alike() -> None:
    assert Candidate(1, 0.2, 0.5, 0.9).score == pytest.approx(0.1)
    assert Candidate(1, 0.2, 0.5, DIVERSITY_FLOOR / 2).score == pytest.approx(0.05)
    assert Candidate(1, 0.2, -0.5, 0.9).score == 0.0
    assert Candidate(1, -0.2, -0.5, 0.1).score == -0.2  # two faults make no merit


def test_the_first_of_the_best_is_chosen() -> None:
    made = [Candidate(step, gain, 0.5, 1.0) for step, gain in ((3, 0.1), (6, 0.3), (9, 0.3), (12, 0.2))]
    assert best(made) == 1
    assert [is_over(made[:count], 2) for count in range(5)] == [False, False, False, False, True]
    assert not is_over(made, 0) and not is_over([], 2)


def test_it_is_said_why() -> None:
    made = [Candidate(3, 0.1, 0.5, 1.0), Candidate(6, 0.3, 0.5, 1.0), Candidate(9, 0.2, 0.6, 0.4)]
    told = why(made, "ViT-L-14", True)
    assert told.startswith("After 6 steps, the best of 3 candidates to the held-out guide ViT-L-14: quality +0.300")
    assert "After 9: quality +0.200, direction 0.60, diversity 0.40" in told and told.endswith("anything better.")
    assert "After 6" not in why(made[:2], "x", False).removeprefix("After 6") and "ended" not in why(made, "x", False)


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
def test_what_is_returned_is_the_best_candidate(change: dict[str, Any]) -> None:
    """The same run is stopped at the chosen step, and gives the same weights."""
    config = settings(**change)
    whole = run(config)
    made = candidates(whole)
    assert [one.steps for one in made] == [3, 6, 9, min(12, config.steps)] and len(whole.history) == config.steps
    chosen = made[best(made)]
    short = adapt(generator(), guide(), SHIFT, settings(**{**change, "steps": chosen.steps, "keep_every": 0}))
    assert not changed(short.generator.state_dict(), whole.generator.state_dict())
    assert f"After {chosen.steps} steps" in whole.chosen_because and "tiny-7" in whole.chosen_because
    assert whole.domain.provenance["chosen_because"] == whole.chosen_because
    assert json.loads(json.dumps(whole.history))[2]["candidate"] == asdict(made[0])


def test_candidates_are_measured_on_the_pictures_they_would_give() -> None:
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
def test_looking_changes_nothing_in_the_run(ema: float) -> None:
    def weights(config: AdaptConfig, **more: Any) -> tuple[list[dict[str, Tensor]], list[float]]:
        seen: list[dict[str, Tensor]] = []
        result = adapt(
            generator(), guide(), SHIFT, config, lambda step: seen.append(copied(step.generator.state_dict())), **more
        )
        return seen, [record["loss"] for record in result.history]

    plain, losses = weights(settings(keep_every=0, ema=ema))
    looked, same = weights(settings(ema=ema), judge=guide(JUDGE))
    assert losses == same and not any(changed(a, b) for a, b in zip(plain, looked, strict=True))


def test_nothing_is_paid_for_what_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    result = adapt(generator(), guide(), SHIFT, settings(keep_every=0), autosave=path)
    assert not candidates(result) and result.chosen_because == ""
    assert "chosen_because" not in result.domain.provenance
    assert not [name for name in load_file(path) if name.startswith("best.")]


def test_the_run_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    config, path = settings(steps=60, keep_every=2, patience=2, lr=0.5), tmp_path / "run.safetensors"
    result = run(config, autosave=path)
    made = candidates(result)
    assert len(result.history) < 60 and len(made) - 1 - best(made) == 2
    assert "for lack of anything better" in result.chosen_because
    again = run(config, lambda _: pytest.fail("it was over"), autosave=path, resume=True)
    assert not changed(result.generator.state_dict(), again.generator.state_dict())
    assert again.history == result.history and again.chosen_because == result.chosen_because


@pytest.mark.parametrize("change", [{"ema": 0.6}, {"layers": LayerChoice(train="low-rank")}, {"lr": 0.5}])
def test_a_killed_run_chooses_the_same(tmp_path: Path, change: dict[str, Any]) -> None:
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


def test_style_images_are_judged_too() -> None:
    style = ImageShift(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    result = adapt(generator(), guide(), style, settings(), judge=guide(JUDGE))
    assert len(candidates(result)) == 4


def test_a_class_is_judged_by_its_own_pictures() -> None:
    made: Generator = generator(c_dim=3)
    first, second = (adapt(made, guide(), SHIFT, settings(label=label), judge=guide(JUDGE)) for label in (0, 2))
    assert candidates(first) != candidates(second)


def test_judges_that_make_no_sense_are_refused() -> None:
    for config, judge, told in (
        (settings(), None, "nobody is there to look"),
        (settings(keep_every=0), guide(JUDGE), "would never look"),
        (settings(), guide(0), "as judge and as guide"),
        (settings(), guide(JUDGE).to("meta"), "the guide tiny-7 on meta"),
    ):
        with pytest.raises(ValueError, match=told):
            adapt(generator(), guide(), SHIFT, config, judge=judge)
    with pytest.raises(ValueError, match="no looks to count"):
        settings(keep_every=0, patience=3)
