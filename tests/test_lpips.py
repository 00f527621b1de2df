"""LPIPS against the package, origins of its weights, and refused files."""

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


def images(count: int = 2, side: int = 64, seed: int = 5) -> Tensor:
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
def test_distance_matches_the_package(trunk: str) -> None:
    perceptual = load_perceptual(f"{trunk}:random")
    first, second = images(), images(seed=6)
    with torch.no_grad():
        theirs = perceptual.net(first, second).flatten()
    assert torch.allclose(perceptual.distance(first, second), theirs, atol=1e-6) and (theirs > 0.01).all()
    assert perceptual.distance(first, first).max() == 0


def test_untrained_trunk_is_reproducible_and_labeled(squeeze: Perceptual) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = load_perceptual("squeeze:random")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(squeeze.features(images()), again.features(images()))
    assert squeeze.relative and "relative only" in squeeze.label
    assert squeeze.features(images()).std() > 0


def test_gradients_reach_images_only_and_match_finite_differences(squeeze: Perceptual) -> None:
    assert not any(p.requires_grad for p in squeeze.parameters())
    flat = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)  # all features may be zero
    squeeze.distance(flat, images(1, 32)).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()

    double = load_perceptual("squeeze:random").double()
    x, y = (images(1, 32, seed).double() for seed in (1, 2))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(double.distance(x, y).sum(), x)
    direction = torch.randn(x.shape, generator=rng(9), dtype=torch.float64)
    ahead, behind = (double.distance(x.detach() + step * direction, y).item() for step in (1e-6, -1e-6))
    assert (grad * direction).sum().item() == pytest.approx((ahead - behind) / 2e-6, rel=1e-3)


@pytest.mark.parametrize("side", [16, 20, 33, 64, 300])
def test_images_of_any_size_are_accepted(squeeze: Perceptual, side: int) -> None:
    assert squeeze.distance(images(1, side), images(1, side, 6)).shape == (1,)


def test_large_images_are_reduced_by_area(squeeze: Perceptual) -> None:
    small = load_perceptual("squeeze:random", side=32)
    large = images(1, 64)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert torch.allclose(small.features(large), small.features(halved), atol=1e-6)
    assert small.features(large).numel() < squeeze.features(large).numel()


def test_perceptual_stays_in_evaluation_mode(squeeze: Perceptual) -> None:
    squeeze.train()
    assert not any(module.training for module in squeeze.modules())


def test_trained_weights_load_from_a_file_or_the_torch_cache(
    squeeze: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: value * 1.5 for name, value in as_torchvision(squeeze).items()}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "copy.safetensors")
    given = load_perceptual(f"squeeze:{tmp_path / 'copy.safetensors'}")
    assert not given.relative and given.label == "LPIPS" and given.name == "squeeze:copy.safetensors"
    assert torch.equal(given.net.state_dict()["net.slice1.0.weight"], state["features.0.weight"])

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    write_torch(tmp_path / "checkpoints" / TRUNKS["squeeze"], state)
    for name in ("squeeze", "squeeze:imagenet"):  # no download: the file is cached
        cached = load_perceptual(name)
        assert torch.equal(cached.features(images()), given.features(images()))


def test_unusable_names_files_and_images_are_refused(
    squeeze: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="vgg:imagenet"):
        load_perceptual("vgg")
    with pytest.raises(CheckpointError, match="inception"):
        load_perceptual("inception")
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_perceptual(f"vgg:{tmp_path / 'absent.pth'}")
    write_torch(tmp_path / "squeeze.pth", as_torchvision(squeeze))
    with pytest.raises(
        UnsupportedCheckpointError, match=r"features.0.weight of shape \[64, 3, 3, 3\], expected \[64, 3, 11, 11\]"
    ):
        load_perceptual(f"alex:{tmp_path / 'squeeze.pth'}")
    with pytest.raises(ValueError, match="side 8"):
        load_perceptual("squeeze:random", side=8)
    with pytest.raises(ValueError, match=r"\[1, 4, 64, 64\]"):
        squeeze.features(torch.zeros(1, 4, 64, 64))


def test_failed_download_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError, match="no network"):
        load_perceptual("squeeze:imagenet")
