"""Augmentations that are shared by several batches."""

from __future__ import annotations

import torch
from tiny import rng
from torch import Tensor

from nada_core.guidance.augment import shared_augmentation


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=rng(seed)) * 2 - 1


def test_zero_views_return_the_images() -> None:
    images, numbers = pictures(2, 0), rng(3)
    untouched = numbers.get_state()
    assert shared_augmentation(0, 16, numbers)(images) is images
    assert torch.equal(numbers.get_state(), untouched)


def test_views_use_equal_parameters_for_all_batches_and_images() -> None:
    augment, images = shared_augmentation(3, 16, rng(3)), pictures(2, 0)
    views = augment(images)
    assert views.shape == (6, 3, 16, 16)
    assert torch.equal(views, augment(images))
    torch.testing.assert_close(augment(images.flip(0)).view(3, 2, 3, 16, 16), views.view(3, 2, 3, 16, 16).flip(1))
    torch.testing.assert_close(augment(images[1:]), views[1::2])
    first, second, third = views.view(3, 2, 3, 16, 16)
    assert min((a - b).abs().mean().item() for a, b in ((first, second), (second, third), (first, images))) > 0.05
    assert torch.equal(views, shared_augmentation(3, 16, rng(3))(images))
    assert not torch.equal(views, shared_augmentation(3, 16, rng(4))(images))


def test_every_second_view_is_mirrored_on_request() -> None:
    images = pictures(2, 0)
    plain, mirrored = (
        shared_augmentation(4, 16, rng(3), 0.0, mirror)(images).view(4, 2, 3, 16, 16) for mirror in (False, True)
    )
    torch.testing.assert_close(mirrored[0::2], plain[0::2])
    torch.testing.assert_close(mirrored[1::2], plain[1::2].flip(-1), atol=1e-5, rtol=0.0)


def test_single_view_is_mirrored_half_of_the_times() -> None:
    images, numbers, mirrored_views = pictures(2, 0), rng(3), []
    for _ in range(100):
        views = shared_augmentation(1, 16, numbers, 0.0, True)(images)
        mirrored_views.append(bool((views - images.flip(-1)).abs().max() < 1e-5))
        assert mirrored_views[-1] or float((views - images).abs().max()) < 1e-5
    assert 30 < sum(mirrored_views) < 70


def test_views_stay_within_the_configured_limits() -> None:
    images = pictures(2, 0)
    torch.testing.assert_close(shared_augmentation(1, 16, rng(), max_move=0.0)(images), images, atol=1e-5, rtol=0.0)
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    drift = (shared_augmentation(16, 64, rng(), max_move=0.06)(ramp) - ramp)[..., 16:48]  # without the reflected border
    assert 0.06 < drift.abs().max() < 2 * 0.06 + 0.06  # shifts of up to 0.06 of the width, which spans 2, and the zoom


def test_views_pass_gradients() -> None:
    images = pictures(2, 0).requires_grad_()
    shared_augmentation(2, 16, rng())(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
