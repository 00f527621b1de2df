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
    radius, moves = round(reach * scales[0]), torch.zeros(len(images), 2, dtype=torch.long, device=images.device)
    if not radius:
        return targets, weights
    for scale in scales:
        small, other = (F.adaptive_avg_pool2d(x, scale) if scale < size else x for x in (images, targets))
        moves = _nearest(small, other, moves, radius, round(reach * scale))
        moves, radius = (moves if scale == size else 2 * moves), 1
    return _moved(targets, moves), _moved(weights, moves)


def _nearest(images: Tensor, targets: Tensor, starts: Tensor, radius: int, limit: int) -> Tensor:
    """The moves (dy, dx) [N, 2], at most `radius` from `starts` and `limit` from 0, that bring targets nearest."""
    steps = torch.arange(-radius, radius + 1, device=images.device)
    candidates = [torch.zeros_like(starts)]
    candidates += [(starts + step).clamp(-limit, limit) for step in torch.cartesian_prod(steps, steps)]
    inner = slice(limit, images.shape[-1] - limit)  # what a move fills up at the border does not count
    difference = [(images - _moved(targets, moves))[:, :, inner, inner] for moves in candidates]
    errors = torch.stack([one.abs().mean((1, 2, 3)) for one in difference])  # [candidates, N]
    best, index = errors.min(0)
    index = torch.where(best < _GAIN * errors[0], index, 0)
    return torch.stack(candidates)[index, torch.arange(len(index), device=index.device)]


def _moved(images: Tensor, moves: Tensor) -> Tensor:
    """Move each image [N, C, R, R] down and to the right by its move [N, 2], repeating its border."""
    places = torch.arange(images.shape[-1], device=images.device)
    rows, columns = ((places - move[:, None]).clamp(0, len(places) - 1) for move in moves.unbind(1))  # [N, R]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None]].movedim(-1, 1)


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
