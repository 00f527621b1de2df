"""Figures of an adaptation: three as a guide sees it, with quality and diversity as in HyperDomainNet
(arXiv:2210.08884), and one of the pictures themselves.

Those of a guide work on unit embeddings that `embed` makes once. Levels depend on the guide, so compare figures of one
guide only, and let the guide that judges be another than the one that led: a run may flatter the guide it was trained
with.

Letters: N images, K phrases, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.clip import ClipGuide


@torch.no_grad()
def embed(guide: ClipGuide, images: Tensor, batch: int = 16) -> Tensor:
    """Unit vectors [N, D] on the CPU of images [N, 3, H, W] in -1..1, `batch` at a time."""
    return torch.cat([guide.encode_images(part.to(guide.mean.device)).cpu() for part in images.split(batch)])


def quality(images: Tensor, phrases: Tensor) -> float:
    """CLIP similarity: the mean cosine between images [N, D] and what the target is called [K, D]; -1..1.

    Even right pictures stay far below 1, because images and texts lie in separate cones of the space.
    """
    _expect(images)
    return float((images @ phrases.mT).mean())


def direction(before: Tensor, after: Tensor, goal: Tensor) -> float:
    """Directional similarity: the mean cosine between each pair's edit [N, D] and the text's direction [1, D]; -1..1.

    A pair that did not change has no direction and counts as 0.
    """
    _expect(before)
    if before.shape != after.shape:
        shapes = f"{list(before.shape)} before and {list(after.shape)} after"
        raise ValueError(f"Got {shapes}, expected pairs of equal latents.")
    return float(F.cosine_similarity(after - before, goal, dim=-1, eps=1e-6).mean())


def diversity(images: Tensor) -> float:
    """CLIP diversity: the mean of 1 - cosine over all pairs of different images [N, D]; 0 when all look alike.

    It means something beside the unadapted generator's own: a ratio far below 1 is collapse.
    """
    _expect(images)
    count = len(images)
    if count < 2:
        raise ValueError("Got one image, expected at least two; diversity is a matter of pairs.")
    cosines = images @ images.mT
    return float(1 - (cosines.sum() - cosines.trace()) / (count * (count - 1)))


def structure(before: Tensor, after: Tensor) -> float:
    """How much of the pictures' outlines [N, 3, H, W] stayed where it was: twice the overlap of their edges over both
    together, 0..1 (the structural consistency score of RSSA and IPL, with slopes of brightness for its edge net)."""
    if before.shape != after.shape or before.ndim != 4 or not len(before):
        shapes = f"{list(before.shape)} before and {list(after.shape)} after"
        raise ValueError(f"Got pictures of shape {shapes}, expected pairs [N, 3, H, W] of equal latents.")
    s, t = _edges(before), _edges(after)
    both = s.square().sum((1, 2)) + t.square().sum((1, 2))
    return float((2 * (s * t).sum((1, 2)) / both.clamp(min=1e-12)).mean())


def _edges(images: Tensor) -> Tensor:
    grey = images.float().mean(1)
    return torch.hypot(grey[:, 1:, 1:] - grey[:, 1:, :-1], grey[:, 1:, 1:] - grey[:, :-1, 1:])


def _expect(embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"Got embeddings of shape {list(embeddings.shape)}, expected [N, D] with at least one.")
