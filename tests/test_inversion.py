"""Inversion: optimization of latents in W and W+ for given images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from nada_core import Latents, render, sample
from nada_core.guidance.reconstruction import ReconstructionLoss, check_networks, psnr
from nada_core.latents.inversion import (
    PRESETS,
    InvertConfig,
    InvertStep,
    _autocorrelation,
    _normalize,
    _row_spread,
    invert,
)

#: MSE only, without noise maps: fast, and sufficient for a generator of 16 pixels.
PLAIN = InvertConfig(space="w", steps=60, lpips=0.0, id=0.0, optimize_noise=False, initial_noise_factor=0.0)


@pytest.fixture(scope="module")
def generator() -> tiny.StyleGAN2:
    return quiet(tiny.generator())


def quiet(made: tiny.StyleGAN2) -> tiny.StyleGAN2:
    """Reduce the colors to -1..1, the range of photos."""
    with torch.no_grad():
        for name, value in made.named_parameters():
            if ".torgb." in name and ".affine." not in name:
                value.mul_(0.2)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def known(generator: tiny.StyleGAN2) -> Tensor:
    """Images of known latents."""
    return render(generator, sample(generator, range(3), psi=0.5))


class Shades:
    """A stand-in for LPIPS: average pooling."""

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def face(images: Tensor) -> Tensor:
    """A stand-in for a face network."""
    return torch.nn.functional.normalize(images.mean((2, 3)) + 2, dim=1)


# ---- reconstruction losses ----------------------------------------------------------------------------------------


def test_terms_match_their_definitions(known: Tensor) -> None:
    target, image = known, known.flip(0)
    rows = torch.arange(3)
    terms = ReconstructionLoss(target, {"mse": 1, "lpips": 1, "id": 1}, Shades(), face).terms(image, rows)
    assert torch.allclose(terms["mse"], (image - target).square().mean((1, 2, 3)), atol=1e-6)
    wanted = torch.nn.functional.avg_pool2d(image - target, 4).square().sum((1, 2, 3))
    assert torch.allclose(terms["lpips"], wanted, rtol=1e-4)
    assert torch.allclose(terms["id"], 1 - (face(image) * face(target)).sum(1), atol=1e-6)


def test_loss_is_weighted_and_skips_terms_of_weight_zero(known: Tensor) -> None:
    loss_function = ReconstructionLoss(known, {"mse": 0.8, "lpips": 0.5, "id": 0.0}, Shades(), None)
    rows = torch.tensor([2, 0])
    terms = loss_function.terms(known[:2], rows)
    assert set(terms) == {"mse", "lpips"}
    assert torch.allclose(loss_function(known[:2], rows), 0.8 * terms["mse"] + 0.5 * terms["lpips"])
    assert loss_function(known[1:2], torch.tensor([1])).abs().max() < 1e-9


def test_gradients_reach_the_image(known: Tensor) -> None:
    images = known.flip(0).clone().requires_grad_()
    loss_function = ReconstructionLoss(known, {"mse": 1.0, "coarse": 1.0, "lpips": 1.0, "id": 1.0}, Shades(), face)
    loss_function(images, torch.arange(3)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with torch.no_grad():
        nearer = images - 0.05 * images.grad / images.grad.abs().max()
    assert (loss_function(nearer, torch.arange(3)).sum() < loss_function(images, torch.arange(3)).sum()).item()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"mse": 0.0}, "None of the terms mse has a weight"),
        ({"mse": 1.0, "lpips": 0.8}, "lpips term weighs 0.8, but there is no network.*LPIPS network"),
        ({"id": 0.1}, "id term weighs 0.1, but there is no network.*face recognition network"),
    ],
)
def test_term_without_its_network_is_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_networks(weights, None, None)


def test_psnr_in_decibels() -> None:
    flat = torch.zeros(2, 3, 16, 16)
    assert torch.allclose(psnr(flat + 0.2, flat), torch.tensor(20.0))  # 0.1 of the whole range
    assert psnr(flat + 9, flat + 1).min() > 100  # values beyond the range are clamped


# ---- inversion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["w", "w+", "w then w+"])
def test_inversion_recovers_known_latents(generator: tiny.StyleGAN2, known: Tensor, space: str) -> None:
    result = invert(generator, known, replace(PLAIN, space=space, steps=150))
    mean = render(generator, Latents(generator.w_avg.expand(3, generator.num_ws, -1)))
    before = psnr(mean, known)
    assert min(result.psnr) > 24 and min(p - b for p, b in zip(result.psnr, before.tolist(), strict=True)) > 6
    assert torch.equal(result.images, render(generator, result.latents))
    assert torch.allclose(psnr(result.images, result.targets), torch.tensor(result.psnr), atol=0.05)
    same_rows = bool((result.latents.ws == result.latents.ws[:, :1]).all())
    assert same_rows == (space == "w")


def test_inversion_in_w_plus_is_closer_than_in_w(generator: tiny.StyleGAN2, known: Tensor) -> None:
    shifted = known.roll(3, -1)  # shifted images, which this generator cannot render
    near = [sum(invert(generator, shifted, replace(PLAIN, space=s, steps=120)).loss) for s in ("w", "w then w+")]
    assert near[1] < near[0]


def test_inversion_is_independent_of_the_batch(generator: tiny.StyleGAN2, known: Tensor) -> None:
    config = replace(PLAIN, steps=12, initial_noise_factor=0.05, optimize_noise=True, space="w then w+")
    together = invert(generator, known, config)
    for batch in (1, 2):
        apart = invert(generator, known, replace(config, batch=batch))
        assert torch.allclose(together.latents.ws, apart.latents.ws, atol=1e-4)
    alone = invert(generator, known[1:2], config)
    assert torch.allclose(together.latents.ws[1:2], alone.latents.ws, atol=1e-4)


def test_inversion_is_reproducible_and_keeps_global_state(generator: tiny.StyleGAN2, known: Tensor) -> None:
    config, before = (
        replace(PLAIN, steps=5, initial_noise_factor=0.05, optimize_noise=True),
        tiny.copied(generator.state_dict()),
    )
    state, pictures = torch.get_rng_state(), known.clone()
    first, second = invert(generator, known, config), invert(generator, known, config)
    other = invert(generator, known, replace(config, seed=1))
    assert torch.equal(first.latents.ws, second.latents.ws) and not torch.equal(first.latents.ws, other.latents.ws)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(pictures, known)
    assert not tiny.changed(before, tiny.copied(generator.state_dict()))


def test_inversion_returns_the_best_step(generator: tiny.StyleGAN2, known: Tensor) -> None:
    wild = invert(generator, known, replace(PLAIN, steps=40, lr=3.0, lr_rampup=0.0, lr_rampdown=0.0))
    steps = [step["loss"] for step in wild.history]
    assert steps == sorted(steps, reverse=True)  # the history has the best loss so far
    assert sum(wild.loss) / 3 == pytest.approx(steps[-1])
    again = ReconstructionLoss(wild.targets, {"mse": 1.0})(render(generator, wild.latents), torch.arange(3))
    assert torch.allclose(again, torch.tensor(wild.loss), atol=1e-5)


def test_images_stop_independently(generator: tiny.StyleGAN2, known: Tensor) -> None:
    mean = render(generator, Latents(generator.w_avg.expand(1, generator.num_ws, -1)))
    mixed = torch.cat([mean, known[:1]])
    result = invert(generator, mixed, replace(PLAIN, steps=30, stop_psnr=40.0))
    assert result.steps[0] == 1 and result.steps[1] == 30  # the first is the starting point
    patient = invert(generator, mixed, replace(PLAIN, steps=200, lr=3.0, patience=4, lr_rampup=0.0, lr_rampdown=0.0))
    assert max(patient.steps) < 200 and len(patient.history) == max(patient.steps)


def test_progress_counts_steps_times_images(generator: tiny.StyleGAN2, known: Tensor) -> None:
    steps: list[InvertStep] = []
    invert(generator, known, replace(PLAIN, steps=4, batch=2), on_step=steps.append)
    assert [step.done for step in steps] == [2, 4, 6, 8, 9, 10, 11, 12] and steps[0].total == 12
    assert steps[0].images().shape == (2, 3, 16, 16) and steps[-1].images().shape == (1, 3, 16, 16)
    assert not steps[0].images().requires_grad

    def stop(step: InvertStep) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        invert(generator, known, PLAIN, on_step=stop)


def test_inversion_starts_from_given_latents(generator: tiny.StyleGAN2, known: Tensor) -> None:
    near = sample(generator, range(3), psi=0.45)
    begun = invert(generator, known, replace(PLAIN, space="w+", steps=1), start=near)
    assert torch.equal(begun.latents.ws, near.ws)  # the first step evaluates the start
    short = replace(PLAIN, space="w+", steps=25)
    assert sum(invert(generator, known, short, start=near).loss) < sum(invert(generator, known, short).loss)


def test_noise_maps_are_optimized_and_returned_with_the_latents(generator: tiny.StyleGAN2) -> None:
    rng = tiny.rng(3)
    hidden = Latents(sample(generator, [5]).ws, generator.draw_noise(1, rng), generator.space())
    target = render(generator, hidden)
    config = replace(PLAIN, steps=80, space="w+", noise_reg=0.0)
    plain, noisy = (invert(generator, target, replace(config, optimize_noise=maps)) for maps in (False, True))
    assert noisy.psnr[0] > plain.psnr[0] + 1
    assert plain.latents.noise == "const" and len(noisy.latents.noise) == 5
    for one in noisy.latents.noise:
        assert isinstance(one, Tensor) and one.mean().abs() < 1e-4 and one.std() == pytest.approx(1, abs=0.1)


def test_noise_regularizer_decorrelates_the_maps(generator: tiny.StyleGAN2, known: Tensor) -> None:
    config = replace(PLAIN, steps=60, space="w+", optimize_noise=True)
    both = [invert(generator, known, replace(config, noise_reg=weight)).latents.noise for weight in (0.0, 1e5)]
    free, regularized = (float(_autocorrelation(list(maps))) for maps in both)
    assert regularized < free


def test_given_networks_are_used(generator: tiny.StyleGAN2, known: Tensor) -> None:
    config = replace(PLAIN, steps=30, mse=0.0, lpips=0.5, id=1.0)
    result = invert(generator, known, config, Shades(), face)
    assert result.loss[0] < result.history[0]["loss"]


# ---- parts of a step ----------------------------------------------------------------------------------------------


def test_noise_regularizer_value() -> None:
    noise = torch.randn(2, 1, 16, 16, generator=tiny.rng())
    wanted = torch.zeros(2)
    level = noise
    for _ in range(2):  # 16 and 8 pixels
        wanted += sum((level * level.roll(1, d)).mean((1, 2, 3)).square() for d in (2, 3))
        level = (level[..., ::2, ::2] + level[..., 1::2, ::2] + level[..., ::2, 1::2] + level[..., 1::2, 1::2]) / 2
    assert torch.allclose(torch.as_tensor(_autocorrelation([noise])), wanted.sum(), rtol=1e-4)
    stripes = torch.ones(1, 1, 16, 16) * torch.tensor([1.0, -1.0]).repeat(8)
    assert float(_autocorrelation([stripes])) > 100 * float(_autocorrelation([noise[:1]]))


def test_scatter_and_normalize() -> None:
    rows = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert float(_row_spread(rows, 2.0)) == pytest.approx(0.25)
    maps = [torch.randn(2, 1, 8, 8, generator=tiny.rng()) * 3 + 1]
    _normalize(maps)
    assert torch.allclose(maps[0].mean((2, 3)), torch.zeros(2, 1), atol=1e-6)
    assert torch.allclose(maps[0].square().mean((2, 3)), torch.ones(2, 1), atol=1e-5)


# ---- invalid inputs -----------------------------------------------------------------------------------------------


def test_images_of_any_size_are_accepted(generator: tiny.StyleGAN2) -> None:
    for shape in ((1, 3, 40, 90), (1, 1, 16, 16), (2, 4, 33, 17)):
        result = invert(generator, torch.zeros(shape), replace(PLAIN, steps=1))
        assert result.images.shape == (shape[0], 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 5, 16, 16), r"\[1, 5, 16, 16\]"),
        (torch.zeros(1, 3, 1, 1), "1 x 1 pixels"),
        (torch.full((1, 3, 16, 16), math.nan), "NaN"),
    ],
)
def test_invalid_images_are_refused(generator: tiny.StyleGAN2, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(generator, images, PLAIN)


def test_latents_that_do_not_fit_are_refused(generator: tiny.StyleGAN2, known: Tensor) -> None:
    ws = sample(generator, range(3)).ws
    for start, message in (
        (Latents(ws[:2]), "3 images and 2 latents"),
        (Latents(ws[:, :4]), r"\[4, 5\] rows"),
        (Latents(ws, space="elsewhere"), "another generator"),
    ):
        with pytest.raises(ValueError, match=message):
            invert(generator, known, PLAIN, start=start)


def test_conditional_generator_needs_a_start(known: Tensor) -> None:
    conditional = quiet(tiny.generator(c_dim=2))
    with pytest.raises(ValueError, match="conditional generator and nothing to start from"):
        invert(conditional, known, PLAIN)
    start = sample(conditional, range(3), psi=0.0, label=1)
    assert len(invert(conditional, known, replace(PLAIN, steps=2), start=start).latents) == 3


def test_contradictory_settings_are_refused() -> None:
    for change in ({"space": "z"}, {"steps": 0}, {"lr_rampup": 1.5}, {"lr": math.nan}, {"mse": -1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            InvertConfig(**change)
    assert PRESETS["report"].weights == {"mse": 0.8, "coarse": 0.0, "lpips": 0.5, "id": 1.0}


def test_non_finite_loss_stops_the_inversion(generator: tiny.StyleGAN2, known: Tensor) -> None:
    def identity(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] * math.nan

    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        invert(generator, known, replace(PLAIN, id=1.0), identity=identity)


def test_batch_is_halved_when_memory_runs_out(
    generator: tiny.StyleGAN2, known: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = type(generator).synthesize

    def small(self: tiny.StyleGAN2, ws: Tensor, noise: object = "const", rng: object = None) -> Tensor:
        sizes.append(len(ws))
        if len(ws) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return whole(self, ws, noise, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(type(generator), "synthesize", small)
    result = invert(generator, known, replace(PLAIN, steps=2, batch=3))
    assert len(result.latents) == 3 and sizes[:3] == [3, 2, 1]
