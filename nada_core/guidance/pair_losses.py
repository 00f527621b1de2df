"""Losses of learning from pairs: L1 at several scales, L1 of gradients, and LPIPS between an image of the student and
what an image model made of the source's image.

That such images can teach a generator is known from DATID-3D (arXiv:2211.16374) and PODIA-3D (arXiv:2304.01900), which
train adversarially.

Letters: N images, n images of a chunk, P targets of a batch, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .reconstruction import Features

_COARSEST = 8  # pixels a side of the last scale
_MAP = 64  # pixels a side on which changes are blurred


def change_map(before: Tensor, after: Tensor, focus: float) -> Tensor:
    """Weight of every pixel [N, 1, R, R] with mean 1: 1 plus `focus` times the relative change of its surroundings.

    A small change, such as another shape of the ears, would otherwise be lost among the errors of all other pixels.
    """
    size = before.shape[-1]
    side = min(size, _MAP)
    radius = max(1, side // 32)
    change = (after - before).abs().mean(1, keepdim=True)
    change = F.adaptive_avg_pool2d(change, side) if side < size else change
    change = F.avg_pool2d(change, 2 * radius + 1, 1, radius, count_include_pad=False)
    change = F.interpolate(change, size=(size, size), mode="bilinear") if side < size else change
    weights = 1 + focus * change / change.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def multiscale_l1(images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute difference [N] of images, averaged over scales that halve down to 8 pixels a side."""
    values = []
    while True:
        values.append((weights * (images - targets).abs()).mean((1, 2, 3)))
        if images.shape[-1] // 2 < _COARSEST:
            return torch.stack(values).mean(0)
        images, targets, weights = (F.avg_pool2d(x, 2) for x in (images, targets, weights))


def edge_l1(images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean absolute difference [N] of the horizontal and vertical gradients of images.

    The L1 distance of colors alone is least for blurred images where the edges of the targets are hard to predict.
    """
    difference = images - targets
    horizontal = weights[..., 1:] * (difference[..., 1:] - difference[..., :-1]).abs()
    vertical = weights[..., 1:, :] * (difference[..., 1:, :] - difference[..., :-1, :]).abs()
    return horizontal.mean((1, 2, 3)) + vertical.mean((1, 2, 3))


@dataclass(frozen=True)
class PairLoss:
    """The terms of the rows of a batch that have a target: P rows from `first` on.

    Attributes:
        targets: [P, 3, R, R]. change: their weights [P, 1, R, R] from `change_map`.
        count: rows of the batch. A mean over all of them is the mean over those with a target.
        weights: of the terms pair_l1, pair_edges, pair_lpips and locality, without those that are 0.
        perceptual: the network of pair_lpips.
    """

    targets: Tensor
    change: Tensor
    count: int
    weights: Mapping[str, float]
    perceptual: Features | None = None
    first: int = 0

    def terms(self, images: Tensor, rows: slice) -> dict[str, Tensor]:
        """Return the unweighted terms, [n] each, of the rows `rows` of the batch; 0 for rows without a target."""
        own = slice(max(rows.start, self.first), min(rows.stop, self.first + len(self.targets)))
        if own.start >= own.stop:
            return {name: images.new_zeros(len(images)) for name in self.weights}
        around, scale = (own.start - rows.start, rows.stop - own.stop), self.count / len(self.targets)
        values = self.target_terms(
            images[around[0] : len(images) - around[1]], slice(own.start - self.first, own.stop - self.first)
        )
        return {name: F.pad(value * scale, around) for name, value in values.items()}

    def target_terms(self, images: Tensor, rows: Tensor | slice) -> dict[str, Tensor]:
        """Return the unweighted terms, [n] each, of images [n, 3, R, R] against the targets `rows`."""
        targets, change, values = self.targets[rows], self.change[rows], {}
        if "pair_l1" in self.weights:
            values["pair_l1"] = multiscale_l1(images, targets, change)
        if "pair_edges" in self.weights:
            values["pair_edges"] = edge_l1(images, targets, change)
        if "pair_lpips" in self.weights and self.perceptual is not None:
            with torch.no_grad():
                expected = self.perceptual.features(targets)
            values["pair_lpips"] = (self.perceptual.features(images) - expected).square().sum(1)
        if "locality" in self.weights:
            coarse = (F.adaptive_avg_pool2d(x, 2 * _COARSEST) for x in (images, targets, change))
            values["locality"] = multiscale_l1(*coarse)
        return values
