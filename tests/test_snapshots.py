"""Snapshots of a run: equal to runs of that length, complete after an interruption, drawn, judged and picked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import ADAPTIVE, INTERRUPTED, SHIFT, kill_at, settings
from tiny import changed, generator, guide, rng

from nada_core.adaptation.adapt import Step, adapt
from nada_core.adaptation.config import AdaptConfig
from nada_core.adaptation.provenance import run_fingerprint
from nada_core.adaptation.snapshots import (
    Snapshot,
    best_step,
    describe_snapshots,
    filmstrip,
    find_snapshots,
    judge_snapshots,
    pick_snapshot,
    snapshot_judge,
    snapshot_steps,
)
from nada_core.io.errors import CheckpointError
from nada_core.latents.sampling import render, sample
from nada_core.models.domain import Domain, read_domain, save_domain
from nada_core.models.generator import Generator

ROOT = Path(__file__).parents[1]


def run(folder: Path | None, config: AdaptConfig | None = None, every: int = 2, **inputs: Any) -> Any:
    """Train the tiny generator on one thread, with snapshots in `folder`."""
    every = every if folder is not None else 0
    config = config or settings(steps=6)
    return adapt(generator(), guide(), SHIFT, config, snapshots=folder, snapshot_every=every, threads=1, **inputs)


def stop_after(steps: int) -> dict[str, Any]:
    """Inputs that end a run after so many steps."""
    done: list[int] = []
    return {"on_step": lambda step: done.append(step.index), "stop": lambda: len(done) == steps}


def same_weights(snapshot: Snapshot, domain: Domain, folder: Path) -> bool:
    """Whether the file equals, bit for bit, the float16 file of a domain."""
    save_domain(domain, folder / "other.safetensors", half=True)
    return not changed(load_file(snapshot.path), load_file(folder / "other.safetensors"))


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold equal snapshots and nothing else; the order of metadata in a file is random."""
    names = {path.name for path in one.iterdir()}
    return names == {path.name for path in other.iterdir()} and all(
        not changed(load_file(one / name), load_file(other / name))
        and read_domain(one / name).provenance == read_domain(other / name).provenance
        for name in names
    )


# ---- what a snapshot holds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"noise": "random", "ema": 0.9, "warmup": 4},
        {"layers": ADAPTIVE, "ema": 0.5, "views": 2},
        {"layers": replace(ADAPTIVE, train="low-rank", rank=2)},
        {"layers": replace(ADAPTIVE, train="offsets"), "pool": 3},
        {"weight_reg": 1.0, "fisher_samples": 2},
    ],
    ids=["all", "ema", "adaptive", "low-rank", "offsets", "regularized"],
)
def test_snapshots_equal_runs_of_that_length(tmp_path: Path, change: dict[str, Any]) -> None:
    config = settings(steps=5, lr=0.1, **change)
    result = run(tmp_path / "run", config)
    assert [snapshot.step for snapshot in result.snapshots] == [2, 4, 5]
    for snapshot in result.snapshots:
        fresh = run(None, replace(config, steps=snapshot.step))
        assert same_weights(snapshot, fresh.domain, tmp_path), snapshot.step
        assert snapshot.loss == fresh.history[-1]["loss"]


def test_snapshots_with_the_cosine_schedule_equal_stopped_runs(tmp_path: Path) -> None:
    config = settings(steps=6, lr=0.1, schedule="cosine", ema=0.5)
    first = run(tmp_path / "run", config).snapshots[0]
    assert first.step == 2
    assert same_weights(first, run(None, config, **stop_after(2)).domain, tmp_path)
    assert not same_weights(first, run(None, replace(config, steps=2)).domain, tmp_path)


def test_snapshots_of_a_judged_run_hold_their_own_step(tmp_path: Path) -> None:
    config = settings(steps=6, lr=0.1, ema=0.5)
    judged = run(tmp_path / "run", replace(config, keep_every=1), judge=guide(7))
    assert [snapshot.step for snapshot in judged.snapshots] == [2, 4, 6]
    for snapshot in judged.snapshots:
        assert same_weights(snapshot, run(None, replace(config, steps=snapshot.step)).domain, tmp_path)


def test_snapshots_do_not_change_the_run(tmp_path: Path) -> None:
    plain, watched = run(None, INTERRUPTED, judge=guide(7)), run(tmp_path, INTERRUPTED, every=1, judge=guide(7))
    assert not changed(plain.generator.state_dict(), watched.generator.state_dict())
    assert watched.history == plain.history and watched.domain.provenance == plain.domain.provenance
    assert plain.snapshots == ()


def test_last_step_of_a_run_that_patience_ends_has_a_snapshot(tmp_path: Path) -> None:
    config = settings(steps=50, lr=1e-7, keep_every=1, patience=2)
    result = run(tmp_path, config, every=25, judge=guide(7))
    assert [snapshot.step for snapshot in result.snapshots] == [len(result.history)] != [50]


def test_stopped_run_lists_the_snapshots_so_far(tmp_path: Path) -> None:
    result = run(tmp_path, settings(steps=6), **stop_after(3))
    assert [snapshot.step for snapshot in result.snapshots] == [2]


def test_snapshot_names_its_run(tmp_path: Path) -> None:
    config = settings(steps=4)
    snapshot = run(tmp_path, config).snapshots[0]
    fingerprint = run_fingerprint(generator(), guide(), SHIFT, config)
    provenance = snapshot.read().provenance
    source = generator().weights_fingerprint()
    assert provenance["snapshot"] == {"step": 2, "loss": snapshot.loss, "run": fingerprint, "source": source}
    assert provenance["config"]["steps"] == 4 and provenance["prompts"]["target"] == "sketch"
    assert find_snapshots(tmp_path, fingerprint, [4])[0].step == 4
    assert find_snapshots(tmp_path, "0" * 16) == () == find_snapshots(tmp_path / "absent")


def test_files_that_are_no_snapshots_are_left_out(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "step-000001.safetensors").write_bytes(b"not safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "step-000003.safetensors")
    save_domain(Domain({}, "", {}), tmp_path / "mine.safetensors")
    assert [snapshot.step for snapshot in find_snapshots(tmp_path)] == [2, 4, 6]


# ---- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autosave_every", [1, 4, 50])
@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_resumed_run_has_all_snapshots(tmp_path: Path, step: int, autosave_every: int) -> None:
    config = settings(steps=6, lr=0.1, ema=0.5, layers=ADAPTIVE, autosave_every=autosave_every)
    whole = run(tmp_path / "whole", config)
    files = {"folder": tmp_path / "run", "config": config, "autosave": tmp_path / "autosave.safetensors"}
    with pytest.raises(KeyboardInterrupt):
        run(**files, on_step=kill_at(step))
    resumed = run(**files, resume=True)
    assert [snapshot.step for snapshot in resumed.snapshots] == [2, 4, 6]
    assert same_files(tmp_path / "run", tmp_path / "whole")
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())


def test_snapshot_that_could_not_be_written_is_written_by_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"folder": tmp_path / "run", "autosave": tmp_path / "autosave.safetensors"}
    with monkeypatch.context() as patch:

        def full(domain: Domain, path: Path, **_: Any) -> None:
            raise OSError(28, "No space left on device", str(path))

        patch.setattr("nada_core.adaptation.snapshots.save_domain", full)
        with pytest.raises(OSError, match="No space left"):
            run(**files)
    steps: list[int] = []
    resumed = run(**files, resume=True, on_step=lambda step: steps.append(step.index))
    assert steps == [2, 3, 4, 5], "the second step, whose snapshot failed, is not lost"
    assert [snapshot.step for snapshot in resumed.snapshots] == [2, 4, 6]


@pytest.mark.parametrize(("every", "steps", "missing"), [(1, [3, 4, 5, 6], "1, 2"), (2, [4, 6], "2"), (3, [3, 6], "")])
def test_run_resumed_with_snapshots_only_later_has_those_of_its_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every: int, steps: list[int], missing: str
) -> None:
    autosave = tmp_path / "autosave.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(None, on_step=kill_at(2), autosave=autosave)
    resumed = run(tmp_path / "run", every=every, autosave=autosave, resume=True)
    assert [snapshot.step for snapshot in resumed.snapshots] == steps
    warned = [record.args for record in caplog.records if record.name == "nada_core.adaptation.snapshots"]
    assert warned == ([(3, missing)] if missing else [])


ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_snapshots import run, settings
folder = Path(sys.argv[1])
config = settings(steps=40, ema=0.5, autosave_every=1)
run(folder / "run", config, every=1, autosave=folder / "autosave.safetensors", resume=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_run_leaves_only_whole_files(tmp_path: Path) -> None:
    """Kill the process at different moments of a run; at each, every file that is listed can be read."""
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    for count in (1, 7, 20):
        process = subprocess.Popen(command, cwd=ROOT)
        while len(list((tmp_path / "run").glob("step-*.safetensors"))) < count and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the process was killed before it had finished"
        files = list((tmp_path / "run").glob("step-*.safetensors"))
        snapshots = find_snapshots(tmp_path / "run")
        assert len(snapshots) == len(files) >= count
        assert all(snapshot.read().changes for snapshot in snapshots)
    subprocess.run(command, cwd=ROOT, check=True)
    config = settings(steps=40, ema=0.5, autosave_every=1)
    assert len(run(tmp_path / "whole", config, every=1).snapshots) == 40
    for part in (tmp_path / "run").glob(".*.part"):
        part.unlink()
    assert same_files(tmp_path / "run", tmp_path / "whole")


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"snapshots": "folder"}, "snapshot_every 0"),
        ({"snapshot_every": 2}, "folder None"),
        ({"snapshots": "folder", "snapshot_every": -1}, "-1"),
        ({"snapshots": "folder", "snapshot_every": 2.5}, "2.5"),
        ({"snapshots": "folder", "snapshot_every": True}, "True"),
        ({"snapshots": "folder", "snapshot_every": 1}, "51 snapshots in 51 steps.*50: use 2"),
    ],
)
def test_unfit_snapshot_settings_are_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=value):
        adapt(generator(), guide(), SHIFT, settings(steps=51), on_step=kill_at(0), **given)
    assert not list(tmp_path.iterdir())


def test_fifty_snapshots_are_allowed() -> None:
    assert len(snapshot_steps(2, 100)) == 50 and snapshot_steps(3, 7) == [3, 6, 7] and snapshot_steps(9, 7) == [7]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        run(tmp_path / "file", on_step=kill_at(0))


# ---- drawn, judged, picked ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was judged at its snapshots."""
    config = settings(steps=6, lr=0.1, ema=0.5, keep_every=2, seed=3, psi=0.8)
    return run(tmp_path_factory.mktemp("judged"), config, judge=guide(7))


def draw(made: Generator) -> torch.Tensor:
    return render(made, sample(generator(), range(3)))


def test_filmstrip_shows_the_source_and_every_snapshot(judged: Any) -> None:
    drawn: list[torch.Tensor] = []

    def recorded(made: Generator) -> torch.Tensor:
        drawn.append(draw(made))
        return drawn[-1]

    strip = filmstrip(generator(), judged.snapshots, recorded)
    assert strip.shape[:2] == (1, 3) and strip.shape[-1] > strip.shape[-2] > 3 * 192
    assert len(drawn) == 4 and torch.equal(drawn[0], draw(generator()))
    last = judged.snapshots[-1].read().apply(generator())
    assert torch.equal(drawn[-1], draw(last)) and not torch.equal(drawn[1], drawn[2])


def test_wide_filmstrip_has_smaller_images(judged: Any) -> None:
    def large(made: Generator) -> torch.Tensor:
        return torch.zeros(1, 3, 1024, 1024)

    few = filmstrip(generator(), judged.snapshots, large)
    assert few.shape[-1] == 4 * (512 + 8) + 8
    repeated = [replace(one, step=one.step + 10 * copy) for copy in range(8) for one in judged.snapshots]
    assert filmstrip(generator(), repeated, large).shape[-1] == 25 * (192 + 8) + 8


def test_scores_equal_those_of_the_judge_in_the_run(judged: Any) -> None:
    measured = judge_snapshots(generator(), judged.snapshots, guide(7), SHIFT)
    measure, beside_drawing = snapshot_judge(generator(), judged.snapshots, guide(7), SHIFT), []
    filmstrip(generator(), judged.snapshots, draw, lambda *made: beside_drawing.append(measure(*made)))
    assert tuple(beside_drawing) == measured
    in_run = {step["candidate"]["steps"]: step["candidate"] for step in judged.history if "candidate" in step}
    assert [one.steps for one in measured] == [2, 4, 6] == list(in_run)
    for one in measured:  # snapshots are rounded to float16
        for name in ("gain", "direction", "diversity"):
            assert getattr(one, name) == pytest.approx(in_run[one.steps][name], abs=2e-3)
    assert f"Step {best_step(measured)} is the best" in judged.chosen_because
    lines = describe_snapshots(judged.snapshots, measured).splitlines()
    assert len(lines) == 3 and lines[1].startswith("step 4: loss ") and f"score {measured[1].score:+.4f}" in lines[1]
    assert describe_snapshots(judged.snapshots[:1]) == f"step 2: loss {judged.history[1]['loss']:.3f}"


def test_judge_the_run_was_trained_with_is_refused(judged: Any) -> None:
    with pytest.raises(ValueError, match="tiny-0"):
        judge_snapshots(generator(), judged.snapshots, guide(), SHIFT)


def test_snapshot_is_picked_by_step(judged: Any) -> None:
    assert pick_snapshot(judged.snapshots, 4).step == 4 and pick_snapshot(judged.snapshots, -1).step == 6
    with pytest.raises(ValueError, match=r"step 5.*2, 4, 6"):
        pick_snapshot(judged.snapshots, 5)


def test_missing_snapshots_are_refused() -> None:
    for act in (
        lambda: pick_snapshot((), -1),
        lambda: filmstrip(generator(), (), draw),
        lambda: judge_snapshots(generator(), (), guide(7), SHIFT),
    ):
        with pytest.raises(ValueError, match="no snapshots"):
            act()


@pytest.mark.parametrize("kind", ["adapted", "snapshot", "other"])
def test_generator_other_than_the_source_is_refused_before_drawing(judged: Any, kind: str) -> None:
    given = {
        "adapted": judged.generator,
        "snapshot": judged.snapshots[0].read().apply(generator()),
        "other": generator(rng=rng(8)),
    }[kind]
    found = f"{given.weights_fingerprint()[:12]}.*{generator().weights_fingerprint()[:12]}"
    with pytest.raises(ValueError, match=found):
        filmstrip(given, judged.snapshots, lambda made: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=found):
        judge_snapshots(given, judged.snapshots, guide(7), SHIFT)


def test_snapshots_of_an_adapted_source_are_drawn_with_it(tmp_path: Path) -> None:
    source = run(None, settings(steps=2, lr=0.1)).generator
    snapshots = adapt(source, guide(), SHIFT, settings(steps=2), snapshots=tmp_path, snapshot_every=1).snapshots
    filmstrip(source, snapshots, draw)
    with pytest.raises(ValueError, match=generator().weights_fingerprint()[:12]):
        filmstrip(generator(), snapshots, draw)


def test_removed_snapshot_is_named(tmp_path: Path) -> None:
    snapshot = run(tmp_path).snapshots[0]
    snapshot.path.unlink()
    with pytest.raises(CheckpointError, match=r"step-000002.safetensors.*step 2"):
        snapshot.read()


def test_step_is_reported_after_its_snapshot(tmp_path: Path) -> None:
    """A program that reads snapshots during a run finds that of the step it is told of."""

    def on_step(step: Step) -> None:
        assert (step.index + 1 in (2, 4, 6)) == (tmp_path / f"step-{step.index + 1:06}.safetensors").exists()

    run(tmp_path, on_step=on_step)
