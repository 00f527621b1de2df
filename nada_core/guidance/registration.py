"""Image registration by translation: undo how far an image model moved the subject of each image.

The edges of an image and of its edit lie at the same places even where all colors differ. Their normalized
cross-correlation (Lewis, "Fast Normalized Cross-Correlation", 1995) is largest at the move between both.

Letters: N images, R pixels a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_COARSE, _FINE = 64, 256  # pixels a side of the first and last search
_TAPER = 0.125  # share of the side over which the border counts less: many edits draw a frame
_ERROR = 0.5  # pixels of the last search: smaller moves are within the errors of the search
_CENTER = 1e-4  # advantage of not moving, which decides for images without edges


@torch.no_grad()
def translations(before: Tensor, after: Tensor, reach: float) -> Tensor:
    """Find how far each edit was moved: (right, down) [N, 2] as a share of the side.

    The median of all edits is subtracted: it belongs to the style, such as longer chins, and not to one image. Where
    what is left is less than half a pixel for most edits, nothing moved, and all are 0.

    Args:
        before, after: images and their edits, [N, C, R, R] in -1..1.
        reach: longest move in each direction that is looked for, as a share of the side.
    """
    before, after = (_shrunk(images, _FINE) for images in (before, after))
    moves, size = after.new_zeros(len(after), 2), after.shape[-1]
    first = min(size, _COARSE)
    radius = 1 + math.ceil(reach * first)  # one more, for the parabola
    for side in (first, 2 * first, 4 * first):
        if side > size:
            break
        images, edits = _shrunk(before, side), _shrunk(translated(after, -moves), side)
        moves = (moves + _residual(_edges(images), _edges(edits), radius) / side).clamp(-reach, reach)
        error, radius = _ERROR / side, 2
    moves = moves - moves.quantile(0.5, dim=0)
    return moves * (moves.abs().amax(1).median() > error)


def translated(images: Tensor, moves: Tensor) -> Tensor:
    """Move each image [N, C, R, R] right and down by `moves` [N, 2], as a share of the side, repeating its border."""
    affine = torch.eye(2, 3, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1)
    affine[:, :, 2] = -2 * moves
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _shrunk(images: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(images, side) if side < images.shape[-1] else images


def _edges(images: Tensor) -> Tensor:
    """How strong the edges are at each pixel [N, 1, R, R], blurred; the root makes weak edges count as well."""
    right = F.pad(images.diff(dim=-1), (0, 1))
    down = F.pad(images.diff(dim=-2), (0, 0, 0, 1))
    strength = (right.square() + down.square()).sum(1, keepdim=True).sqrt()
    return F.avg_pool2d(strength, 3, 1, 1, count_include_pad=False).sqrt()


def _residual(images: Tensor, edits: Tensor, radius: int) -> Tensor:
    """The moves (right, down) [N, 2] in pixels, at most `radius`, at which the correlation is largest."""
    side, width = images.shape[-1] - 2 * radius, 2 * radius + 1
    places = (torch.arange(side, device=images.device) + 0.5) / side
    taper = (torch.minimum(places, 1 - places) / _TAPER).clamp(max=1)
    profile = 0.5 - 0.5 * torch.cos(torch.pi * taper)
    profile = profile / profile.sum()
    window = profile[:, None] * profile
    inner = _centered(images[..., radius : radius + side, radius : radius + side], window)
    scores = []
    for down in range(width):
        for right in range(width):
            edit = _centered(edits[..., down : down + side, right : right + side], window)
            norm = ((window * inner.square()).sum((1, 2, 3)) * (window * edit.square()).sum((1, 2, 3))).sqrt()
            scores.append((window * inner * edit).sum((1, 2, 3)) / norm.clamp(min=1e-9))
    score = torch.stack(scores, 1).unflatten(1, (width, width))
    score[:, radius, radius] += _CENTER
    best = score.flatten(1).argmax(1)
    down, right, rows = best // width, best % width, torch.arange(len(score), device=score.device)
    x, y = right.clamp(1, width - 2), down.clamp(1, width - 2)
    along_x = [score[rows, down, x + step] for step in (-1, 0, 1)]
    along_y = [score[rows, y + step, right] for step in (-1, 0, 1)]
    return torch.stack([x + _vertex(*along_x), y + _vertex(*along_y)], 1) - radius


def _centered(edges: Tensor, window: Tensor) -> Tensor:
    return edges - (window * edges).sum((1, 2, 3), keepdim=True)


def _vertex(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """Where the parabola through three neighbors is largest, in -0.5..0.5 from the middle."""
    curvature = (2 * middle - left - right).clamp(min=1e-9)
    return (0.5 * (right - left) / curvature).clamp(-0.5, 0.5)
