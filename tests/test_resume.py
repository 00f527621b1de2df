"""Runs that are interrupted: the autosave, resuming bit for bit, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import changed, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.adapt import Step, adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
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
    assert seen == [4, 5, 6, 7, 8, 9]  # four steps were saved, the fifth and sixth are done again
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())
    assert resumed.history == whole.history
    finished = adapt(generator(), guide(), SHIFT, config, kill_at(0), autosave=path, resume=True)
    assert not changed(whole.generator.state_dict(), finished.generator.state_dict())


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
    same = replace(config, autosave_every=7, chunk=1)  # how often a run is saved changes nothing else, nor do chunks
    assert adapt(generator(), guide(), SHIFT, same, autosave=path, resume=True).history


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
        if len(calls) == 2:
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
    tensors, told = load_file(path), read_metadata(path)
    if fault == "run":
        told["run"] = '{"index": 4}'
    else:
        tensors["rng"] = torch.zeros(3, dtype=torch.uint8)
    save_file(tensors, path, told)
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
