"""Runs that are interrupted: the autosave, resuming bit for bit, and what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Encoder, changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.adapt import Step, adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.adaptation.parameters import TrainedParameters
from nada_core.adaptation.resume import SavedRun, load_run, save_run, saved_progress
from nada_core.guidance.shifts import ImageShift, TextShift
from nada_core.io.errors import CheckpointError
from nada_core.io.metadata import read_metadata

SHIFT = TextShift("photo", "sketch", ("a {} of a face", "the {}"))
ADAPTIVE = LayerChoice(mode="adaptive", count=1, batch=2, every=3)


def settings(**changes: Any) -> AdaptConfig:
    return AdaptConfig(**({"steps": 4, "lr": 0.02, "warmup": 2} | changes))


def kill_at(step: int) -> Any:
    def on_step(done: Step) -> None:
        if done.index == step:
            raise KeyboardInterrupt

    return on_step


def recognizer(seed: int) -> torch.nn.Module:
    """A network whose embeddings are unit vectors of the flattened image."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(3 * 16 * 16, 4)
    return torch.nn.Sequential(torch.nn.Flatten(), linear, Normalize()).requires_grad_(False)


class Normalize(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)


def test_resume_with_another_identity_network_is_refused(tmp_path: Path) -> None:
    config, path = settings(id=0.5), tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        adapt(generator(), guide(), SHIFT, replace(config, autosave_every=1), kill_at(1), path, identity=recognizer(0))
    with pytest.raises(CheckpointError, match=path.name):
        adapt(generator(), guide(), SHIFT, config, autosave=path, resume=True, identity=recognizer(1))
    assert len(adapt(generator(), guide(), SHIFT, config, None, path, True, identity=recognizer(0)).history) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "random", "ema": 0.9, "schedule": "cosine"},
        {"noise": "random", "ema": 0.9, "views": 2, "layers": ADAPTIVE},
        {"noise": "const", "beta1": 0.5, "layers": replace(ADAPTIVE, every=1, rgb=True, noise=True)},
        {"noise": "none", "layers": LayerChoice(mode="named", names=("b8.conv0", "b16.torgb"))},
        {"layers": replace(ADAPTIVE, train="offsets"), "ema": 0.5},
        {"layers": replace(ADAPTIVE, train="low-rank", rank=2), "ema": 0.5},
        {"pool": 3, "views": 2, "layers": ADAPTIVE},
        {"precision": "fp16", "ema": 0.5},
    ],
    ids=["all", "adaptive", "adaptive-rgb", "named", "offsets", "low-rank", "pool", "fp16"],
)
def test_resume_is_bit_exact(tmp_path: Path, change: dict[str, Any]) -> None:
    config, path = settings(steps=10, autosave_every=4, lr=0.1, **change), tmp_path / "run.safetensors"
    whole = adapt(generator(), guide(), SHIFT, config)
    with pytest.raises(KeyboardInterrupt):
        adapt(generator(), guide(), SHIFT, config, kill_at(5), autosave=path)
    seen: list[int] = []
    resumed = adapt(generator(), guide(), SHIFT, config, lambda s: seen.append(s.index), autosave=path, resume=True)
    assert seen == [6, 7, 8, 9]  # the sixth step was finished, so it was saved
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())
    assert resumed.history == whole.history
    finished = adapt(generator(), guide(), SHIFT, config, kill_at(0), autosave=path, resume=True)
    assert not changed(whole.generator.state_dict(), finished.generator.state_dict())


class Interrupt(BaseException):
    """Like the exception of a Cancel button."""


class InterruptingEncoder(Encoder):
    """A CLIP model that interrupts the run at one of its calls."""

    def __init__(self, seed: int, call: int) -> None:
        super().__init__(seed)
        self.calls_left = call

    def encode_image(self, x: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise Interrupt
        return super().encode_image(x)


INTERRUPTED = settings(
    steps=7, lr=0.1, noise="random", ema=0.5, keep_every=2, layers=replace(ADAPTIVE, train="low-rank", every=2)
)


@pytest.mark.parametrize("role", ["guide", "judge"])
def test_interruption_within_a_step_keeps_the_last_finished_step(tmp_path: Path, role: str) -> None:
    """Interrupt at calls of a CLIP model in turn: in the selection of layers, in a step and in a validation."""
    whole = adapt(generator(), guide(), SHIFT, INTERRUPTED, judge=guide(7))
    steps_saved = set()
    for call in range(1, 1000, 7 if role == "judge" else 1):  # a validation makes many calls of the judge
        path, seeds = tmp_path / f"{call}.safetensors", {"guide": 0, "judge": 7}
        guides = {name: guide(seed) for name, seed in seeds.items()}
        guides[role] = guide(seeds[role], InterruptingEncoder(seeds[role], call))
        try:
            adapt(generator(), guides["guide"], SHIFT, INTERRUPTED, autosave=path, judge=guides["judge"])
            break
        except Interrupt:
            saved = path.exists()
        if saved:
            steps_saved.add(load_run(path, read_metadata(path)["identity"]).index)
        resumed = adapt(generator(), guide(), SHIFT, INTERRUPTED, autosave=path, resume=True, judge=guide(7))
        assert not changed(whole.generator.state_dict(), resumed.generator.state_dict()), call
        assert resumed.history == whole.history, call
    assert steps_saved == ({1, 2, 3, 4, 5, 6} if role == "guide" else {2, 4, 6, 7})


def test_error_while_weights_are_updated_keeps_the_earlier_autosave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = settings(steps=6, autosave_every=2), tmp_path / "run.safetensors"
    merge, calls = TrainedParameters.merge, []

    def interrupted(parameters: TrainedParameters) -> None:
        merge(parameters)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainedParameters, "merge", interrupted)
        adapt(generator(), guide(), SHIFT, config, autosave=path)
    assert load_run(path, read_metadata(path)["identity"]).index == 2
    resumed = adapt(generator(), guide(), SHIFT, config, autosave=path, resume=True)
    assert not changed(
        adapt(generator(), guide(), SHIFT, config).generator.state_dict(), resumed.generator.state_dict()
    )


def test_failed_autosave_does_not_hide_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        adapt(generator(), guide(), SHIFT, settings(), kill_at(1), tmp_path / "run.safetensors")
    assert "No space left" in caplog.text and not list(tmp_path.iterdir())


def test_interruption_before_the_first_step_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(Interrupt):
        adapt(generator(), guide(0, InterruptingEncoder(0, 1)), SHIFT, settings(), autosave=path)
    assert not path.exists()


def test_stop_returns_the_steps_so_far_and_can_be_continued(tmp_path: Path) -> None:
    config, path, answers = settings(steps=6, autosave_every=2), tmp_path / "run.safetensors", iter([False, True])
    stopped = adapt(generator(), guide(), SHIFT, config, autosave=path, stop=lambda: next(answers))
    assert len(stopped.history) == 2 and stopped.domain.provenance["stopped_after"] == 2
    assert changed(generator().state_dict(), stopped.generator.state_dict())
    whole = adapt(generator(), guide(), SHIFT, config)
    continued = adapt(generator(), guide(), SHIFT, config, autosave=path, resume=True)
    assert whole.history[:2] == stopped.history and "stopped_after" not in whole.domain.provenance
    assert not changed(whole.generator.state_dict(), continued.generator.state_dict())


def test_history_of_a_long_run_fits_into_the_autosave(tmp_path: Path) -> None:
    path, record = tmp_path / "run.safetensors", {"index": 0, "loss": 0.1, "note": "x" * 1000}
    saved = SavedRun(10_000, {}, {}, {}, torch.Generator().get_state(), (), [record] * 10_000)
    save_run(path, saved, "0" * 16)  # 10 MB, more than the header may have
    assert load_run(path, "0" * 16).history == saved.history


def test_progress_is_read_for_the_own_run_only(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    adapt(generator(), guide(), SHIFT, settings(), autosave=path)
    fingerprint = read_metadata(path)["identity"]
    assert saved_progress(path, fingerprint)["index"] == 4
    assert saved_progress(path, "0" * 16) == saved_progress(tmp_path / "none.safetensors", fingerprint) == {}
    path.write_bytes(path.read_bytes()[:-10])
    assert saved_progress(path, fingerprint) == {}


def test_resume_without_a_file_starts_at_step_zero(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    result = adapt(generator(), guide(), SHIFT, settings(), autosave=path, resume=True)
    assert len(result.history) == 4 and path.exists()


def test_autosave_does_not_change_the_run(tmp_path: Path) -> None:
    config = settings(autosave_every=1, ema=0.5)
    plain = adapt(generator(), guide(), SHIFT, config)
    saved = adapt(generator(), guide(), SHIFT, config, autosave=tmp_path / "run.safetensors")
    assert not changed(plain.generator.state_dict(), saved.generator.state_dict())


def test_existing_autosave_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"somebody's work")
    with pytest.raises(FileExistsError, match="already there"):
        adapt(generator(), guide(), SHIFT, settings(), autosave=path)
    assert path.read_bytes() == b"somebody's work"


def test_autosave_of_another_run_is_refused(tmp_path: Path) -> None:
    config, path = settings(), tmp_path / "run.safetensors"
    adapt(generator(), guide(), SHIFT, config, autosave=path)
    content = path.read_bytes()
    other = generator()
    with torch.no_grad():
        other.get_parameter("mapping.fc0.bias")[0] += 1e-3
    strangers: list[tuple[Any, ...]] = [
        (generator(), guide(), SHIFT, replace(config, seed=1)),
        (generator(), guide(), SHIFT, replace(config, steps=5)),
        (generator(), guide(), SHIFT, replace(config, layers=LayerChoice(rgb=True))),
        (generator(), guide(), replace(SHIFT, target="drawing"), config),
        (generator(), guide(), replace(SHIFT, templates=("a {}",)), config),
        (generator(), guide(1), SHIFT, config),
        (generator(), [(guide(), 2.0)], SHIFT, config),
        (other, guide(), SHIFT, config),
    ]
    for made, eye, shift, wanted in strangers:
        with pytest.raises(CheckpointError, match="belongs to another run"):
            adapt(made, eye, shift, wanted, autosave=path, resume=True)
    assert path.read_bytes() == content


def test_settings_and_networks_that_change_nothing_keep_the_autosave(tmp_path: Path) -> None:
    config, path = settings(layers=ADAPTIVE, autosave_every=1), tmp_path / "run.safetensors"
    whole = adapt(generator(), guide(), SHIFT, config)
    for change, networks in (
        ({"autosave_every": 7}, {}),
        ({"chunk": 1}, {}),
        ({"layers": replace(ADAPTIVE, chunk=1)}, {}),
        ({}, {"identity": recognizer(0)}),
        ({}, {"perceptual": recognizer(0)}),
    ):
        with pytest.raises(KeyboardInterrupt):
            adapt(generator(), guide(), SHIFT, config, kill_at(1), path)
        assert load_run(path, read_metadata(path)["identity"]).index == 2
        other = replace(config, **change)
        result = adapt(generator(), guide(), SHIFT, other, None, path, resume=True, **networks)
        assert len(result.history) == 4
        torch.testing.assert_close(result.generator.state_dict(), whole.generator.state_dict())
        path.unlink()


def test_fingerprint_depends_on_every_style_pixel(tmp_path: Path) -> None:
    path, style = tmp_path / "run.safetensors", torch.rand(1, 3, 16, 16, generator=rng())
    adapt(generator(), guide(), ImageShift(style), settings(), autosave=path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        adapt(generator(), guide(), ImageShift(style.flip(-1)), settings(), autosave=path, resume=True)
    assert adapt(generator(), guide(), ImageShift(style), settings(), autosave=path, resume=True).history


def test_interrupted_write_leaves_the_old_autosave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = settings(steps=6, autosave_every=2), tmp_path / "run.safetensors"
    replaced, calls = os.replace, []

    def interrupted(source: Any, target: Any) -> None:
        calls.append(Path(source).stat().st_size)  # all of the new file is written, its name not yet given
        if len(calls) > 1:
            raise KeyboardInterrupt
        replaced(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        adapt(generator(), guide(), SHIFT, config, autosave=path)
    assert calls[1] > 0 and list(tmp_path.iterdir()) == [path]
    seen: list[int] = []
    resumed = adapt(generator(), guide(), SHIFT, config, lambda s: seen.append(s.index), path, resume=True)
    assert seen == [2, 3, 4, 5]
    whole = adapt(generator(), guide(), SHIFT, config)
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())


@pytest.mark.parametrize("fault", ["run", "rng"])
def test_tampered_autosave_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "run.safetensors"
    adapt(generator(), guide(), SHIFT, settings(), autosave=path)
    tensors, metadata = copied(load_file(path)), read_metadata(path)
    if fault == "run":
        metadata["run"] = '{"index": 4}'
    else:
        tensors["rng"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="tampered"):
        adapt(generator(), guide(), SHIFT, settings(), autosave=path, resume=True)


def test_fingerprint_depends_on_the_clamp(tmp_path: Path) -> None:
    """Two generators with equal weights may still be different functions."""
    path = tmp_path / "run.safetensors"
    adapt(generator(), guide(), SHIFT, settings(), autosave=path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        adapt(generator(clamp=1.0), guide(), SHIFT, settings(), autosave=path, resume=True)


def test_other_files_are_refused_as_autosave(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no autosave of a run"):
        adapt(generator(), guide(), SHIFT, settings(), autosave=path, resume=True)


# ---- processes that are killed ------------------------------------------------------------------------------------

#: NADA_INTERRUPTIONS=20 pytest tests/test_resume.py -k killed: more moments than the suite has time for.
MOMENTS = range(int(os.environ.get("NADA_INTERRUPTIONS", "2")))
LONG = settings(steps=200, autosave_every=3, noise="random", ema=0.9, layers=replace(ADAPTIVE, every=2))


@pytest.fixture
def uninterrupted() -> dict[str, Tensor]:
    return adapt(generator(), guide(), SHIFT, LONG).generator.state_dict()


@pytest.mark.parametrize("seed", MOMENTS)
def test_killed_process_is_continued_bit_exactly(tmp_path: Path, seed: int, uninterrupted: dict[str, Tensor]) -> None:
    path, delay = tmp_path / "run.safetensors", random.Random(seed).uniform(0, 1)
    program = (
        "from pathlib import Path\nimport torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # another number rounds differently
        "from test_resume import LONG, SHIFT, adapt, generator, guide\n"
        f"adapt(generator(), guide(), SHIFT, LONG, autosave=Path({str(path)!r}))\n"
    )
    folders = (Path(__file__).parent, Path(__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    )
    while child.poll() is None and not path.exists():
        time.sleep(0.01)
    time.sleep(delay)
    child.kill()
    child.wait()
    assert load_run(path, read_metadata(path)["identity"]).index > 0  # nothing torn
    resumed = adapt(generator(), guide(), SHIFT, LONG, autosave=path, resume=True)
    assert not changed(uninterrupted, resumed.generator.state_dict())
