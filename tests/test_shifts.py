"""Shifts with a tiny random CLIP model: directions, mixtures, weights of guides and errors."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.guidance.prompts import BARE
from nada_core.guidance.shifts import ImageShift, MixedShift, TextShift
from nada_core.guidance.targets import clip_targets, weighted_guides
from nada_core.models.clip import ClipGuide


@pytest.fixture(scope="module")
def guide() -> ClipGuide:
    return tiny.guide()


def noise(count: int, height: int = 48, width: int = 48) -> Tensor:
    return torch.rand(count, 3, height, width, generator=tiny.rng(1)) * 2 - 1


class StubGuide(ClipGuide):
    """A CLIP model that looks up the embeddings of phrases in a table."""

    def __init__(self, table: dict[str, Tensor]) -> None:
        torch.nn.Module.__init__(self)
        self.table = table

    def encode_text(self, phrases: list[str]) -> Tensor:  # type: ignore[override]
        return F.normalize(torch.stack([self.table[phrase] for phrase in phrases]), dim=-1)


def test_text_direction_follows_the_documented_order() -> None:
    rng = torch.Generator().manual_seed(3)
    templates = tuple(f"{i} {{}}" for i in range(8))
    common = torch.randn(16, generator=rng)
    # The source's prompts scatter more than the target's, so the two means have different norms.
    table = {f"{i} a": 0.5 * common + torch.randn(16, generator=rng) for i in range(8)}
    table |= {f"{i} b": 2.0 * common + torch.randn(16, generator=rng) for i in range(8)}
    guide, shift = StubGuide(table), TextShift("a", "b", templates)
    start = F.normalize(torch.stack([table[f"{i} a"] for i in range(8)]), dim=-1)
    end = F.normalize(torch.stack([table[f"{i} b"] for i in range(8)]), dim=-1)

    expected = F.normalize(F.normalize(end - start, dim=-1).mean(0), dim=0)
    direction = shift.direction(guide)
    assert direction.shape == (1, 16)
    torch.testing.assert_close(direction[0], expected)
    torch.testing.assert_close(direction.norm(), torch.tensor(1.0))

    mean_first = F.normalize(F.normalize(end.mean(0), dim=0) - F.normalize(start.mean(0), dim=0), dim=0)
    wrong_norm = F.normalize(end.mean(0) / start.mean(0).norm() - F.normalize(start.mean(0), dim=0), dim=0)
    assert direction[0] @ mean_first < 0.999 and direction[0] @ wrong_norm < 0.999
    torch.testing.assert_close(TextShift("b", "a", templates).direction(guide), -direction)
    torch.testing.assert_close(shift.target_embedding(guide)[0], F.normalize(end.mean(0), dim=0))


def test_text_shift_has_a_direction_and_a_target(guide: ClipGuide) -> None:
    shift = TextShift("photo", "sketch")
    assert shift.direction(guide).shape == shift.target_embedding(guide).shape == (1, tiny.DIM)
    assert shift == TextShift("photo", "sketch") and "templates" not in repr(shift)
    torch.testing.assert_close(
        TextShift("photo", "sketch", BARE).target_embedding(guide), guide.encode_text(["sketch"])
    )


@pytest.mark.parametrize(("source", "target"), [("", "sketch"), ("photo", " "), ("photo", "Photo "), ("photo", None)])
def test_phrases_that_give_no_direction_are_refused(source: str, target: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        TextShift(source, target)


def test_image_direction_starts_at_the_generators_images(guide: ClipGuide) -> None:
    style, source = noise(3), guide.encode_images(-noise(4))
    shift = ImageShift(style)
    expected = F.normalize(guide.encode_images(style).mean(0) - source.mean(0), dim=0)
    torch.testing.assert_close(shift.direction(guide, source)[0], expected)
    torch.testing.assert_close(shift.target_embedding(guide)[0], F.normalize(guide.encode_images(style).mean(0), dim=0))
    with pytest.raises(ValueError, match="source embeddings"):
        shift.direction(guide)
    with pytest.raises(ValueError, match="other style images"):
        shift.direction(guide, guide.encode_images(style))
    for wrong in (noise(11), noise(1)[0], noise(1) * 255, noise(1) * math.nan):
        with pytest.raises(ValueError, match="style images"):
            ImageShift(wrong)


def test_guides_combine_with_weights(guide: ClipGuide) -> None:
    assert weighted_guides(guide) == weighted_guides([guide]) == ((guide, 1.0),)
    assert weighted_guides([guide, (guide, 2)]) == ((guide, 1.0), (guide, 2.0))
    assert weighted_guides(weighted_guides(guide)) == weighted_guides(guide)
    for wrong in ([], [(guide, 0.0)], [(guide, math.nan)], [(guide, -1)], ["portraits"], (guide, 0.5)):
        with pytest.raises(ValueError, match="expected"):
            weighted_guides(wrong)


def test_mixture_lies_between_its_parts(guide: ClipGuide) -> None:
    words, style, images = TextShift("photo", "sketch", BARE), ImageShift(noise(2)), noise(3, 32, 32).flip(0)
    (one,), (other,) = clip_targets(guide, words), clip_targets(guide, style, images)
    (mixed,) = clip_targets(guide, MixedShift((words, style), (3.0, 1.0)), images)
    wanted = F.normalize(0.75 * one.direction + 0.25 * other.direction, dim=-1)
    torch.testing.assert_close(mixed.direction, wanted)
    torch.testing.assert_close(
        mixed.target_embedding, F.normalize(0.75 * one.target_embedding + 0.25 * other.target_embedding, dim=-1)
    )
    assert mixed.direction @ one.direction.mT > mixed.direction @ other.direction.mT


def test_mixture_weights_are_normalized(guide: ClipGuide) -> None:
    words, more = TextShift("photo", "sketch", BARE), TextShift("photo", "zombie", BARE)
    for shifts, weights in (((words,), ()), ((words, more), (2.0, 0.0))):
        torch.testing.assert_close(MixedShift(shifts, weights).direction(guide), words.direction(guide))
        torch.testing.assert_close(MixedShift(shifts, weights).target_embedding(guide), words.target_embedding(guide))
    even = MixedShift((words, more)).direction(guide)
    torch.testing.assert_close(even, MixedShift((words, more), (5.0, 5.0)).direction(guide))


def test_invalid_mixtures_are_refused(guide: ClipGuide) -> None:
    words, back = TextShift("photo", "sketch", BARE), TextShift("sketch", "photo", BARE)
    for shifts, weights, message in (
        ((), (), "to mix"),
        ((MixedShift((words,)),), (), "to mix"),
        ((words, back), (1.0,), "1 weights for 2"),
        ((words, back), (1.0, -1.0), "at least 0"),
        ((words, back), (0.0, 0.0), "not all"),
        ((words, back), (1.0, math.inf), "finite"),
        ((words, back), (1.0, math.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            MixedShift(shifts, weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cancel each other out"):
        MixedShift((words, back)).direction(guide)
    with pytest.raises(ValueError, match="pass source embeddings"):
        MixedShift((words, ImageShift(noise(1)))).direction(guide)
