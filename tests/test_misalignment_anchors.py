"""AIR in `benchmarks.misalignment_anchors`: the text of an anchor, and the training with a second loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import misalignment_anchors
from benchmarks.misalignment_anchors import Anchor, adapt_with_anchors
from nada_core import AdaptConfig, Generator, LayerChoice, TextShift, adapt, load_generator, load_guide, sample
from nada_core.guidance.targets import clip_targets

SHIFT = TextShift("photo", "joker")
CONFIG = AdaptConfig(steps=4, lr=0.01, batch=2, noise="const", layers=LayerChoice(mode="all"))


def difference(one: Generator, other: Generator) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())


def test_text_of_an_anchor_moves_as_its_images_do_and_the_direction_starts_there() -> None:
    generator, guide = load_generator("portraits"), load_guide("portraits-64")
    targets, latents = clip_targets(guide, SHIFT), sample(generator, range(8))
    start = Anchor.of(generator, targets, latents, [torch.zeros(1, guide.dim)])
    moved = adapt(generator, guide, SHIFT, CONFIG).generator
    anchor = start.next(moved, targets, latents, [0.5])
    change = F.normalize(anchor.images[0] - start.images[0], dim=-1).mean(0, keepdim=True)
    assert torch.allclose(anchor.texts[0], 0.5 * F.normalize(change, dim=-1), atol=1e-6)
    (refined,) = anchor.refine(targets)
    expected = F.normalize(targets[0].target_embedding - anchor.texts[0], dim=-1)
    assert torch.allclose(refined.direction, expected, atol=1e-6)
    assert refined.weight == pytest.approx(0.1 * targets[0].weight)


def test_without_its_weight_the_second_loss_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, guide = load_generator("portraits"), load_guide("portraits-64")
    monkeypatch.setattr(misalignment_anchors, "_LATENTS", 8)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    plain = adapt(generator, guide, SHIFT, CONFIG).generator
    refined = adapt_with_anchors(generator, [(guide, 1.0)], SHIFT, CONFIG)
    assert difference(plain, refined) > 1e-4
    monkeypatch.setattr(misalignment_anchors, "_WEIGHT", 0.0)
    assert difference(plain, adapt_with_anchors(generator, [(guide, 1.0)], SHIFT, CONFIG)) == 0
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
