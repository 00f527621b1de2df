"""Pivotal tuning: reconstruction, locality, the resulting domain and errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_inversion import Shades, face, quiet
from torch import Tensor

from nada_core import Latents, load_domain, render, sample, save_domain
from nada_core.guidance.reconstruction import psnr
from nada_core.latents.pivotal_tuning import TuneConfig, TuneStep, _neighbours, tune

#: MSE only, with a learning rate for a generator of 16 pixels.
PLAIN = TuneConfig(steps=60, lr=0.02, lpips=0.0, locality=0.0)


@pytest.fixture(scope="module")
def generator() -> tiny.StyleGAN2:
    return quiet(tiny.generator())


@pytest.fixture(scope="module")
def pivots(generator: tiny.StyleGAN2) -> Latents:
    return sample(generator, range(2), psi=0.5)


@pytest.fixture(scope="module")
def edited(generator: tiny.StyleGAN2, pivots: Latents) -> Tensor:
    """The images of the pivots with a rectangle that the generator does not render."""
    pictures = render(generator, pivots).clamp(-1, 1)
    pictures[:, :, 4:9, 6:12] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    return pictures


def test_tuning_learns_an_image_outside_the_domain(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    before = tiny.copied(generator.state_dict())
    tuned = tune(generator, edited, pivots, replace(PLAIN, steps=150))
    pivot_error = (render(generator, pivots) - edited).square().mean()
    error = (render(tuned.generator, pivots) - edited).square().mean()
    assert error < 0.25 * pivot_error
    assert not tiny.changed(before, tiny.copied(generator.state_dict()))
    assert torch.allclose(psnr(tuned.images, edited), torch.tensor(tuned.psnr))
    assert tuned.generator.space() == generator.space() and not any(
        p.requires_grad or p.grad is not None for p in tuned.generator.parameters()
    )


def test_locality_regularizer_preserves_other_images(
    generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor
) -> None:
    fresh = sample(generator, range(100, 164), psi=1.0)
    before = render(generator, fresh, 64)
    free, regularized = (
        (render(tune(generator, edited, pivots, replace(PLAIN, steps=80, **more)).generator, fresh, 64) - before)
        .abs()
        .mean()
        .item()
        for more in ({}, {"locality": 1.0, "distance": 0.0, "psi": 1.0, "num_neighbours": 3})
    )
    assert regularized < 0.5 * free


def test_tuning_gives_a_domain_for_other_generators(
    generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor, tmp_path: Path
) -> None:
    tuned = tune(generator, edited, pivots, PLAIN)
    assert all(name.startswith("synthesis.") for name in tuned.domain.changes)
    save_domain(tuned.domain, tmp_path / "face.safetensors")
    again = load_domain(generator, tmp_path / "face.safetensors")
    assert torch.allclose(render(again, pivots), tuned.images, atol=1e-5)
    adapted = quiet(tiny.generator())
    with torch.no_grad():
        adapted.get_parameter("synthesis.b16.torgb.bias").add_(0.2)
    both = render(load_domain(adapted, tmp_path / "face.safetensors"), pivots)
    assert torch.allclose(both, tuned.images + 0.2, atol=1e-5)


def test_tuning_stops_when_all_images_are_close_enough(
    generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor
) -> None:
    unchanged = tune(generator, render(generator, pivots), pivots, replace(PLAIN, stop_psnr=40.0))
    assert len(unchanged.history) == 1 and not unchanged.domain.changes
    config = replace(PLAIN, steps=500, stop_psnr=24.0)
    for batch in (2, 1):  # with batch 1 the images alternate
        some = tune(generator, edited, pivots, replace(config, batch=batch))
        assert len(some.history) < 500 and min(some.psnr) > 23.5
    alike = tune(generator, render(generator, pivots), pivots, replace(PLAIN, lpips=1.0), Shades())
    assert len(alike.history) == 1  # LPIPS is below the threshold of the paper from the start


def test_terms_change_the_result(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    config = replace(PLAIN, steps=20, mse=0.0, lpips=1.0, id=1.0, stop_lpips=0.0, locality=0.1)
    tuned = tune(generator, edited, pivots, config, Shades(), face)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert tuned.history[0]["locality"] == pytest.approx(0, abs=1e-6) and tuned.history[-1]["locality"] > 0


def test_gradients_of_micro_batches_add_up(
    generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PLAIN, steps=3, locality=1.0, num_neighbours=2, lr_rampdown=0.0)
    whole = tune(generator, edited, pivots, config)
    draw = tiny.StyleGAN2.synthesize

    def small(self: tiny.StyleGAN2, ws: Tensor, noise: object = "const", rng: object = None) -> Tensor:
        if len(ws) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return draw(self, ws, noise, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny.StyleGAN2, "synthesize", small)
    parts = tune(generator, edited, pivots, config)
    monkeypatch.undo()
    for name, change in whole.domain.changes.items():
        assert torch.allclose(change, parts.domain.changes[name], atol=2e-3)  # Adam's first steps follow the sign


def test_noise_maps_of_the_latents_are_used(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    noisy = replace(pivots, noise=generator.draw_noise(2, tiny.rng(4)))
    tuned = tune(generator, edited, noisy, replace(PLAIN, batch=1))
    assert torch.allclose(tuned.images, render(tuned.generator, noisy), atol=1e-5)
    assert sum(tuned.psnr) > psnr(render(generator, noisy), edited).sum().item() + 4


def test_neighbours_have_the_configured_distance_from_their_pivot(generator: tiny.StyleGAN2, pivots: Latents) -> None:
    config = replace(PLAIN, locality=1.0, num_neighbours=6, distance=0.7)
    near = _neighbours(generator, pivots, [1], config, tiny.rng())
    assert near.shape == (6, 6, 5)
    away = (near - pivots.ws[1]).norm(dim=(1, 2))
    assert torch.allclose(away, torch.tensor(0.7), atol=1e-5)
    conditional = quiet(tiny.generator(c_dim=3))
    latents = sample(conditional, range(2), label=1)
    assert _neighbours(conditional, latents, [0, 1], config, tiny.rng()).shape == (6, 6, 5)


def test_tuning_is_reproducible(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    state = torch.get_rng_state()
    first, second = (tune(generator, edited, pivots, replace(PLAIN, steps=4, locality=0.1)) for _ in range(2))
    assert all(torch.equal(first.domain.changes[name], second.domain.changes[name]) for name in first.domain.changes)
    assert torch.equal(state, torch.get_rng_state())


def test_steps_are_reported_and_can_be_stopped(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    steps: list[TuneStep] = []
    tune(generator, edited, pivots, replace(PLAIN, steps=3), on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2] and steps[0].steps == 3
    assert steps[0].images().shape == (2, 3, 16, 16) and steps[2].psnr > steps[0].psnr
    assert not torch.equal(steps[0].images(), steps[2].images())

    def stop(step: TuneStep) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tune(generator, edited, pivots, PLAIN, on_step=stop)


def test_unsuitable_inputs_are_refused(generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor) -> None:
    with pytest.raises(ValueError, match="2 images and 1 latents"):
        tune(generator, edited, pivots[:1], PLAIN)
    with pytest.raises(ValueError, match="another generator"):
        tune(generator, edited, replace(pivots, space="elsewhere"), PLAIN)
    with pytest.raises(ValueError, match="1 x 1 pixels"):
        tune(generator, torch.zeros(2, 3, 1, 1), pivots, PLAIN)
    with pytest.raises(ValueError, match="lpips term weighs 1, but there is no network"):
        tune(generator, edited, pivots, TuneConfig())
    with pytest.raises(ValueError, match="locality"):
        TuneConfig(locality=-1.0)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        tune(generator, edited, pivots, replace(PLAIN, id=1.0), identity=lambda x: x.flatten(1)[:, :2] * math.nan)


def test_non_finite_gradient_of_a_finite_loss_stops_the_tuning(
    generator: tiny.StyleGAN2, pivots: Latents, edited: Tensor
) -> None:
    def root(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2].mul(0).sqrt()  # 0, with the gradient inf * 0

    steps: list[TuneStep] = []
    with pytest.raises(FloatingPointError, match="Step 0"):
        tune(generator, edited, pivots, replace(PLAIN, id=1.0), identity=root, on_step=steps.append)
    assert len(steps) == 1 and math.isfinite(steps[0].loss)
