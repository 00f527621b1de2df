"""Shifts of pooled text embeddings: directions, sizes of the text encoders of Stable Diffusion, and errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core import AdaptConfig, ClipGuide, EmbeddingShift, ImageShift, MixedShift
from nada_core.adaptation.provenance import run_fingerprint
from nada_core.guidance.pooled_text import shift_from_pooled_text
from nada_core.guidance.shifts import needs_source_images
from nada_core.guidance.targets import clip_targets

#: Length of the pooled embedding: width and layers of the image tower.
TOWERS = {1280: (1664, 48), 1024: (1280, 32)}


def pooled(count: int = 1, length: int = tiny.DIM, seed: int = 0) -> Tensor:
    return torch.randn(count, length, generator=tiny.rng(seed)) * 7


def guide_of(length: int, tower: tuple[int, int]) -> ClipGuide:
    """A guide with the sizes of an image tower, which is never run."""
    guide = tiny.guide()
    guide.dim = length
    guide.model.visual.transformer = SimpleNamespace(width=tower[0], layers=tower[1])
    return guide


# ---- the shift ----------------------------------------------------------------------------------------------------


def test_direction_is_the_normalized_difference() -> None:
    shift, guide = EmbeddingShift(pooled(seed=1), pooled(seed=2)), tiny.guide()
    expected = F.normalize(F.normalize(pooled(seed=2), dim=-1) - F.normalize(pooled(seed=1), dim=-1), dim=-1)
    torch.testing.assert_close(shift.direction(guide), expected)
    torch.testing.assert_close(shift.target_embedding(guide), F.normalize(pooled(seed=2), dim=-1))
    longer = EmbeddingShift(3 * pooled(seed=1), pooled(seed=2))
    torch.testing.assert_close(longer.direction(guide), expected)
    assert not needs_source_images(shift) and "tensor" not in repr(shift)


def test_several_prompts_are_averaged_after_normalization() -> None:
    source, target, guide = pooled(3, seed=1), pooled(3, seed=2), tiny.guide()
    each = [EmbeddingShift(source[k : k + 1], target[k : k + 1]).direction(guide) for k in range(3)]
    expected = F.normalize(torch.cat(each).mean(0, keepdim=True), dim=-1)
    torch.testing.assert_close(EmbeddingShift(source, target).direction(guide), expected)


def test_half_precision_embeddings_are_computed_in_float32() -> None:
    shift = EmbeddingShift(pooled(seed=1).half(), pooled(seed=2).half())
    assert shift.direction(tiny.guide()).dtype == torch.float32


def test_embedding_shifts_can_be_mixed() -> None:
    image = ImageShift(torch.rand(1, 3, 16, 16, generator=tiny.rng()) * 2 - 1)
    mixed = MixedShift((EmbeddingShift(pooled(seed=1), pooled(seed=2)), image), (0.25, 0.75))
    (target,) = clip_targets(tiny.guide(), mixed, torch.zeros(2, 3, 16, 16))
    assert target.direction.shape == (1, tiny.DIM) and needs_source_images(mixed)


def test_run_fingerprint_depends_on_the_embeddings() -> None:
    def mark(seed: int) -> str:
        shift = EmbeddingShift(pooled(seed=1), pooled(seed=seed))
        return run_fingerprint(tiny.generator(), tiny.guide(), shift, AdaptConfig(steps=2))

    assert mark(2) == mark(2) != mark(3)


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        (pooled(1), pooled(2), r"\[2, 8\]"),
        (pooled(0), pooled(0), r"\[0, 8\]"),
        (pooled(1)[0], pooled(1)[0], r"\[8\]"),
        (pooled(1), pooled(1) * 0, "target that are 0"),
        (pooled(1) * torch.inf, pooled(1), "source that are 0 or not finite"),
        (pooled(1), 2 * pooled(1), "equal embeddings"),
    ],
)
def test_embeddings_without_a_direction_are_refused(source: Tensor, target: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EmbeddingShift(source, target)


def test_guide_of_another_dimension_is_refused() -> None:
    shift = EmbeddingShift(pooled(1, 12), pooled(1, 12, seed=1))
    for act in (shift.direction, shift.target_embedding):
        with pytest.raises(ValueError, match=r"12 numbers.*tiny-0 has 8"):
            act(tiny.guide())


# ---- text encoders of Stable Diffusion ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", TOWERS)
def test_pooled_embeddings_of_the_same_model_give_a_shift(length: int) -> None:
    guide = guide_of(length, TOWERS[length])
    shift = shift_from_pooled_text(guide, pooled(2, length).half(), pooled(2, length, seed=1).half())
    assert shift.direction(guide).shape == (1, length)


@pytest.mark.parametrize(
    ("length", "named"), [(768, "768.*Flux"), (2048, "2048.*SD3"), (4096, "4096"), (tiny.DIM, str(tiny.DIM))]
)
def test_unprojected_embeddings_are_refused_by_name(length: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        shift_from_pooled_text(guide_of(length, (1024, 24)), pooled(1, length), pooled(1, length, seed=1))


@pytest.mark.parametrize(
    ("length", "guide"),
    [
        (1280, guide_of(1024, TOWERS[1024])),
        (1024, guide_of(1280, TOWERS[1280])),
        (1024, guide_of(1024, (2048, 4))),  # RN50 has embeddings of 1024 numbers, too
        (1024, tiny.guide()),
    ],
)
def test_guides_of_another_space_are_refused(length: int, guide: ClipGuide) -> None:
    with pytest.raises(ValueError, match=f"ViT-.*the guide {guide.name}.*{guide.dim}"):
        shift_from_pooled_text(guide, pooled(1, length), pooled(1, length, seed=1))


def test_two_text_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 1280\] and \[1, 1024\]"):
        shift_from_pooled_text(guide_of(1280, TOWERS[1280]), pooled(1, 1280), pooled(1, 1024))
