"""How unlike pictures are to their targets: the terms that pSp (arXiv:2008.00951, section 3.2) adds up.

A loss never loads a model: the networks of LPIPS and identity are handed in by whoever has them.

Letters: N targets, n pictures of them, F features, R pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.config import setting

#: The names of the terms, and what each weighs.
TERMS = {
    "mse": "mean squared difference of the pixels, on -1..1",
    "coarse": "mean squared difference of both reduced 2, 4 and 8 times, which shows the way from afar",
    "lpips": "LPIPS, how different the two look to a network",
    "id": "1 - cosine of the two faces, to a face recogniser",
}


class Features(Protocol):
    """Anything that turns pictures into rows whose squared Euclidean distance means something: `Perceptual`."""

    def features(self, images: Tensor) -> Tensor: ...


FaceRecognizer = Callable[[Tensor], Tensor]  # [n, 3, R, R] -> unit vectors [n, D]: `Identity`


def weight(default: float, term: str) -> Any:
    """A settings field: the weight of one of the terms."""
    return setting(default, f"weight of the {term} term: {TERMS[term]}", low=0.0, high=1e4, step=0.05)


class ReconstructionLoss:
    """The weighted sum of the terms for fixed targets, which are looked at once.

    Every term is a squared Euclidean distance between what is seen of a picture and of its target: of the pixels, of
    the features of LPIPS, of the unit vectors of the faces.
    """

    def __init__(
        self,
        targets: Tensor,
        weights: Mapping[str, float],
        perceptual: Features | None = None,
        identity: FaceRecognizer | None = None,
    ) -> None:
        """targets: [N, 3, R, R]. Terms of weight 0 are not computed. Raises ValueError for a term without its network
        and when nothing weighs anything."""
        check_networks(weights, perceptual, identity)
        self.weights = {name: value for name, value in weights.items() if value}
        self.perceptual, self.identity, self.targets = perceptual, identity, targets
        with torch.no_grad():
            self.seen = self._see(targets)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """The loss, [n], of images [n, 3, R, R] against the targets `rows` [n]."""
        return torch.stack([self.weights[name] * term for name, term in self.terms(images, rows).items()]).sum(0)

    def terms(self, images: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The terms of that loss before they are weighed, [n] each."""
        return {name: (seen - self.seen[name][rows]).square().sum(1) for name, seen in self._see(images).items()}

    def _see(self, images: Tensor) -> dict[str, Tensor]:
        """What each term looks at: [n, F]."""
        seen: dict[str, Tensor] = {}
        if "mse" in self.weights:
            pixels = images.flatten(1)
            seen["mse"] = pixels / math.sqrt(pixels.shape[1])
        if "coarse" in self.weights:
            small = [F.avg_pool2d(images, 2**level).flatten(1) for level in (1, 2, 3)]
            seen["coarse"] = torch.cat([one / math.sqrt(3 * one.shape[1]) for one in small], 1)
        if "lpips" in self.weights and self.perceptual is not None:
            seen["lpips"] = self.perceptual.features(images)
        if "id" in self.weights and self.identity is not None:
            seen["id"] = self.identity(images) / math.sqrt(2)  # |a - b|^2 = 2 (1 - cos) between unit vectors
        return seen


def check_networks(weights: Mapping[str, float], perceptual: object | None, identity: object | None) -> None:
    """Say before the work that a term has weight and nothing to see with. Raises ValueError."""
    if not any(weights.values()):
        raise ValueError(f"None of the terms {', '.join(weights) or '(none given)'} has a weight; give mse at least 1.")
    for name, network, way in (
        ("lpips", perceptual, "load_perceptual, --perceptual"),
        ("id", identity, "load_identity, --identity"),
    ):
        if weights.get(name) and network is None:
            raise ValueError(
                f"The {name} term weighs {weights[name]:g}, but there is no network to compute it; give "
                f"one ({way} or, in ComfyUI, Load Likeness), or set {name} to 0."
            )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every picture, [N]; both [N, 3, R, R], clamped to -1..1, as files are."""
    error = (images.clamp(-1, 1) - targets.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp(min=1e-12)).log10()
