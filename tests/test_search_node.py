"""Find Settings: its recipe as options and as a file, a search that continues, and Cancel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pack_world import World

pytest.importorskip("optuna")


@pytest.fixture
def judge(world: World) -> Any:
    return world.call("LoadGuide", guide="portraits-64")[0]


def find(world: World, judge: Any, **values: Any) -> tuple[Any, ...]:
    given = {"generator": world.stranger, "guide": world.guide, "shift": world.shift, "judge": judge}
    return world.call("FindSettings", **{**given, "steps": 4, "trials": 3, "over": "lr, angle", **values})


def config(world: World, **values: Any) -> Any:
    return world.module("nodes.training_options").training_config(world.stranger, seed=0, **values)


def automatic(**values: Any) -> dict[str, Any]:
    return {"settings": "automatic", "steps": -1, **values}


def recipes(world: World) -> list[Path]:
    return sorted((world.host.output / "stylegan_nada" / "recipes").iterdir())


def test_recipe_gives_equal_settings_as_options_and_as_file(world: World, judge: Any) -> None:
    recipe, table, plot, strips = find(world, judge)
    (path,) = recipes(world)
    assert len(strips) == 3 and plot.shape[-1] == 3 and strips.shape[-1] == 3
    lines = table.splitlines()
    assert len(lines) == 4 and lines[-1].endswith(path.name) and "the settings to start from" in table
    by_options = config(world, settings=automatic(), options=recipe)
    by_file = config(world, settings=automatic(settings="recipe file", recipe=path.name))
    assert by_options == by_file and by_options.steps == 4 and set(recipe) <= {"steps", "lr", "terms"}
    assert f"lr {by_file.lr:.4g}" in lines[0]
    assert config(world, settings=automatic(steps=9), options=recipe).steps == 9  # widgets win
    adapted = world.call("AdaptGenerator", **{**world.training(generator=world.stranger), "options": recipe})
    assert len(adapted[2]["loss"]) == 2


def test_recipe_keeps_the_layers_of_the_best_trial(world: World, judge: Any) -> None:
    (layers,) = world.call("ChooseLayers", count=2, train="affines")
    recipe, *_ = find(world, judge, trials=1, over="layers", layers=layers)
    found = config(world, settings=automatic(), options=recipe).layers
    assert (found.mode, found.count, found.train) == ("adaptive", 2, "affines")
    (others,) = world.call("ChooseLayers", count=3)
    assert config(world, settings=automatic(), options=recipe, layers=others).layers.count == 3


def test_dropped_loss_stays_dropped(world: World) -> None:
    search, core = world.module("nodes.search"), world.core
    own = core.AdaptConfig(terms={"direction": 1.0, "angle": 0.5})
    found = type("Found", (), {"own": own, "config": lambda _: replace(own, terms={"direction": 1.0})})()
    assert search._options(found) == {"terms": {"direction": 1.0, "angle": 0.0}}


def test_search_continues_after_cancel_and_with_more_trials(world: World, judge: Any) -> None:
    module = world.module("nada_core.adaptation.study")
    trained = []
    run = module._run_trial

    def cancel(*args: Any) -> None:
        trained.append(1)
        world.host.interrupted = len(trained) == 2
        run(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run_trial", cancel)
        with pytest.raises(world.host.InterruptProcessingException):
            find(world, judge)
        world.host.interrupted = False
        trained.append(1)
        table = find(world, judge)[1]
        assert len(trained) == 2 + 1 + 2 and "trial 0:" in table and "trial 1:" not in table
        find(world, judge, trials=4)
        assert len(trained) == 6
    assert any("trial 1/3" in text for _, text in world.host.texts)


def test_missing_recipe_file_and_wrong_names_are_refused(world: World, judge: Any) -> None:
    with pytest.raises(ValueError, match="gone.json"):
        config(world, settings=automatic(settings="recipe file", recipe="gone.json"))
    with pytest.raises(ValueError, match="did you mean angle"):
        find(world, judge, over="angel")
    with pytest.raises(ValueError, match="as judge"):
        find(world, world.guide)


def test_changed_recipe_file_is_noticed(world: World, judge: Any) -> None:
    find(world, judge, trials=1)
    (path,) = recipes(world)
    settings = automatic(settings="recipe file", recipe=path.name)
    stamp = world.node("AdaptGenerator").fingerprint_inputs(settings=settings)
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert stamp != world.node("AdaptGenerator").fingerprint_inputs(settings=settings)
    assert world.node("FindSettings").fingerprint_inputs(settings=automatic()) == ""
