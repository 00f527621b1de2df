"""Shift from Pairs and Adapt to Pairs, with the built-in renderer as the image model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack_world import World
from torch import Tensor


def drawn(world: World, count: int = 9, style: str = "joker") -> tuple[Any, Tensor, Tensor]:
    """Latents, the generator's images, and the same people in another style."""
    latents = world.call("SampleLatents", generator=world.generator, count=count, psi=1.0)[0]
    (before,) = world.call("Render", generator=world.generator, latents=latents)
    (after,) = world.call("DrawPortrait", latents=latents, style=style)
    return latents, before, after


def learned(world: World, latents: Any, images: Tensor, **values: Any) -> Any:
    given = {"generator": world.generator, "latents": latents, "images": images, "steps": 2, **values}
    return world.call("AdaptToPairs", **given)


def test_renderer_draws_the_people_of_the_latents(world: World) -> None:
    _, before, after = drawn(world, count=3, style="photo")
    assert before.shape == after.shape == (3, 64, 64, 3)
    assert (before - after).abs().mean() < 0.03
    assert (before - after.roll(1, 0)).abs().mean() > 0.06


def test_renderer_refuses_latents_of_another_generator(world: World) -> None:
    latents = world.call("SampleLatents", generator=world.stranger, count=2)[0]
    with pytest.raises(ValueError, match="another generator"):
        world.call("DrawPortrait", latents=latents)


def test_pairs_are_learned_and_reported(either: World) -> None:
    latents, _, after = drawn(either)
    adapted, domain, training, report, snapshots = learned(either, latents, after)
    assert report.startswith("9 pairs: 7 trained, 2 held out, 0 rejected.")
    assert set(training) == {"loss", "pair_l1", "pair_edges", "layers"} and len(training["loss"]) == 2
    assert snapshots == () and domain.provenance["pairs"]["count"] == 9
    (moved,) = either.call("Render", generator=adapted, latents=latents)
    (still,) = either.call("Render", generator=either.generator, latents=latents)
    assert (moved - after).abs().mean() < (still - after).abs().mean()
    assert adapted.w_avg.device.type == "cpu"


def test_report_names_rejected_pairs_with_the_reason(world: World) -> None:
    latents, before, after = drawn(world)
    after[4], after[6] = before[4], after[0]
    report = learned(world, latents, after, guide=world.guide)[3]
    lines = report.splitlines()
    assert lines[0] == "9 pairs: 7 trained, 0 held out, 2 rejected."
    assert lines[1].startswith("Pair 4: its change") and lines[2].startswith("Pair 6: it resembles")


def test_shift_adds_the_losses_of_the_guide(world: World) -> None:
    latents, before, after = drawn(world)
    (shift,) = world.call("ShiftFromPairs", before=before, after=after)
    training = learned(world, latents, after, guide=world.guide, shift=shift)[2]
    assert {"direction", "angle", "pair_l1", "pair_edges"} < set(training)
    with pytest.raises(ValueError, match="CLIP model"):
        learned(world, latents, after, shift=shift)


def test_shift_from_pairs_trains_adapt_generator(world: World) -> None:
    _, before, after = drawn(world, count=4)
    (shift,) = world.call("ShiftFromPairs", before=before, after=after)
    generator, domain, _ = world.adapt(shift=shift)
    assert domain.provenance["image_pairs"] == 4
    assert not torch.equal(generator.synthesis.b4.const, world.generator.synthesis.b4.const)


def test_values_by_hand_reach_the_core(world: World) -> None:
    latents, _, after = drawn(world)
    domain = learned(world, latents, after, settings="by hand", steps=1, batch=2, l1=2.5, hold_out=0.0, max_rank=1.0)[1]
    pairs, config = domain.provenance["pairs"], domain.provenance["config"]
    assert (pairs["l1"], pairs["hold_out"], pairs["max_rank"], pairs["edges"]) == (2.5, 0.0, 1.0, 4.0)
    assert (config["steps"], config["batch"], config["lr"]) == (1, 2, 0.015)


def test_equal_inputs_do_not_train_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, _, after = drawn(world)
    first = learned(world, latents, after)
    monkeypatch.setattr(world.module("nodes.pairs"), "adapt_to_pairs", None)
    assert learned(world, latents, after)[0] is first[0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [("count", "8 images and 9 latents"), ("size", "32 x 32"), ("order", "order"), ("few", "1 pair")],
)
def test_bad_pairs_are_refused_in_one_line(world: World, broken: str, message: str) -> None:
    latents, _, after = drawn(world)
    if broken == "few":
        latents, after = latents[:1], after[:1]
    images = {"count": after[:8], "size": after[:, :32, :32], "order": after.roll(1, 0), "few": after}[broken]
    with pytest.raises(ValueError, match=message) as refused:
        learned(world, latents, images)
    assert "\n" not in str(refused.value)
