"""Learning from pairs: the losses, the filter, the training, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from nada_core import (
    AdaptConfig,
    Latents,
    PairsConfig,
    PairShift,
    TextShift,
    adapt_to_pairs,
    load_guide,
    load_identity,
    render,
    sample,
)
from nada_core.adaptation.adapt_to_pairs import pair_inputs
from nada_core.adaptation.pairs import Pairs
from nada_core.guidance.pair_filter import wrong_pairs
from nada_core.guidance.pair_losses import PairLoss, change_map, edge_l1, multiscale_l1
from nada_core.portraits import contents
from nada_core.portraits import render as draw

COUNT = 12


def settings(**changes: Any) -> PairsConfig:
    """Pairs alone, without the filter; changes of `training` by name."""
    own = {name: changes.pop(name) for name in tuple(changes) if name in PairsConfig.__pydantic_fields__}
    training = AdaptConfig(**{"steps": 6, "lr": 0.02, "noise": "const", "batch": 4, "keep_every": 2, **changes})
    return PairsConfig(**{"min_direction": 0.0, "max_rank": 1.0, **own}, training=training)


@pytest.fixture(scope="module")
def source() -> tiny.StyleGAN2:
    return tiny.generator()


@pytest.fixture(scope="module")
def latents(source: tiny.StyleGAN2) -> Latents:
    return sample(source, range(COUNT), psi=1.0)


@pytest.fixture(scope="module")
def before(source: tiny.StyleGAN2, latents: Latents) -> Tensor:
    return render(source, latents).clamp(-1, 1)


@pytest.fixture(scope="module")
def edited(before: Tensor) -> Tensor:
    """Redder images: an edit that a generator can learn."""
    return (0.5 * before + torch.tensor([0.5, -0.2, -0.2])[:, None, None]).clamp(-1, 1)


GUIDES = [(load_guide("portraits-64"), 1.0)]


@pytest.fixture(scope="module")
def people() -> tuple[Tensor, Tensor]:
    """Photos and the same people as jokers."""
    attributes = contents(range(COUNT))
    return draw(attributes), draw(attributes, "joker")


# ---- losses -------------------------------------------------------------------------------------------------------


def test_l1_and_edges_of_a_constant_difference() -> None:
    images, weights = torch.zeros(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    assert torch.allclose(multiscale_l1(images, images + 0.5, weights), torch.tensor([0.5, 0.5]))
    assert not edge_l1(images, images + 0.5, weights).any()


def test_edges_differ_between_sharp_and_blurred() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 3, 16, 16)
    assert edge_l1(torch.zeros_like(stripes), stripes, torch.ones(1, 1, 16, 16)).item() == pytest.approx(2.0)


def test_change_map_weighs_the_changed_region_more() -> None:
    before = torch.zeros(1, 3, 16, 16)
    after = before.clone()
    after[:, :, :4, :4] = 1
    weights = change_map(before, after, focus=3.0)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights[0, 0, 1, 1] > 5 * weights[0, 0, 10, 10] > 0
    assert torch.equal(change_map(before, after, 0.0), torch.ones(1, 1, 16, 16))
    assert change_map(before, before, 3.0).isfinite().all()


def test_change_map_of_large_images_has_their_size() -> None:
    before, after = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    after[:, :, :32, :32] = 1
    weights = change_map(before, after, focus=3.0)
    assert weights.shape == (1, 1, 128, 128) and weights[0, 0, 8, 8] > 5 * weights[0, 0, 100, 100]


def test_pair_loss_of_chunks_is_that_of_the_batch() -> None:
    images, targets = torch.randn(6, 3, 16, 16, generator=tiny.rng(1)), torch.zeros(3, 3, 16, 16)
    loss = PairLoss(targets, torch.ones(3, 1, 16, 16), 6, {"pair_l1": 1.0, "pair_edges": 1.0}, first=1)
    whole = loss.terms(images, slice(0, 6))
    parts = [loss.terms(images[part], part) for part in (slice(0, 2), slice(2, 4), slice(4, 6))]
    for name, values in whole.items():
        assert torch.allclose(values, torch.cat([part[name] for part in parts]))
        assert not values[[0, 4, 5]].any() and values[1:4].all()
        assert values.mean().item() == pytest.approx(loss.target_terms(images[1:4], slice(0, 3))[name].mean().item())


# ---- shift --------------------------------------------------------------------------------------------------------


def test_pair_shift_is_the_mean_of_the_directions(before: Tensor, edited: Tensor) -> None:
    guide = tiny.guide()
    shift = PairShift(before, edited)
    change = guide.encode_images(edited) - guide.encode_images(before)
    unit = change / change.norm(dim=-1, keepdim=True)
    expected = unit.mean(0, keepdim=True) / unit.mean(0).norm()
    assert torch.allclose(shift.direction(guide), expected, atol=1e-5)
    assert shift.target_embedding(guide).norm().item() == pytest.approx(1.0, abs=1e-5)


def test_pair_shift_refuses_what_are_no_pairs(before: Tensor) -> None:
    with pytest.raises(ValueError, match="12 images before and 3 after"):
        PairShift(before, before[:3])
    with pytest.raises(ValueError, match=r"\[12, 1, 16, 16\]"):
        PairShift(before, before[:, :1])
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        PairShift(before, before * 255)
    with pytest.raises(ValueError, match="equal"):
        PairShift(before, before).direction(tiny.guide())


# ---- filter -------------------------------------------------------------------------------------------------------


def test_filter_finds_unchanged_images_other_subjects_and_other_styles(people: tuple[Tensor, Tensor]) -> None:
    before, after = people[0], people[1].clone()
    after[3], after[7] = before[3], people[1][1]
    after[10] = before[10].flip(0)  # red and blue
    reasons = wrong_pairs(before, after, GUIDES)
    assert set(reasons) == {3, 7, 10}
    assert "change" in reasons[3] and "resembles" in reasons[7] and "change" in reasons[10]


def test_filter_accepts_correct_pairs(people: tuple[Tensor, Tensor]) -> None:
    assert wrong_pairs(*people, GUIDES, load_identity("portraits")) == {}
    assert wrong_pairs(*people) == {}


@pytest.mark.parametrize("guided", [True, False])
def test_filter_refuses_another_order(people: tuple[Tensor, Tensor], guided: bool) -> None:
    before, after = people[0], people[1].roll(1, 0)
    guides = GUIDES if guided else []
    with pytest.raises(ValueError, match="order"):
        wrong_pairs(before, after, guides)
    assert wrong_pairs(before, after, guides, min_direction=0.0, max_rank=1.0) == {}


def test_filter_needs_four_pairs(before: Tensor, edited: Tensor) -> None:
    assert wrong_pairs(before[:3], edited[:3].flip(0), [(tiny.guide(), 1.0)]) == {}


# ---- training -----------------------------------------------------------------------------------------------------


def assert_equal_weights(first: Any, second: Any) -> None:
    for name, value in first.generator.state_dict().items():
        assert torch.equal(value, second.generator.state_dict()[name]), name


def error(result: Any, latents: Latents, edited: Tensor) -> float:
    return (render(result.generator, latents) - edited).abs().mean().item()


def test_training_learns_the_edit_on_other_latents(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    weights = tiny.copied(source.state_dict())
    result = adapt_to_pairs(source, latents[:8], edited[:8], settings(steps=60, hold_out=0.0))
    start = (render(source, latents[8:]) - edited[8:]).abs().mean().item()
    assert error(result, latents[8:], edited[8:]) < 0.6 * start
    assert all(torch.equal(value, weights[name]) for name, value in source.state_dict().items())
    assert set(result.history[0]["terms"]) == {"pair_l1", "pair_edges"}
    assert result.domain.provenance["pairs"]["count"] == 8


def test_best_step_on_held_out_pairs_is_returned(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    result = adapt_to_pairs(source, latents, edited, settings())
    candidates = [step["candidate"] for step in result.history if "candidate" in step]
    assert [one["steps"] for one in candidates] == [2, 4, 6]
    best = min(candidates, key=lambda one: one["loss"])
    assert f"Step {best['steps']}" in result.chosen_because and "3 held-out pairs" in result.chosen_because


def test_patience_stops_a_training_that_no_longer_improves(
    source: tiny.StyleGAN2, latents: Latents, before: Tensor
) -> None:
    """The source draws these images already, so that every step makes the held-out pairs worse."""
    result = adapt_to_pairs(source, latents, before, settings(steps=40, patience=2, lr=0.5))
    assert len(result.history) < 40


def test_rejected_pairs_have_a_reason_and_are_not_used(
    source: tiny.StyleGAN2, latents: Latents, edited: Tensor, before: Tensor
) -> None:
    images = edited.clone()
    images[2] = before[2]
    config = settings(steps=2, min_direction=0.3)
    result = adapt_to_pairs(source, latents, images, config, tiny.guide())
    assert list(result.domain.provenance["pairs"]["rejected"]) == [2]
    images[2] = 0.97 * before[2]
    assert_equal_weights(result, adapt_to_pairs(source, latents, images, config, tiny.guide()))


def test_shift_adds_the_clip_terms_and_random_latents(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    config = settings(steps=2, locality=1.0, terms={"direction": 1.0, "angle": 0.5})
    result = adapt_to_pairs(source, latents, edited, config, tiny.guide(), TextShift("photo", "joker"))
    assert set(result.history[0]["terms"]) == {"direction", "angle", "pair_l1", "pair_edges", "locality"}
    images: list[Tensor] = []
    adapt_to_pairs(
        source,
        latents,
        edited,
        config,
        tiny.guide(),
        TextShift("photo", "joker"),
        on_step=lambda step: images.append(step.images()),
    )
    assert len(images[0]) == 3 * 4  # pairs, latents between them, random latents


def test_chunks_give_the_same_weights(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    whole, parts = (
        adapt_to_pairs(source, latents, edited, settings(steps=2, chunk=chunk, locality=1.0)) for chunk in (0, 3)
    )
    for one, other, rel in zip(whole.history, parts.history, (1e-4, 1e-2), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=rel)  # Adam's first step amplifies rounding


def test_noise_maps_of_the_latents_are_used(source: tiny.StyleGAN2, latents: Latents) -> None:
    noisy = replace(latents, noise=source.draw_noise(COUNT, tiny.rng(5)))
    images = render(source, noisy).clamp(-1, 1)
    pairs = Pairs.of(source, noisy, images, settings()).prepared((), None, 0)
    assert torch.allclose(pairs.before, images, atol=1e-5)
    assert not torch.allclose(render(source, latents), images, atol=1e-3)


def test_resume_is_bit_exact(source: tiny.StyleGAN2, latents: Latents, edited: Tensor, tmp_path: Path) -> None:
    whole = adapt_to_pairs(source, latents, edited, settings())
    autosave, config = tmp_path / "run.safetensors", settings(autosave_every=2)

    def interrupt(step: Any) -> None:
        if step.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt_to_pairs(source, latents, edited, config, on_step=interrupt, autosave=autosave)
    resumed = adapt_to_pairs(source, latents, edited, config, autosave=autosave, resume=True)
    assert_equal_weights(whole, resumed)
    assert resumed.chosen_because == whole.chosen_because


def test_fingerprint_changes_with_images_and_settings(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    inputs = [
        (edited, settings()),
        (edited * 0.99, settings()),
        (edited, settings(l1=3.0)),
        (edited, settings(steps=7)),
    ]
    prints = {pair_inputs(source, latents, images, config).fingerprint() for images, config in inputs}
    assert len(prints) == 4
    assert pair_inputs(source, latents, edited, settings(chunk=2)).fingerprint() in prints


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_bad_pairs_are_refused_before_the_work(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    for message, points, images in (
        ("5 images and 12 latents", latents, edited[:5]),
        ("1 pair", latents[:1], edited[:1]),
        ("12 x 16 pixels", latents, edited[..., :12]),
        ("8 x 8 pixels", latents, edited[:, :, :8, :8]),
        ("another generator", replace(latents, space="0" * 12), edited),
    ):
        with pytest.raises(ValueError, match=message):
            adapt_to_pairs(source, points, images, settings())


def test_settings_without_their_network_are_refused(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    def run(config: PairsConfig, **networks: Any) -> None:
        adapt_to_pairs(source, latents, edited, config, **networks)

    with pytest.raises(ValueError, match="lpips"):
        run(settings(lpips=1.0))
    with pytest.raises(ValueError, match="fisher_samples is 3"):
        run(settings(weight_reg=1.0, fisher_samples=3))
    with pytest.raises(ValueError, match="CLIP model"):
        run(settings(), shift=TextShift("photo", "joker"))
    with pytest.raises(ValueError, match="l1, edges and lpips"):
        settings(l1=0.0, edges=0.0)
    with pytest.raises(ValueError, match="pool is 3"):
        settings(pool=3)


def test_filter_that_leaves_no_pairs_is_refused(source: tiny.StyleGAN2, latents: Latents, before: Tensor) -> None:
    """All images are unchanged but one."""
    images = before[:4].clone()
    images[0] = (images[0] + 0.5).clamp(-1, 1)
    with pytest.raises(ValueError, match="4 pairs, of which 0"):
        adapt_to_pairs(source, latents[:4], images, settings(min_direction=0.8), tiny.guide())


def test_settings_of_a_generator_keep_its_optimizer() -> None:
    base = AdaptConfig(lr=0.015, pool=100, steps=400, schedule="cosine", noise="const")
    config = PairsConfig.for_training(base).training
    assert (config.lr, config.schedule, config.noise) == (0.015, "cosine", "const")
    assert (config.pool, config.steps, config.batch) == (0, 200, 4)


def test_only_edits_that_moved_are_changed(source: tiny.StyleGAN2, latents: Latents, edited: Tensor) -> None:
    given = Pairs.of(source, latents, edited, settings(align=0.1))
    assert torch.equal(given.prepared((), None, 0).targets, given.after)
    moved = torch.stack([image.roll(index % 3 - 1, -1) for index, image in enumerate(edited)])
    given = Pairs.of(source, latents, moved, settings(align=0.1))
    prepared = given.prepared((), None, 0)
    assert not torch.equal(prepared.targets, moved) and torch.equal(prepared.after, moved)
