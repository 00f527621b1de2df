"""Two processes on a CPU train like one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import save_file
from test_cli import CLIP
from tiny import generator, guide

from nada_core.adaptation.adapt import Step, adapt
from nada_core.adaptation.adapt_to_pairs import adapt_to_pairs
from nada_core.adaptation.config import AdaptConfig, LayerChoice, PairsConfig
from nada_core.guidance.shifts import TextShift
from nada_core.io.metadata import read_metadata
from nada_core.latents.sampling import render, sample
from nada_core.models.checkpoints import load_generator, save_generator
from nada_core.runtime import distributed

ROOT = Path(__file__).parents[1]
SHIFT = TextShift("photo", "sketch", ("a {} of a face", "the {}"))
CONFIG = AdaptConfig(
    steps=4,
    batch=4,
    lr=0.02,
    warmup=2,
    views=2,
    terms={"direction": 1.0, "angle": 0.5},
    ema=0.5,
    autosave_every=2,
    layers=LayerChoice(mode="adaptive", count=2, batch=3, every=2),
)
CONFIGS = {
    "adaptive": CONFIG,
    "const": replace(CONFIG, noise="const", layers=LayerChoice(), chunk=1),
    "one vote": replace(CONFIG, layers=replace(CONFIG.layers, batch=1)),  # rank 1 has no latent to measure
}


def pairs_terms() -> list[dict[str, float]]:
    """The terms of a run on pairs, with CLIP terms and locality."""
    source = generator()
    latents = sample(source, range(6), psi=1.0)
    images = render(source, latents).clamp(-1, 1).flip(1)
    training = replace(CONFIG, layers=LayerChoice(), autosave_every=50)
    config = PairsConfig(locality=1.0, min_direction=0.0, max_rank=1.0, training=training)
    result = adapt_to_pairs(source, latents, images, config, guide(), SHIFT)
    return [step["terms"] for step in result.history]


def work(rank: int, folder: Path) -> None:
    """Run in each of two distributed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, config in CONFIGS.items():
        shares: list[int] = []

        def count(step: Step, shares: list[int] = shares) -> None:
            shares.append(len(step.images()))

        path = folder / f"{name}.autosave.safetensors"
        result = adapt(generator(), [guide(0), guide(5)], SHIFT, config, count, autosave=path)
        assert shares == [2] * 4
        torch.save((result.generator.state_dict(), result.history), folder / f"{name}.{rank}.pt")
    (folder / f"pairs.{rank}").write_text(json.dumps(pairs_terms()))
    (folder / f"broadcast.{rank}").write_text(str(distributed.broadcast({"rank": rank})))
    try:
        adapt(generator(), guide(), SHIFT, replace(CONFIG, batch=3))
    except ValueError as error:
        (folder / f"refused.{rank}").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_processes_train_like_one(folder: Path, name: str) -> None:
    alone = adapt(generator(), [guide(0), guide(5)], SHIFT, CONFIGS[name])
    first, second = (torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1))
    for key, value in alone.generator.state_dict().items():
        torch.testing.assert_close(first[0][key], value, rtol=1e-4, atol=2e-5)
        assert torch.equal(first[0][key], second[0][key])
    for one, other in zip(alone.history, first[1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6) and other["layers"] == one["layers"]
    assert first[1] == second[1]
    assert "run" in read_metadata(folder / f"{name}.autosave.safetensors")


def test_two_processes_learn_pairs_like_one(folder: Path) -> None:
    alone = pairs_terms()
    for rank in range(2):
        shared = json.loads((folder / f"pairs.{rank}").read_text())
        assert set(alone[0]) == {"direction", "angle", "pair_l1", "pair_edges", "locality"}
        assert shared[0] == pytest.approx(alone[0], rel=1e-4)
        for one, other in zip(alone, shared, strict=True):  # Adam amplifies rounding
            assert other == pytest.approx(one, rel=2e-2, abs=5e-4)  # angle is nearly 0


def test_uneven_batches_are_refused(folder: Path) -> None:
    assert all("a batch of 3 for 2 processes" in (folder / f"refused.{rank}").read_text() for rank in (0, 1))


def test_broadcast_takes_the_value_of_rank_zero(folder: Path) -> None:
    assert [(folder / f"broadcast.{rank}").read_text() for rank in (0, 1)] == ["{'rank': 0}"] * 2
    assert distributed.broadcast("alone") == "alone"


def test_single_process_shares_nothing() -> None:
    batch = torch.ones(3, 2)
    assert distributed.world_size() == 1 and distributed.rank() == 0 and distributed.shard(batch) is batch
    assert distributed.all_gather([batch])[0] is batch
    distributed.all_reduce([batch])
    distributed.check_batch_size(3)
    assert torch.equal(batch, torch.ones(3, 2))
    with distributed.process_group(torch.device("cpu")) as device:
        assert device.type == "cpu" and not dist.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="local rank 1"), distributed.process_group(torch.device("cuda")):
        pytest.fail("two processes on one GPU")


@pytest.mark.skipif(os.name == "nt", reason="PyTorch for Windows lacks libuv, which torchrun needs")
def test_torchrun_trains_and_one_process_writes(tmp_path: Path) -> None:
    save_generator(generator(), tmp_path / "a.safetensors", {})
    (tmp_path / "guide-two.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    state = {name: value.contiguous() for name, value in open_clip.CLIP(**CLIP).state_dict().items()}
    save_file(state, tmp_path / "guide-two.safetensors")
    words = [
        "adapt",
        "a.safetensors",
        "--guide",
        "guide-two.json:guide-two.safetensors",
        "--target",
        "zombie",
        "--steps",
        "2",
        "--batch",
        "2",
        "--device",
        "cpu",
    ]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for runner, out in (([sys.executable, "-m"], "one.safetensors"), (torchrun, "two.safetensors")):
        answer = subprocess.run(
            [*runner, "nada_core", *words, "--out", out], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.count(f"wrote {out}\n") == 1
    one, two = load_generator(tmp_path / "one.safetensors"), load_generator(tmp_path / "two.safetensors")
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)
    assert not list(tmp_path.glob("*.autosave*"))
