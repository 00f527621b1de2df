"""Random augmentations shared by several batches: the frozen and the trained generator are compared under the same
views (AugCLIP of FuseDream, arXiv:2112.01573).

Letters: N images, V views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def shared_augmentation(
    count: int, size: int, rng: torch.Generator, max_move: float = 0.06, mirror: bool = False
) -> Callable[[Tensor], Tensor]:
    """Draw random views to apply identically to several batches of images.

    A pattern that only fools a CLIP model at one exact position does not survive small shifts and zooms.

    Args:
        count: views, shifted and zoomed.
        size: pixels a side of a view.
        max_move: largest shift and zoom, as a share of the image.
        mirror: flip every second view; a single view with probability 1/2.

    Returns:
        A function from images [N, 3, H, W] to [V N, 3, H, W]; without views it returns the images unchanged.
    """
    if count == 0:
        return lambda images: images
    random = torch.rand(count, 3, generator=rng) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + max_move * random[:, 2]
    theta[:, :, 2] = 2 * max_move * random[:, :2]
    if mirror:
        first = 1 if count > 1 else int(torch.randint(2, (), generator=rng))
        theta[first::2, 0, 0] *= -1
    grids: dict[torch.device, Tensor] = {}  # built where they are used, once

    def augment(images: Tensor) -> Tensor:
        device = images.device
        if device not in grids:
            moved = theta.to(device, non_blocking=True)
            grids[device] = F.affine_grid(moved, [len(theta), 3, size, size], align_corners=False)
        views = [grid.to(images).expand(len(images), -1, -1, -1) for grid in grids[device]]
        return torch.cat(
            [F.grid_sample(images, view, padding_mode="reflection", align_corners=False) for view in views]
        )

    return augment
