"""The metrics against values computed by hand, and their errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.guidance.metrics import direction, diversity, embed, quality, structure
from nada_core.models.clip import ClipGuide

X, Y, Z = torch.eye(3)


class MeanColor(ClipGuide):
    """Embeds an image as its mean color."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))

    def encode_images(self, x: Tensor) -> Tensor:
        return F.normalize(x.mean((2, 3)), dim=-1)


def test_embed_does_not_depend_on_the_batch() -> None:
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    embedded = embed(MeanColor(), images, batch=2)
    assert not embedded.requires_grad
    torch.testing.assert_close(embedded, embed(MeanColor(), images))
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(5))


def test_quality_is_the_mean_over_images_and_phrases() -> None:
    assert quality(torch.stack([X, Y]), torch.stack([X, Z])) == pytest.approx(0.25)  # one of four pairs agrees
    assert quality(X[None], X[None]) == 1.0
    assert quality(X[None], -X[None]) == -1.0


def test_direction_depends_on_the_angle_only() -> None:
    before = torch.stack([X, X, X])
    after = torch.stack([X + 0.1 * Y, X + 2 * Y, X - Y])
    assert direction(before, after, Y[None]) == pytest.approx((1 + 1 - 1) / 3)
    assert direction(before, after, 5 * Y[None]) == pytest.approx(1 / 3)
    diagonal = F.normalize(Y + Z, dim=0)
    assert direction(X[None], (X + Y)[None], diagonal[None]) == pytest.approx(math.sqrt(0.5))
    assert direction(before, before, Y[None]) == 0.0


def test_direction_pairs_equal_latents() -> None:
    before, text_direction = torch.stack([X, Y]), Z[None]
    after = torch.stack([X + Z, Y + Z])
    assert direction(before, after, text_direction) == pytest.approx(1.0)
    assert direction(before, after.flip(0), text_direction) < 0.6


def test_diversity_does_not_pair_an_image_with_itself() -> None:
    assert diversity(torch.stack([X, Y])) == 1.0
    assert diversity(torch.stack([X, -X])) == 2.0
    assert diversity(torch.stack([X, X, Y])) == pytest.approx(2 / 3)
    assert diversity(X.expand(4, -1)) == pytest.approx(0.0, abs=1e-6)


def test_invalid_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        diversity(X[None])
    with pytest.raises(ValueError, match="pairs of equal latents"):
        direction(torch.stack([X, Y]), X[None], Z[None])
    for empty in (torch.zeros(0, 3), X):
        with pytest.raises(ValueError, match=r"\[N, D\]"):
            quality(empty, X[None])
        with pytest.raises(ValueError, match=r"\[N, D\]"):
            diversity(empty)


def test_structure_is_the_overlap_of_edges() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert structure(images, images) == pytest.approx(1.0)
    assert structure(images, images * 0.5 + 0.2) == pytest.approx(2 * 0.5 / (1 + 0.25))  # half the contrast
    left, right = torch.zeros(2, 1, 3, 16, 16)
    left[..., :4], right[..., 12:] = 1.0, 1.0
    assert structure(left, right) == 0.0 and structure(left, torch.zeros_like(left)) == 0.0
    other = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert structure(images, other) == pytest.approx(structure(other, images)) and 0 < structure(images, other) < 1


@pytest.mark.parametrize("shapes", [((2, 3, 8, 8), (1, 3, 8, 8)), ((0, 3, 8, 8),) * 2, ((3, 8, 8),) * 2])
def test_structure_refuses_unpaired_images(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        structure(*(torch.zeros(shape) for shape in shapes))
