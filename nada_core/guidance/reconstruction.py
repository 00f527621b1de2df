"""Reconstruction losses between images and fixed targets, as in pSp (arXiv:2008.00951, section 3.2): pixels, LPIPS,
face identity. The networks are passed in; a loss never loads a model.

Letters: N targets, n images compared with some of them, F features, R pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.config import setting

#: Name of a term to what it measures.
TERMS = {
    "mse": "mean squared difference of the pixels, on -1..1",
    "coarse": "mean squared difference of both images downscaled 2, 4 and 8 times",
    "lpips": "LPIPS, the perceptual distance",
    "id": "1 - cosine of the two face embeddings",
}


class Features(Protocol):
    """A network whose features have a meaningful squared Euclidean distance: `Perceptual`."""

    def features(self, images: Tensor) -> Tensor: ...


FaceRecognizer = Callable[[Tensor], Tensor]  # [n, 3, R, R] -> unit vectors [n, D]: `Identity`


def weight(default: float, term: str) -> Any:
    """Declare a settings field: the weight of a term."""
    return setting(default, f"weight of the {term} term: {TERMS[term]}", low=0.0, high=1e4, step=0.05)


class ReconstructionLoss:
    """The weighted sum of terms against fixed targets [N, 3, R, R], whose features are computed once.

    Every term is a squared Euclidean distance between features of an image and of its target. Terms of weight 0 are
    not computed. Raises ValueError as `check_networks`.

    Args:
        chunk: targets that pass through the networks at once; None: all.
    """

    def __init__(
        self,
        targets: Tensor,
        weights: Mapping[str, float],
        perceptual: Features | None = None,
        identity: FaceRecognizer | None = None,
        chunk: int | None = None,
    ) -> None:
        check_networks(weights, perceptual, identity)
        self.weights = {name: value for name, value in weights.items() if value}
        self.perceptual, self.identity, self.targets = perceptual, identity, targets
        with torch.no_grad():
            chunks = [self._features(part) for part in targets.split(chunk or len(targets))]
            self.target_features = {name: torch.cat([part[name] for part in chunks]) for name in chunks[0]}

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the loss [n] of images [n, 3, R, R] against the targets with the indices `rows` [n]."""
        return torch.stack([self.weights[name] * term for name, term in self.terms(images, rows).items()]).sum(0)

    def terms(self, images: Tensor, rows: Tensor | slice) -> dict[str, Tensor]:
        """Return the unweighted terms, [n] each."""
        features = self._features(images)
        return {name: (value - self.target_features[name][rows]).square().sum(1) for name, value in features.items()}

    def _features(self, images: Tensor) -> dict[str, Tensor]:  # [n, F] each
        features: dict[str, Tensor] = {}
        if "mse" in self.weights:
            pixels = images.flatten(1)
            features["mse"] = pixels / math.sqrt(pixels.shape[1])
        if "coarse" in self.weights:
            levels = [F.avg_pool2d(images, 2**level).flatten(1) for level in (1, 2, 3)]
            features["coarse"] = torch.cat([level / math.sqrt(3 * level.shape[1]) for level in levels], 1)
        if "lpips" in self.weights and self.perceptual is not None:
            features["lpips"] = self.perceptual.features(images)
        if "id" in self.weights and self.identity is not None:
            features["id"] = self.identity(images) / math.sqrt(2)  # |a - b|^2 = 2 (1 - cos) between unit vectors
        return features


def check_networks(weights: Mapping[str, float], perceptual: object | None, identity: object | None) -> None:
    """Raise ValueError when no term has a weight, or a term with a weight lacks its network."""
    if not any(weights.values()):
        raise ValueError(f"None of the terms {', '.join(weights) or '(none given)'} has a weight; give mse at least 1.")
    kinds = (("lpips", "an LPIPS network", perceptual), ("id", "a face recognition network", identity))
    for name, kind, network in kinds:
        if weights.get(name) and network is None:
            raise ValueError(
                f"The {name} term weighs {weights[name]:g}, but there is no network to compute it; give {kind}, "
                f"or set {name} to 0."
            )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio [N] in dB of images [N, 3, R, R] clamped to -1..1, as in a file."""
    error = (images.clamp(-1, 1) - targets.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp(min=1e-12)).log10()
