"""Image registration by translation: `nada_core.guidance.registration`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.guidance.registration import translated, translations
from tests import tiny


def scenes(size: int, count: int = 5) -> Tensor:
    """Smooth shapes of random colors, [count, 3, size, size] in -1..1."""
    shapes = torch.rand(count, 3, 12, 12, generator=tiny.rng(7)) * 2 - 1
    return F.interpolate(shapes, size=(size, size), mode="bilinear")


MOVES = torch.tensor([[0.0, 0.0], [2.5, -1.25], [-3.0, 2.0], [1.0, 1.5], [-0.75, -2.75]])  # in pixels of 64


@pytest.mark.parametrize("size", [64, 128, 512])
def test_moves_are_found_to_a_fraction_of_a_pixel_and_undone(size: int) -> None:
    images, moves = scenes(size), MOVES / 64
    moved = translated(images, moves)
    found = translations(images, moved, reach=0.05)
    torch.testing.assert_close(found, moves - moves.quantile(0.5, dim=0), rtol=0, atol=0.35 / 64)
    before, after = (
        (images - x)[:, :, size // 8 : -size // 8].abs().mean() for x in (moved, translated(moved, -found))
    )
    assert after < 0.4 * before


def test_a_move_of_whole_pixels_equals_a_roll() -> None:
    images = torch.rand(1, 3, 16, 16, generator=tiny.rng(1))
    moved = translated(images, torch.tensor([[2 / 16, -1 / 16]]))
    torch.testing.assert_close(moved[..., 1:-1, 2:], images.roll((-1, 2), (2, 3))[..., 1:-1, 2:], rtol=0, atol=1e-5)


def test_other_colors_do_not_matter() -> None:
    images, moves = scenes(64), MOVES / 64
    found = translations(images, translated(-0.6 * images.flip(1) + 0.2, moves), reach=0.05)
    torch.testing.assert_close(found, moves - moves.quantile(0.5, dim=0), rtol=0, atol=0.35 / 64)


def test_a_move_that_all_edits_share_is_kept() -> None:
    images = scenes(64)
    found = translations(images, translated(images, torch.tensor([[2 / 64, 0.0]]).expand(5, 2)), reach=0.05)
    torch.testing.assert_close(found, torch.zeros(5, 2), rtol=0, atol=0.1 / 64)


@pytest.mark.parametrize("size", [8, 64])
def test_images_without_edges_are_not_moved(size: int) -> None:
    images = torch.full((2, 3, size, size), 0.3)
    assert torch.equal(translations(images, -images, reach=0.05), torch.zeros(2, 2))


def test_moves_stay_within_the_reach() -> None:
    images = scenes(64)
    found = translations(images, translated(images, 4 * MOVES / 64), reach=0.02)
    assert found.abs().max() <= 0.04 + 1e-6  # each within the reach, and so is their median


def test_small_moves_are_not_undone() -> None:
    images = scenes(64)
    assert torch.equal(translations(images, translated(images, 0.1 * MOVES / 64), reach=0.05), torch.zeros(5, 2))
