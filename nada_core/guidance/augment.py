"""Losses on embeddings. Each term is a small pure function of `Views`; none of them loads or runs a model.

Letters: N images, D embedding, V augmented views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_STILL = torch.eye(2, 3)[None]  # the view of a picture as it is


def shared_augmentation(
    count: int, size: int, rng: torch.Generator, max_move: float = 0.06, mirror: bool = False, patches: int = 0
) -> Callable[[Tensor], Tensor]:
    """Draw `count` small random moves (shift and zoom up to `max_move` of the image) to apply alike to several batches.

    The returned function maps images [N, 3, H, W] to [V N, 3, H, W]. A guide that must be pleased under any small move
    is harder to please by a pattern nobody sees. With `mirror` every second one is mirrored, too, and a single one as a
    coin falls: one ear does not make an elf. `patches` more show a quarter of the picture each, somewhere, so that a
    texture is right close by, too (the patch direction in the code of StyleGAN-NADA); where count is 0, the images
    themselves come first. Without moves and patches it returns the images as they are.
    """
    if count + patches == 0:
        return lambda images: images
    drawn = torch.rand(count, 3, generator=rng) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + max_move * drawn[:, 2]
    theta[:, :, 2] = 2 * max_move * drawn[:, :2]
    if mirror:
        first = 1 if count > 1 else int(torch.randint(2, (), generator=rng))
        theta[first::2, 0, 0] *= -1
    if patches:
        near = torch.zeros(patches, 2, 3)
        near[:, 0, 0] = near[:, 1, 1] = 0.5
        near[:, :, 2] = torch.rand(patches, 2, generator=rng) - 0.5
        theta = torch.cat([theta if count else _STILL, near])
    grids = F.affine_grid(theta, [len(theta), 3, size, size], align_corners=False)

    def move(images: Tensor) -> Tensor:
        moved = [
            F.grid_sample(
                images, grid.to(images).expand(len(images), -1, -1, -1), padding_mode="reflection", align_corners=False
            )
            for grid in grids
        ]
        return torch.cat(moved)

    return move
