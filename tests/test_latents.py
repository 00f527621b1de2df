"""Latents as data: a seed is a person whatever its neighbours, and pictures do not depend on how they are batched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import generator, rng

from nada_core.latents import Latents, render, sample


def test_a_seed_gives_the_same_latent_whatever_its_neighbours_are() -> None:
    made = generator()
    together = sample(made, [3, 7, 11])
    assert len(together) == 3 and together.ws.shape == (3, 6, 5) and together.space == made.space()
    for index, seed in enumerate((3, 7, 11)):
        torch.testing.assert_close(sample(made, [seed]).ws[0], together.ws[index])
    torch.testing.assert_close(sample(made, range(12)).ws[[3, 7, 11]], together.ws)
    assert (together.ws[0] - together.ws[1]).abs().max() > 0.01


def test_truncation_pulls_towards_the_mean() -> None:
    made = generator()
    whole, half, none = (sample(made, [1, 2], psi).ws for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, made.w_avg.expand_as(none))
    torch.testing.assert_close(half, (whole + none) / 2)
    cut = sample(made, [1, 2], 0.5, cutoff=2).ws
    assert torch.equal(cut[:, :2], half[:, :2]) and torch.equal(cut[:, 2:], whole[:, 2:])
    assert torch.equal(sample(made, [1]).ws, sample(made, [1], 0.7).ws)


def test_the_callers_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    render(generator(), sample(generator(), [1]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_the_batch_size_does_not_change_the_pictures(batch: int) -> None:
    made = generator()
    latents = sample(made, range(5))
    pictures = render(made, latents, batch)
    assert pictures.shape == (5, 3, 16, 16) and not pictures.requires_grad
    torch.testing.assert_close(pictures, made.synthesize(latents.ws).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_noise_maps_travel_with_the_latents(batch: int) -> None:
    made = generator()
    latents = sample(made, range(5))
    shared = [layer[0, 0] for layer in made.draw_noise(1, rng(1))]
    own = made.draw_noise(5, rng(2))
    for noise in ("none", tuple(shared), tuple(own)):
        pictures = render(made, replace(latents, noise=noise), batch)
        torch.testing.assert_close(pictures, made.synthesize(latents.ws, noise).detach(), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
        assert (pictures - render(made, latents)).abs().max() > 0.01


def test_latents_fit_generators_with_the_same_mapping_and_no_others() -> None:
    made, adapted, stranger = generator(), generator(), generator(rng=rng(5))
    with torch.no_grad():
        adapted.get_parameter("synthesis.b8.conv0.weight").add_(1.0)
    latents = sample(made, [1])
    assert (render(made, latents) - render(adapted, latents)).abs().max() > 0.01
    with pytest.raises(ValueError, match=f"another generator .space {made.space()[:12]}.*{stranger.space()[:12]}"):
        render(stranger, latents)
    torch.testing.assert_close(  # a latent that does not say where it comes from is taken at its word
        render(stranger, Latents(latents.ws)), stranger.synthesize(latents.ws).detach(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"expected \[N, 6, 5\]"):
        render(made, Latents(latents.ws[:, :3]))


@pytest.mark.parametrize(("count", "noise", "words"), [
    (2, "random", r"got noise 'random'.*draw_noise"), (2, "loud", "got noise 'loud'"),
    (2, (torch.zeros(3, 1, 4, 4),), r"noise map 0 has shape \[3, 1, 4, 4\]"), (2, (torch.zeros(4),), "noise map 0"),
    (0, "const", "at least one latent"),
])  # fmt: skip
def test_latents_refuse_what_gives_no_certain_picture(count: int, noise: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Latents(torch.zeros(count, 6, 5), noise)


def test_maps_as_a_generator_draws_them_are_taken() -> None:
    made = generator()
    latents = sample(made, range(3))
    pictures = render(made, replace(latents, noise=made.draw_noise(3, rng(2))), batch=2)
    torch.testing.assert_close(pictures, made.synthesize(latents.ws, made.draw_noise(3, rng(2))).detach(), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    with pytest.raises(ValueError, match="got batch 0"):
        render(made, latents, 0)


def test_labels() -> None:
    made = generator(c_dim=3)
    first, second = (sample(made, [1, 2], label=label).ws for label in (0, 2))
    assert (first - second).abs().max() > 0.01
    z = torch.stack([torch.randn(6, generator=rng(seed)) for seed in (1, 2)])
    torch.testing.assert_close(second, made.map(z, torch.eye(3)[2].expand(2, 3), 0.7).detach())


@pytest.mark.parametrize(("c_dim", "arguments", "words"), [
    (0, {"seeds": []}, "at least one whole number"), (0, {"seeds": [1, -1]}, r"got seeds \[1, -1\]"),
    (0, {"seeds": [1], "label": 0}, "has no classes"), (3, {"seeds": [1]}, "got label None.*from 0 to 2"),
    (3, {"seeds": [1], "label": 3}, "got label 3"), (3, {"seeds": [1], "label": -1}, "got label -1"),
    (0, {"seeds": [1], "cutoff": 7}, "cutoff is 7"), (0, {"seeds": [1], "psi": float("nan")}, "psi is nan"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(c_dim: int, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample(generator(c_dim=c_dim), **arguments)
