"""Metrics of an adaptation: quality and diversity of HyperDomainNet (arXiv:2210.08884), directional similarity of
StyleGAN-NADA (arXiv:2108.00946), and the structural consistency score of RSSA (Xiao et al. 2022) on image gradients.

The CLIP metrics take unit embeddings. Their values depend on the CLIP model: compare only values of the same model,
and measure with another model than the one that guided the training.

Letters: N images, K phrases, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.clip import ClipGuide


@torch.no_grad()
def embed(guide: ClipGuide, images: Tensor, batch: int = 16) -> Tensor:
    """Embed images [N, 3, H, W] in -1..1, `batch` at a time, as unit vectors [N, D] on the CPU."""
    return torch.cat([guide.encode_images(part.to(guide.mean.device)).cpu() for part in images.split(batch)])


def quality(images: Tensor, phrases: Tensor) -> float:
    """Return the CLIP similarity: the mean cosine between images [N, D] and phrases for the target [K, D]; -1..1.

    Correct images stay far below 1, because images and texts lie in separate cones of the embedding space.
    """
    _check_embeddings(images)
    return float((images @ phrases.mT).mean())


def direction(before: Tensor, after: Tensor, text_direction: Tensor) -> float:
    """Return the mean cosine between the change of each image [N, D] and the text direction [1, D]; -1..1.

    An unchanged image counts as 0.
    """
    _check_embeddings(before)
    _check_pairs(before, after, 2)
    return float(F.cosine_similarity(after - before, text_direction, dim=-1, eps=1e-6).mean())


def diversity(images: Tensor) -> float:
    """Return the CLIP diversity: the mean of 1 - cosine over all pairs of images [N, D]; 0 when all are the same.

    Compare with the value of the source generator: a ratio far below 1 means mode collapse.
    """
    _check_embeddings(images)
    count = len(images)
    if count < 2:
        raise ValueError("Got one image, expected at least two: diversity is measured between pairs.")
    cosines = images @ images.mT
    return float(1 - (cosines.sum() - cosines.trace()) / (count * (count - 1)))


def structure(before: Tensor, after: Tensor) -> float:
    """Return the Dice overlap of the edges of paired images [N, 3, H, W], 0..1; edges are brightness gradients."""
    _check_pairs(before, after, 4)
    s, t = _edges(before), _edges(after)
    total = s.square().sum((1, 2)) + t.square().sum((1, 2))
    return float((2 * (s * t).sum((1, 2)) / total.clamp(min=1e-12)).mean())


def correspondence(before: Tensor, after: Tensor, side: int = 16) -> float:
    """Return how well paired images [N, 3, H, W] vary together: the mean correlation of their deviations from the mean
    image, in gray, `side` pixels wide; -1..1. 0: no relation, such as noise."""
    _check_pairs(before, after, 4)
    small = (F.adaptive_avg_pool2d(x.float().clamp(-1, 1).mean(1, keepdim=True), side) for x in (before, after))
    first, second = (x.flatten(1) - x.flatten(1).mean(0) for x in small)
    return float(F.cosine_similarity(first, second, dim=1, eps=1e-6).mean())


def _edges(images: Tensor) -> Tensor:
    gray = images.float().mean(1)
    return torch.hypot(gray[:, 1:, 1:] - gray[:, 1:, :-1], gray[:, 1:, 1:] - gray[:, :-1, 1:])


def _check_pairs(before: Tensor, after: Tensor, axes: int) -> None:
    if before.shape != after.shape or before.ndim != axes or not len(before):
        shapes = f"{list(before.shape)} before and {list(after.shape)} after"
        raise ValueError(f"Got {shapes}, expected pairs of equal latents with {axes} axes.")


def _check_embeddings(embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"Got embeddings of shape {list(embeddings.shape)}, expected [N, D] with at least one.")
