"""Unfinished and recent trainings of Adapt Generator, and the texts that nodes show while they run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from host.executor import Executor
from pack_world import QUICK, World
from PIL import Image
from torch import nn

from nada_core.adaptation.snapshots import snapshot_steps


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- unfinished and recent trainings ------------------------------------------------------------------------------


def texts(world: World) -> list[str]:
    return [text for _, text in world.host.texts]


def training_prompt(world: World, **values: Any) -> dict[str, Any]:
    return world.prompt(
        load=("LoadGenerator", {}),
        guide=("LoadGuide", {}),
        shift=("ShiftFromText", {}),
        adapt=(
            "AdaptGenerator",
            {"generator": "load.0", "guide": "guide.0", "shift": "shift.0", **QUICK, "steps": 6, **values},
        ),
        save=("SaveGenerator", {"generator": "adapt.0"}),
    )


def autosaves(world: World) -> list[Path]:
    return sorted((world.host.output / "stylegan_nada" / "runs").glob("*"))


def interrupt_at_step(world: World, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Cancel within the forward pass of a step."""
    drawn = world.module("nada_core.adaptation.adapt").draw_batch

    def draw_batch(source: Any, config: Any, state: Any, index: int) -> Any:
        world.host.interrupted = world.host.interrupted or index == step
        return drawn(source, config, state, index)

    monkeypatch.setattr(world.module("nada_core.adaptation.adapt"), "draw_batch", draw_batch)


def test_canceled_training_continues_in_a_new_process(either: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = training_prompt(either)
    whole = either.executor.run(prompt).check()["adapt"][0]
    assert not autosaves(either), "a finished training leaves no autosave"
    either.reset()
    with monkeypatch.context() as patch:
        interrupt_at_step(either, patch, 3)
        error = either.executor.run(prompt).error
    assert error is not None and isinstance(error[1], either.host.InterruptProcessingException)
    (autosave,) = autosaves(either)
    assert autosave.suffix == ".safetensors" and not any("step 4/6" in text for text in texts(either))
    either.module("nodes._runs").recent.clear()
    either.executor = Executor(either.host, either.pack.nodes)
    continued = either.executor.run(prompt).check()["adapt"][0]
    assert same(continued, whole)
    assert "Continuing after step 3/6" in texts(either)
    assert not autosaves(either)


def test_unreadable_autosave_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = training_prompt(world)
    with monkeypatch.context() as patch:
        interrupt_at_step(world, patch, 3)
        assert world.executor.run(prompt).error
    (autosave,) = autosaves(world)
    autosave.write_bytes(autosave.read_bytes()[:100])
    world.executor.run(prompt).check()
    assert not autosaves(world) and not any("Continuing" in text for text in texts(world))
    assert "Training again from the first step: its autosave is damaged" in texts(world)


def test_autosaves_are_not_listed_as_generators(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_step(world, patch, 1)
        assert world.executor.run(training_prompt(world)).error
    assert autosaves(world) and world.room.files("stylegan_nada") == []


def test_oldest_autosaves_are_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = world.module("nodes._runs")
    folder = world.host.output / "stylegan_nada" / "runs"
    folder.mkdir(parents=True)
    names = [f"{number:016x}" for number in range(10)]
    for age, name in enumerate(names):
        path = folder / f"{name}.safetensors"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (10**9 - age, 10**9 - age))
    (folder / "mine.safetensors").write_bytes(b"not an autosave")
    left = [folder / f".{names[number]}.safetensors.abcd.part" for number in (0, 1)]
    for path in left:
        path.touch()
        os.utime(path, (time.time() - 100,) * 2)
    (folder / f".{names[0]}.safetensors.dcba.part").touch()
    own = runs.autosave_path(names[9])
    assert own == folder / f"{names[9]}.safetensors" and own.exists()
    expected = {f"{name}.safetensors" for name in [*names[:5], names[9]]} | {"mine.safetensors"}
    assert {path.name for path in folder.glob("*.safetensors")} == expected
    monkeypatch.setattr(runs, "RUN_BYTES", 2500)
    runs.autosave_path(names[0])
    kept = {f"{names[number]}.safetensors" for number in (0, 1, 2)} | {"mine.safetensors"}
    assert {path.name for path in folder.glob("*.safetensors")} == kept
    parts = {path.name for path in folder.glob("*.part")}
    assert parts == {left[1].name, f".{names[0]}.safetensors.dcba.part"}, "those of running trainings stay"
    for path in folder.glob("*.part"):
        os.utime(path, (time.time() + 10**6,) * 2)
    runs.autosave_path(names[5])
    assert not list(folder.glob("*.part"))


def test_new_training_is_kept_after_the_clock_was_set_back(world: World) -> None:
    runs = world.module("nodes._runs")
    folder = world.host.output / "stylegan_nada" / "runs"
    names = [f"{number:016x}" for number in range(8)]
    for index, name in enumerate(names[:6]):  # all of them were written while the clock was a year ahead
        (folder / name).mkdir(parents=True)
        for path in (folder / f"{name}.safetensors", folder / name / "step-000002.safetensors"):
            path.write_bytes(b"x")
        for path in (folder / f"{name}.safetensors", folder / name):
            os.utime(path, (time.time() + 3e7 + index,) * 2)
    runs.autosave_path(names[6]).write_bytes(b"x")
    assert not (folder / f"{names[0]}.safetensors").exists() and not (folder / names[0]).exists()
    (folder / names[6]).mkdir()
    runs.autosave_path(names[7])
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == names[2:7]
    assert sorted(path.name for path in folders(world)) == names[2:7]


def test_last_three_trainings_are_remembered(world: World) -> None:
    made = {seed: world.adapt(seed=seed)[0] for seed in range(4)}
    world.host.texts.clear()
    assert [world.adapt(seed=seed)[0] is made[seed] for seed in (3, 2, 1)] == [True] * 3
    assert all("remembered" in text for text in texts(world)) and len(texts(world)) == 3
    again = world.adapt(seed=0)[0]
    assert again is not made[0] and same(again, made[0])


def test_stop_keeps_the_steps_so_far(either: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = either.module("nodes._runs")
    assert either.host.routes["/stylegan_nada/stop"] and runs.request_stop({"node_id": "adapt"}) == {"stopping": False}
    drawn = either.module("nada_core.adaptation.adapt").draw_batch

    def draw_batch(source: Any, config: Any, state: Any, index: int) -> Any:
        if index == 1:
            assert runs.request_stop({"node_id": "other"}) == {"stopping": False}
        if index == 2:
            assert runs.request_stop({"node_id": "adapt"}) == {"stopping": True}
        return drawn(source, config, state, index)

    prompt = training_prompt(either)
    with monkeypatch.context() as patch:
        patch.setattr(either.module("nada_core.adaptation.adapt"), "draw_batch", draw_batch)
        stopped, domain, training, reason, _ = either.executor.run(prompt).check()["adapt"]
    assert len(training["loss"]) == domain.provenance["stopped_after"] == 3
    assert reason == "Stopped after 3 of 6 steps." == texts(either)[-2]
    either.executor = Executor(either.host, either.pack.nodes)
    whole = either.executor.run(prompt).check()["adapt"]
    assert len(whole[2]["loss"]) == 6 and not same(whole[0], stopped) and whole[3] == ""


# ---- snapshots ----------------------------------------------------------------------------------------------------


def snapshot_prompt(world: World, pick: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {
        **training_prompt(world, snapshot_every=2, **values),
        **world.prompt(
            judge=("LoadGuide", {"guide": "portraits-64"}),
            latents=("SampleLatents", {"generator": "load.0", "count": 3}),
            pick=(
                "PickSnapshot",
                {
                    "generator": "load.0",
                    "snapshots": "adapt.4",
                    "latents": "latents.0",
                    "judge": "judge.0",
                    "shift": "shift.0",
                    **pick,
                },
            ),
        ),
    }


def folders(world: World) -> list[Path]:
    return [path for path in autosaves(world) if path.is_dir()]


def test_snapshot_is_picked_by_step_and_by_judge(either: World) -> None:
    by_step = {"pick": "by step", "pick.step": 4}
    result = either.executor.run(snapshot_prompt(either, by_step)).check()
    snapshots, (generator, domain, strip, figures) = result["adapt"][4], result["pick"]
    assert [one.step for one in snapshots] == [2, 4, 6] and domain.provenance["snapshot"]["step"] == 4
    assert same(generator, domain.apply(result["load"][0])) and strip.shape[0] == 1
    assert [line.partition(":")[0] for line in figures.splitlines()] == ["step 2", "step 4", "step 6"]
    assert texts(either)[-2] == figures.splitlines()[1] or figures.splitlines()[1] in texts(either)
    assert result.ui["pick"]["images"]
    best = either.executor.run(snapshot_prompt(either, {"pick": "by judge"})).check()
    assert "adapt" in best.cached
    scores = {int(line.split()[1].rstrip(":")): float(line.split()[5].rstrip(":")) for line in figures.splitlines()}
    assert scores[best["pick"][1].provenance["snapshot"]["step"]] == max(scores.values())
    last = either.executor.run(snapshot_prompt(either, {"pick": "by step"})).check()
    assert last["pick"][1].provenance["snapshot"]["step"] == 6


def test_pick_snapshot_names_what_is_missing(world: World) -> None:
    adapted = world.call("AdaptGenerator", **world.training(snapshot_every=1))
    given = {"generator": world.generator, "snapshots": adapted[4], "latents": world.latents()}
    with pytest.raises(ValueError, match=r"step 7.*1, 2"):
        world.call("PickSnapshot", **given, pick="by step", step=7)
    with pytest.raises(ValueError, match="judge"):
        world.call("PickSnapshot", **given, pick="by judge")
    with pytest.raises(ValueError, match="shift"):
        world.call("PickSnapshot", **given, judge=world.call("LoadGuide", guide="portraits-64")[0])
    with pytest.raises(ValueError, match="Got portraits as judge"):
        world.call("PickSnapshot", **given, pick="by judge", judge=world.guide, shift=world.shift)
    with pytest.raises(ValueError, match="snapshot_every"):
        world.call("PickSnapshot", **{**given, "snapshots": world.call("AdaptGenerator", **world.training())[4]})
    for other in (world.stranger, adapted[0]):
        with pytest.raises(ValueError, match=world.generator.weights_fingerprint()[:12]):
            world.call("PickSnapshot", **{**given, "generator": other, "latents": world.latents(generator=other)})
    adapted[4][0].path.unlink()
    with pytest.raises(ValueError, match="step 1.*snapshot_every"):
        world.call("PickSnapshot", **given)


def test_training_runs_again_only_for_missing_snapshots(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def adapt(every: int) -> tuple[Any, ...]:
        return world.call("AdaptGenerator", **{**world.training(steps=4), "snapshot_every": every})

    first = adapt(0)
    assert first[4] == () and not autosaves(world)
    second = adapt(1)
    assert [one.step for one in second[4]] == [1, 2, 3, 4] and same(second[0], first[0])
    (folder,) = folders(world)
    monkeypatch.setattr(world.module("nodes._training"), "adapt", None)
    assert [one.step for one in adapt(2)[4]] == [2, 4] and adapt(0)[0] is second[0]
    monkeypatch.undo()
    next(folder.glob("step-000002*")).unlink()
    again = adapt(2)
    assert [one.step for one in again[4]] == [2, 4] and same(again[0], first[0])
    assert len([text for text in texts(world) if "first step: its snapshots are missing" in text]) == 2


def test_unfinished_training_starts_again_for_missing_snapshots_only_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for earlier, every, starts_again in (
        (0, 2, True),
        (3, 2, True),
        (2, 2, False),
        (0, 3, False),
        (0, 4, False),
        (2, 0, False),
    ):
        prompt = training_prompt(world, snapshot_every=earlier)
        with monkeypatch.context() as patch:
            interrupt_at_step(world, patch, 3)
            assert world.executor.run(prompt).error
        world.host.texts.clear()
        world.host.interrupted = False
        made = world.executor.run(training_prompt(world, snapshot_every=every)).check()["adapt"][4]
        assert [one.step for one in made] == (snapshot_steps(every, 6) if every else [])
        own = [text for node, text in world.host.texts if node == "adapt"]
        assert any("Continuing" in text for text in own) is not starts_again
        assert any("step 6/6" in text and "first 3 steps" in text for text in own) is starts_again
        assert own[0].startswith("Training again from the first step") is starts_again
        world.reset()


def test_too_many_snapshots_are_refused_and_lose_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"steps": 60}
    with monkeypatch.context() as patch:
        interrupt_at_step(world, patch, 2)
        assert world.executor.run(training_prompt(world, **values)).error
    world.host.interrupted = False
    (autosave,) = autosaves(world)
    error = world.executor.run(training_prompt(world, **values, snapshot_every=1)).error
    assert error is not None and "snapshot_every 1" in str(error[1]) and autosaves(world) == [autosave]


def test_snapshots_of_old_trainings_are_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = world.module("nodes._runs")
    place = world.host.output / "stylegan_nada" / "runs"
    names = [f"{number:016x}" for number in range(10)]
    for age, name in enumerate(names):
        (place / name).mkdir(parents=True)
        (place / name / "step-000002.safetensors").write_bytes(b"x" * 1000)
        os.utime(place / name, (10**9 - age, 10**9 - age))
    (place / names[8] / "mine.txt").touch()
    os.utime(place / names[8], (10**9 - 8, 10**9 - 8))
    left = place / names[0] / ".step-000004.safetensors.abcd.part"
    left.touch()
    os.utime(left, (time.time() - 100,) * 2)
    runs.autosave_path(names[0])
    assert {path.name for path in folders(world)} == {*names[:6], names[8]}
    assert [path.name for path in (place / names[8]).iterdir()] == ["mine.txt"], "other files are left alone"
    assert [path.name for path in (place / names[0]).iterdir()] == ["step-000002.safetensors"]
    monkeypatch.setattr(runs, "RUN_BYTES", 2500)
    runs.autosave_path(names[0])
    assert {path.name for path in folders(world)} == {*names[:3], names[8]}


def test_stopped_training_has_the_snapshots_so_far(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, drawn = world.module("nodes._runs"), world.module("nada_core.adaptation.adapt").draw_batch

    def draw_batch(source: Any, config: Any, state: Any, index: int) -> Any:
        if index == 2:
            assert runs.request_stop({"node_id": "adapt"}) == {"stopping": True}
        return drawn(source, config, state, index)

    monkeypatch.setattr(world.module("nada_core.adaptation.adapt"), "draw_batch", draw_batch)
    made = world.executor.run(training_prompt(world, snapshot_every=2)).check()["adapt"]
    assert made[3] == "Stopped after 3 of 6 steps." and [one.step for one in made[4]] == [2]


def test_run_is_fingerprinted_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, calls = world.module("nada_core.adaptation.provenance").RunInputs, []
    fingerprint = inputs.fingerprint
    monkeypatch.setattr(inputs, "fingerprint", lambda self: (calls.append(1), fingerprint(self))[1])
    world.call("AdaptGenerator", **world.training(snapshot_every=1))
    assert calls == [1]


# ---- texts on the nodes -------------------------------------------------------------------------------------------


def test_training_shows_step_loss_and_layers(either: World) -> None:
    result = either.executor.run(training_prompt(either)).check()
    own = [text for node, text in either.host.texts if node == "adapt"]
    assert own[0].startswith("step 1/6 · loss ") and "layers" in own[0]
    assert any(text.startswith("step 6/6 · loss ") and text.endswith("0 s left") for text in own)
    (path,) = result["save"]
    shown = [text for node, text in either.host.texts if node == "save"]
    assert shown == [f"Saved: {Path(path).relative_to(either.host.output.parent)}"]
    assert result.ui["save"]["text"] == (path,) or result.ui["save"]["text"] == [path]


def test_cached_training_shows_its_images_again(either: World) -> None:
    prompt = training_prompt(either)
    first = either.executor.run(prompt).check()
    again = either.executor.run(prompt).check()
    assert "adapt" in again.cached and again.ui["adapt"]["images"] == first.ui["adapt"]["images"]
    assert len(either.host.previews) == 1
    with Image.open(either.host.previews[0]) as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 64


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s left"), (34.2, "35 s left"), (240, "4 min left"), (7500, "2 h 5 min left")]
)
def test_time_left_is_readable(world: World, seconds: float, text: str) -> None:
    assert world.module("nodes._status").time_left(seconds) == text


def test_error_is_shown_on_the_node(either: World) -> None:
    with pytest.raises(ValueError, match="quokka"):
        either.adapt(shift=either.call("ShiftFromText", target="quokka")[0])
    assert "quokka" in texts(either)[-1] and texts(either)[-1].startswith("Error: ")


def test_check_prompts_shows_its_warnings(world: World) -> None:
    (doubts,) = world.call("CheckPrompts", guide=world.guide, shift=world.shift)
    assert texts(world) == [doubts]


def test_threads_of_the_caller_are_restored_and_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.module("nada_core.adaptation.threads"), "quickest_threads", lambda work: (work(), 3)[1])
    before = torch.get_num_threads()
    _, domain, _ = world.adapt()
    assert domain.provenance["threads"] == 3 and torch.get_num_threads() == before
