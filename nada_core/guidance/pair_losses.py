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
_MAP = 64  # pixels a side on which changes are blurred and moves are found first
_GAIN = 0.95  # a move must leave at most this share of the distance


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


@torch.no_grad()
def aligned(images: Tensor, targets: Tensor, weights: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Move targets, and their weights, to where they are nearest to the images in L1.

    An edit that moves the subject would otherwise be learned blurred. The move is found on 64 pixels and refined on
    every larger scale; a move that gains little is not made, so that images and targets do not drift together.

    Args:
        reach: longest move in each direction, as a share of the side.
    """
    size = images.shape[-1]
    scales = [side for side in (size >> power for power in range(8, -1, -1)) if side >= _MAP] or [size]
    radius, moves = round(reach * scales[0]), torch.zeros(len(images), 2, dtype=torch.long)  # dy, dx
    if not radius:
        return targets, weights
    for scale in scales:
        small, other = (F.adaptive_avg_pool2d(x, scale) if scale < size else x for x in (images, targets))
        limit = round(reach * scale)
        triples = zip(small, other, moves, strict=True)
        moves = torch.stack([_nearest(image, target, move, radius, limit) for image, target, move in triples])
        moves, radius = (moves if scale == size else 2 * moves), 1
    parts = [_moved(torch.cat(pair), *move.tolist()) for *pair, move in zip(targets, weights, moves, strict=True)]
    stacked = torch.stack(parts)
    return stacked[:, :3], stacked[:, 3:]


def _nearest(image: Tensor, target: Tensor, start: Tensor, radius: int, limit: int) -> Tensor:
    """The move (dy, dx), at most `radius` from `start` and `limit` from 0, after which the target is nearest."""
    steps = range(-radius, radius + 1)
    candidates = [(int(start[0]) + dy, int(start[1]) + dx) for dy in steps for dx in steps]
    candidates = [move for move in candidates if max(map(abs, move)) <= limit]
    inner = slice(limit, image.shape[-1] - limit)  # what a move fills up at the border does not count
    errors = {
        move: (image - _moved(target, *move))[:, inner, inner].abs().mean().item() for move in {(0, 0), *candidates}
    }
    best = min(candidates, key=lambda move: errors[move])
    return torch.tensor(best if errors[best] < _GAIN * errors[0, 0] else (0, 0))


def _moved(image: Tensor, dy: int, dx: int) -> Tensor:
    """Move an image [C, H, W] down by dy and to the right by dx, repeating its border."""
    height, width = image.shape[-2:]
    rows = (torch.arange(height, device=image.device) - dy).clamp(0, height - 1)
    columns = (torch.arange(width, device=image.device) - dx).clamp(0, width - 1)
    return image[:, rows][:, :, columns]


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
    reach: float = 0.0  # of `aligned`

    def terms(self, images: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms, [n] each, of the rows `rows` [n] of the batch; 0 for rows without a target."""
        own = (rows >= self.first) & (rows < self.first + len(self.targets))
        values = {name: images.new_zeros(len(rows)) for name in self.weights}
        if own.any():
            scale = self.count / len(self.targets)
            for name, value in self.target_terms(images[own], rows[own] - self.first).items():
                values[name] = values[name].masked_scatter(own, value * scale)
        return values

    def target_terms(self, images: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Return the unweighted terms, [n] each, of images [n, 3, R, R] against the targets `rows` [n]."""
        targets, change, values = self.targets[rows], self.change[rows], {}
        if self.reach:
            targets, change = aligned(images, targets, change, self.reach)
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
