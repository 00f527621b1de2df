"""LPIPS against the package's own arithmetic, where its weights come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import rng
from torch import Tensor

from nada_core.io.errors import CheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import write_torch
from nada_core.models.lpips import TRUNKS, Perceptual, load_perceptual


def pictures(count: int = 2, side: int = 64, seed: int = 5) -> Tensor:
    return torch.rand(count, 3, side, side, generator=rng(seed)) * 2 - 1


@pytest.fixture(scope="module")
def squeeze() -> Perceptual:
    return load_perceptual("squeeze:random")


def as_torchvision(perceptual: Perceptual) -> dict[str, Tensor]:
    """The trunk's weights under torchvision's names, and a classifier as its files have one."""
    state = perceptual.net.state_dict()
    trunk = {f"features.{name.split('.', 2)[2]}": value for name, value in state.items() if name.startswith("net.")}
    return trunk | {"classifier.1.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_distance_is_the_packages(trunk: str) -> None:
    perceptual = load_perceptual(f"{trunk}:random")
    first, second = pictures(), pictures(seed=6)
    with torch.no_grad():
        theirs = perceptual.net(first, second).flatten()
    assert torch.allclose(perceptual.distance(first, second), theirs, atol=1e-6) and (theirs > 0.01).all()
    assert perceptual.distance(first, first).max() == 0


def test_an_untrained_trunk_is_the_same_everywhere_and_says_that_it_is_untrained(squeeze: Perceptual) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = load_perceptual("squeeze:random")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(squeeze.features(pictures()), again.features(pictures()))
    assert squeeze.relative and "relative only" in squeeze.label
    assert squeeze.features(pictures()).std() > 0


def test_slopes_reach_the_pictures_only_and_are_right(squeeze: Perceptual) -> None:
    assert not any(p.requires_grad for p in squeeze.parameters())
    flat = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)  # nothing to see: every feature may be zero
    squeeze.distance(flat, pictures(1, 32)).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()

    double = load_perceptual("squeeze:random").double()
    x, y = (pictures(1, 32, seed).double() for seed in (1, 2))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(double.distance(x, y).sum(), x)
    way = torch.randn(x.shape, generator=rng(9), dtype=torch.float64)
    ahead, behind = (double.distance(x.detach() + step * way, y).item() for step in (1e-6, -1e-6))
    assert (slope * way).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-3)


@pytest.mark.parametrize("side", [16, 20, 33, 64, 300])
def test_pictures_of_any_size_are_seen(squeeze: Perceptual, side: int) -> None:
    assert squeeze.distance(pictures(1, side), pictures(1, side, 6)).shape == (1,)


def test_large_pictures_are_reduced_by_area(squeeze: Perceptual) -> None:
    small = load_perceptual("squeeze:random", side=32)
    large = pictures(1, 64)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert torch.allclose(small.features(large), small.features(halved), atol=1e-6)
    assert small.features(large).numel() < squeeze.features(large).numel()


def test_it_stays_in_evaluation_mode(squeeze: Perceptual) -> None:
    squeeze.train()
    assert not any(module.training for module in squeeze.modules())


def test_trained_weights_come_from_a_file_or_from_torchs_cache(
    squeeze: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: value * 1.5 for name, value in as_torchvision(squeeze).items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "copy.safetensors")
    given = load_perceptual(f"squeeze:{tmp_path / 'copy.safetensors'}")
    assert not given.relative and given.label == "LPIPS" and given.name == "squeeze:copy.safetensors"
    assert torch.equal(given.net.state_dict()["net.slice1.0.weight"], state["features.0.weight"])

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    write_torch(tmp_path / "checkpoints" / TRUNKS["squeeze"], state)
    for name in ("squeeze", "squeeze:imagenet"):  # neither needs the network, for the file is there
        cached = load_perceptual(name)
        assert torch.equal(cached.features(pictures()), given.features(pictures()))


def test_what_cannot_be_loaded_is_refused(squeeze: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="vgg:imagenet to download.*vgg:random"):
        load_perceptual("vgg")
    with pytest.raises(CheckpointError, match="no perceptual network 'inception'; expected vgg, alex, squeeze"):
        load_perceptual("inception")
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_perceptual(f"vgg:{tmp_path / 'absent.pth'}")
    write_torch(tmp_path / "squeeze.pth", as_torchvision(squeeze))
    with pytest.raises(UnsupportedCheckpointError, match=r"features.0.weight of shape \[64, 3, 11, 11\], found \[64"):
        load_perceptual(f"alex:{tmp_path / 'squeeze.pth'}")
    with pytest.raises(ValueError, match="got side 8, expected 0 or at least 32"):
        load_perceptual("squeeze:random", side=8)
    with pytest.raises(ValueError, match=r"shape \[1, 4, 64, 64\], expected \[N, 3, H, W\]"):
        squeeze.features(torch.zeros(1, 4, 64, 64))


def test_a_failed_download_says_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError, match="could not be downloaded .no network.*squeeze:random"):
        load_perceptual("squeeze:imagenet")
