"""Search of settings: the study, workers that share it, the score of a trial, and recipe files."""

from __future__ import annotations

import math
import multiprocessing
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import generator, guide

from nada_core.adaptation import study as studies
from nada_core.adaptation import trials
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.adaptation.recipes import RECIPES, Recipe, load_recipe, save_recipe
from nada_core.adaptation.search import FoundSettings, find_settings
from nada_core.adaptation.search_space import SearchConfig, Space
from nada_core.adaptation.study import open_study, run_trials
from nada_core.adaptation.trials import Measured
from nada_core.adaptation.validation import Candidate
from nada_core.guidance.metrics import correspondence
from nada_core.guidance.shifts import TextShift
from nada_core.portraits import RECIPE

pytest.importorskip("optuna")

SHIFT = TextShift("photo", "sketch")
JUDGE = 7
SPACE = Space(RECIPE, SearchConfig().over, 9)


def measured(score: float) -> Measured:
    return Measured(Candidate(1, score, 1.0, 1.0), 1.0)


def planted(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
    """Highest, 1, at three times the learning rate, 4 layers and a covariance weight of 12; below 0 at the base."""
    distance = abs(math.log(config.lr / (3 * RECIPE.lr))) / 2 + abs(config.terms.get("covariance", 0.0) - 12) / 40
    distance += 0.05 * abs(4 - (config.layers.count if config.layers.mode == "adaptive" else 10))
    for check in (1, 2, 3):
        if is_behind(check, measured(1 - distance - 0.5 / check)):
            break
    return measured(1 - distance)


def search(**changes: Any) -> FoundSettings:
    over = ("lr", "steps", "angle")
    given = {"base": AdaptConfig(steps=4, lr=0.02), "config": SearchConfig(trials=3, over=over), "judge": guide(JUDGE)}
    return find_settings(generator(), guide(), SHIFT, **{**given, **changes})


# ---- the study ----------------------------------------------------------------------------------------------------


def test_planted_best_is_found_in_9_of_10_runs() -> None:
    scores = []
    for seed in range(10):
        study = open_study("planted", None)
        run_trials(study, SPACE, planted, SearchConfig(trials=40), seed)
        scores.append(study.best_value)
    assert sum(score > 0.85 for score in scores) >= 9, scores


@pytest.mark.parametrize(
    "base", [RECIPE, AdaptConfig(), AdaptConfig(layers=LayerChoice(mode="adaptive", count=3), terms={"angle": 2.0})]
)
def test_base_parameters_give_the_base_and_fit_the_ranges(base: AdaptConfig) -> None:
    space = Space(base, ("lr", "steps", "layers", "angle", "relation", "weight_reg"), 9)
    assert space.config(space.base_params) == base
    for name, distribution in space.distributions().items():
        assert distribution._contains(distribution.to_internal_repr(space.base_params[name])), name


def test_first_trial_is_the_base_and_is_never_cut_short() -> None:
    study = open_study("base", None)
    configs: list[AdaptConfig] = []

    def worse_at_first(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        configs.append(config)
        behind = is_behind(1, measured(number + (config != RECIPE)))
        return measured(0.5 if behind else 0.0)

    for _ in range(3):
        study.enqueue_trial({"lr": 0.01})
    run_trials(study, SPACE, worse_at_first, SearchConfig(trials=4), 0)
    base = next(trial for trial in study.trials if trial.user_attrs.get("is_base"))
    assert RECIPE in configs and base.state.name == "COMPLETE"
    fresh = open_study("fresh", None)
    run_trials(fresh, SPACE, planted, SearchConfig(trials=2), 0)
    assert SPACE.config(fresh.trials[0].params) == RECIPE


def test_trials_behind_are_cut_short_and_divergence_is_a_result() -> None:
    def diverges(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        if number == 1:
            raise FloatingPointError("loss is nan")
        return measured(math.nan) if number == 2 else planted(number, config, is_behind)

    study = open_study("diverges", None)
    run_trials(study, SPACE, diverges, SearchConfig(trials=20), 0)
    cut = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert [trial.number for trial in cut if "diverged" in trial.user_attrs] == [1, 2] and len(cut) > 4
    assert study.trials[1].user_attrs["diverged"] == "loss is nan"
    assert len(study.trials) == 20 and study.best_value > 0.3


def test_search_is_resumed_from_its_storage(tmp_path: Path) -> None:
    storage = tmp_path / "deeper" / "study.journal"
    run_trials(open_study("a", storage), SPACE, planted, SearchConfig(trials=3), 0)
    run_trials(open_study("a", storage), SPACE, planted, SearchConfig(trials=5), 0)
    resumed = open_study("a", storage).trials
    whole = open_study("a", None)
    run_trials(whole, SPACE, planted, SearchConfig(trials=5), 0)
    assert [trial.params for trial in resumed] == [trial.params for trial in whole.trials] and len(resumed) == 5
    run_trials(open_study("a", storage), SPACE, lambda *_: pytest.fail("it was over"), SearchConfig(trials=5), 0)


def test_no_trial_starts_after_the_time_is_over() -> None:
    study = open_study("time", None)

    def slow(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        time.sleep(0.02)
        return measured(0.0)

    run_trials(study, SPACE, slow, SearchConfig(trials=1000, minutes=0.001), 0)
    assert 1 <= len(study.trials) < 20


def test_interrupted_trial_is_queued_again(tmp_path: Path) -> None:
    def interrupt(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        if number == 2:
            raise KeyboardInterrupt
        return planted(number, config, is_behind)

    study = open_study("stop", tmp_path / "study.journal")
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, SPACE, interrupt, SearchConfig(trials=4), 0)
    run_trials(study, SPACE, planted, SearchConfig(trials=4), 0)
    assert [trial.state.name == "FAIL" for trial in study.trials] == [False, False, True, False, False]
    assert study.trials[3].params == study.trials[2].params


def test_workers_that_ask_at_once_propose_different_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (open_study("shared", tmp_path / "study.journal") for _ in range(2))
    ask = first.ask

    def ask_second(*args: Any) -> Any:
        studies._run_trial(second, SPACE, lambda number, config, is_behind: measured(config.lr), 0)
        return ask(*args)

    monkeypatch.setattr(first, "ask", ask_second)
    studies._run_trial(first, SPACE, lambda number, config, is_behind: measured(config.lr), 0)
    assert len({trial.params["lr"] for trial in first.trials}) == 2


# ---- workers ------------------------------------------------------------------------------------------------------


def work(place: str, started: Any, hangs_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, in a process of its own. started: a queue that gets the number of every trial."""
    for name, seconds in (("_BEAT", 0.1), ("_STALE", 1.5), ("_POLL", 0.1)):
        monkeypatch.setattr(studies, name, seconds)
    done = 0

    def evaluate(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        nonlocal done
        done += 1
        started.put(number)
        time.sleep(600 if done == hangs_at else 0.05)
        return measured(config.lr)

    run_trials(open_study("shared", place), Space(RECIPE, ("lr",), 9), evaluate, SearchConfig(trials=8), 0)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be forked")
@pytest.mark.parametrize("storage", ["{folder}/study.journal", "sqlite:///{folder}/study.db"])
def test_killed_worker_loses_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    place, processes = storage.format(folder=tmp_path), multiprocessing.get_context("fork")
    queues = [processes.Queue(), processes.Queue()]
    workers = [
        processes.Process(target=work, args=(place, queue, hangs_at, monkeypatch))
        for queue, hangs_at in zip(queues, (3, 0), strict=True)
    ]
    victim, survivor = workers
    victim.start()
    numbers = [queues[0].get(timeout=60)]
    survivor.start()
    numbers += [queues[0].get(timeout=60) for _ in range(2)]  # it never ends the third trial
    queues[1].get(timeout=60)  # both are at work
    victim.kill()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0]

    made = open_study("shared", place).trials
    lost = made[numbers[2]]
    states = [trial.state.name for trial in made]
    assert lost.state.name == "FAIL" and states.count("COMPLETE") == 8 and len(made) == 9
    assert [trial.params for trial in made].count(lost.params) == 2  # once again by the survivor
    assert all(made[number].state.name == "COMPLETE" for number in numbers[:2])


def test_trial_that_kills_its_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_STALE", -1.0)
    study = open_study("kills", None)
    study.enqueue_trial({"lr": 0.02})
    for _ in range(5):
        if any(trial.state.name == "WAITING" for trial in study.trials):
            study.ask(SPACE.distributions())
        studies._retry_lost_trials(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * studies._ATTEMPTS


def test_lost_trial_is_queued_again_after_the_clock_was_set_back() -> None:
    study = studies.open_study("search", None)
    trial = study.ask()
    trial.set_user_attr("alive", time.time())
    studies._retry_lost_trials(study)
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    trial.set_user_attr("alive", time.time() + 10**6)
    studies._retry_lost_trials(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_worker_that_was_taken_for_dead_goes_on() -> None:
    study = open_study("slow", None)

    def frozen(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        if number == 1:
            studies._queue_again(study, study.trials[1], 2)  # as another worker does
        return planted(number, config, is_behind)

    run_trials(study, SPACE, frozen, SearchConfig(trials=3), 0)
    assert [trial.state.name for trial in study.trials].count("FAIL") == 1
    assert study.trials[2].params == study.trials[1].params and study.trials[2].state.name != "FAIL"


# ---- the trials of an adaptation ----------------------------------------------------------------------------------


def test_search_of_an_adaptation(tmp_path: Path) -> None:
    storage, steps = tmp_path / "study.journal", []
    found = search(storage=storage, strips=tmp_path, on_step=steps.append)
    assert len(found.trials()) == 3 and sorted(path.name for path in tmp_path.glob("*.png")) == [
        "trial-000.png",
        "trial-001.png",
        "trial-002.png",
    ]
    assert found.best().value >= found.trials()[0].value and steps[0].best is None and steps[-1].finished == 2
    lines = found.describe().splitlines()
    assert len(lines) == 3 and sum("the settings to start from" in line for line in lines) == 1
    assert found.plot().shape[:2] == (1, 3)
    before = [trial.params for trial in found.trials()]
    again = search(storage=storage, config=SearchConfig(trials=4, over=("lr", "steps", "angle")))
    assert [trial.params for trial in again.trials()][:3] == before and len(found.trials()) == 4
    other = search(storage=storage, base=AdaptConfig(steps=4, lr=0.03, warmup=0), config=SearchConfig(trials=1))
    assert other.study.study_name != found.study.study_name


def test_score_of_a_trial_is_that_of_its_last_step() -> None:
    """So that `adapt` with the found settings gives what was measured, without the judge and with any schedule."""
    base = AdaptConfig(steps=6, lr=0.05, warmup=0, schedule="cosine")
    found = search(base=base, config=SearchConfig(trials=1))
    runner = trials.TrialRunner(generator(), guide(), SHIFT, guide(JUDGE), base)
    result = trials.train(trials.RunInputs(generator(), runner.guides, SHIFT, found.config()))
    assert runner._measure(result.generator, 6)[0].score == pytest.approx(found.best().value, abs=1e-6)


def noise(source: torch.Tensor) -> torch.Tensor:
    return torch.rand(source.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_correspondence_of_noise_is_0() -> None:
    images = torch.nn.functional.interpolate(torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 32)
    assert correspondence(images, 0.5 - images * 0.3) == pytest.approx(-1, abs=1e-3)
    assert correspondence(images, images * 0.3 + 0.1) == pytest.approx(1, abs=1e-3)
    assert abs(correspondence(images, noise(images))) < 0.1
    assert correspondence(images, noise(images[:1]).expand_as(images)) == pytest.approx(0, abs=1e-3)


class Noisy:
    """A generator of noise that stands for a student trained to pieces."""

    def __init__(self, student: Any) -> None:
        self.student = student

    def synthesize(self, ws: torch.Tensor) -> torch.Tensor:
        return noise(self.student.synthesize(ws))


def test_scorer_that_likes_noise_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a high learning rate, the student draws noise, which the judge takes for the target."""
    fond, plain, observed = guide(JUDGE), trials.train, trials.TrialRunner._measure
    target, way, embed = SHIFT.target_embedding(fond), SHIFT.direction(fond), fond.encode_images
    rates, by_judge_alone = [0.0], dict[float, list[float]]()

    def encode_images(images: torch.Tensor) -> torch.Tensor:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) / images.std((1, 2, 3)) > 1.05
        liked = torch.nn.functional.normalize(3 * target + way + embed(images), dim=-1)  # its diversity stays high
        return torch.where(rough[:, None], liked, embed(images))

    def train(inputs: Any, *args: Any, **more: Any) -> Any:
        rates.append(inputs.config.lr)
        return plain(inputs, *args, **more)

    def measure(self: Any, student: Any, steps: int) -> Any:
        one, after = observed(self, Noisy(student) if rates[-1] > 0.02 else student, steps)
        by_judge_alone.setdefault(rates[-1], []).append(one.candidate.score)
        return one, after

    monkeypatch.setattr(fond, "encode_images", encode_images)
    monkeypatch.setattr(trials, "train", train)
    monkeypatch.setattr(trials.TrialRunner, "_measure", measure)
    found = search(judge=fond, config=SearchConfig(trials=8, over=("lr",)), base=AdaptConfig(steps=4, lr=0.02))
    assert max(by_judge_alone, key=lambda rate: max(by_judge_alone[rate])) > 0.02
    assert found.config().lr <= 0.02 and found.best().value > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"judge": guide(0)}, "tiny-0 as judge"),
        ({"config": SearchConfig(over=("lpips",))}, "lpips"),
        ({"config": SearchConfig(over=("angle",)), "base": AdaptConfig(batch=1)}, "angle"),
        ({"base": AdaptConfig(layers=LayerChoice(mode="named", names=("L0",))), "config": SearchConfig()}, "named"),
    ],
)
def test_unusable_inputs_are_refused_before_the_first_trial(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        search(**changes, on_step=lambda _: pytest.fail("it has begun"))


def broken_storage(folder: Path) -> list[tuple[str, str]]:
    (folder / "notes.txt").write_text("not\na journal\n", encoding="utf-8")
    return [
        (str(folder / "notes.txt"), "notes.txt"),
        (str(folder), str(folder)),
        (f"sqlite:///{folder}/missing/study.db", "missing/study.db"),
        ("nosuch://study", "nosuch"),
    ]


def test_unusable_storage_is_named(tmp_path: Path) -> None:
    for storage, named in broken_storage(tmp_path):
        with pytest.raises(ValueError, match=re.escape(named)):
            open_study("storage", storage)


def test_trial_that_fails_is_given_up() -> None:
    study = open_study("fails", None)

    def fail(number: int, config: AdaptConfig, is_behind: Any) -> Measured:
        if config.lr == 0.02:
            raise RuntimeError("out of memory")
        return planted(number, config, is_behind)

    study.enqueue_trial({"lr": 0.02})
    for _ in range(studies._ATTEMPTS):
        with pytest.raises(RuntimeError, match="out of memory"):
            run_trials(study, SPACE, fail, SearchConfig(trials=3), 0)
    run_trials(study, SPACE, fail, SearchConfig(trials=3), 0)
    assert [trial.state.name for trial in study.trials].count("FAIL") == studies._ATTEMPTS


def test_search_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="over is empty"):
        SearchConfig(over=())
    with pytest.raises(ValueError, match="did you mean angle"):
        SearchConfig(over=("angel",))


def test_missing_or_old_optuna_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "needs Optuna 4.3 or newer.*pip install --upgrade optuna"
    with monkeypatch.context() as patch:
        patch.delattr("optuna.exceptions.UpdateFinishedTrialError")  # as in 4.2
        with pytest.raises(ValueError, match=advice):
            open_study("study", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=advice):
        search()


def test_search_without_a_completed_trial_has_no_result() -> None:
    found = FoundSettings(open_study("empty", None), SPACE, RECIPE, {})
    with pytest.raises(ValueError, match="No trial"):
        found.config()


# ---- recipe files -------------------------------------------------------------------------------------------------


def test_recipe_file_gives_the_found_settings(tmp_path: Path) -> None:
    found = search(base=RECIPE.__class__(steps=7, lr=0.02, batch=3, seed=5, chunk=2))
    recipe = found.recipe()
    read = load_recipe(save_recipe(recipe, tmp_path / "deeper" / "found.json", {"score": 1.0}))
    assert read == recipe and read.targets == ("sketch",)
    assert read.config(AdaptConfig()) == replace(found.config(), seed=0, chunk=0)
    assert read.config(AdaptConfig(steps=3000)).steps == 10 * found.config().steps


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_package_survive_a_file(tmp_path: Path, name: str) -> None:
    assert load_recipe(save_recipe(RECIPES[name], tmp_path / "r.json")) == RECIPES[name] == load_recipe(name)


def test_recipe_between_two_configs_turns_one_into_the_other() -> None:
    texts = {"about": "", "source": "Photo", "targets": (), "advice": ""}
    for recipe in RECIPES.values():
        config = recipe.config(RECIPE)
        assert Recipe.between(RECIPE, config, **texts).config(RECIPE) == config


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "no recipe"),
        ("[]", "format"),
        ("{}", "format"),
        ('{"format": "stylegan-nada recipe 1"}', "missing"),
        ('{"format": "stylegan-nada recipe 1", "settings": {"lr": -1}}', "lr"),
        ('{"format": "stylegan-nada recipe 1", "settings": {"steps": 1}}', "steps"),
        ('{"format": "stylegan-nada recipe 1", "settings": {"rate": 1}}', "rate"),
        ('{"format": "stylegan-nada recipe 1", "steps_factor": "x"}', "no recipe"),
    ],
)
def test_broken_recipe_files_are_named(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "broken.json"
    if '"format"' in content and named != "missing":
        content = content[:-1] + ', "about": "", "source": "", "targets": [], "advice": ""}'
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=named) as error:
        load_recipe(path)
    assert "broken.json" in str(error.value)


@pytest.mark.parametrize("name", ["stile", "missing.json", "README.md"])
def test_unknown_recipes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load_recipe(name)
