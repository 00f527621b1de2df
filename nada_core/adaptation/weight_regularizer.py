"""A penalty on the distance of the weights from their start: L2-SP (Li et al., arXiv:1802.01483, equation 2), or, with
every weight scaled by its importance, elastic weight consolidation (EWC, Kirkpatrick et al., arXiv:1612.00796,
equation 3), which SVL (arXiv:2308.10554) uses against collapse.

The distance is relative to the length of the start, so one factor means the same for kernels, affines and offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance.targets import ClipTarget
from ..models.generator import Generator
from .config import AdaptConfig


@dataclass(frozen=True)
class WeightRegularizer:
    """Squared distance of `weights` from `start`, divided by the squared length of `start`; 0 and up.

    Attributes:
        importance: name -> importance of every number, with mean 1 over all of them; empty: all equal (L2-SP).
    """

    weights: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    importance: Mapping[str, Tensor]
    squared_length: float

    @classmethod
    def build(
        cls,
        config: AdaptConfig,
        generator: Generator,
        targets: Sequence[ClipTarget],
        weights: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
    ) -> WeightRegularizer | None:
        """The regularizer `config` asks for, or None."""
        if not config.weight_reg:
            return None
        importance = {}
        if config.fisher_samples:
            importance = fisher(generator, targets, weights, config.fisher_samples, config.seed, config.label)
        return cls(weights, start, importance, sum(float(value.square().sum()) for value in start.values()))

    def __call__(self) -> Tensor:
        moved = [
            (self.importance[name] if self.importance else 1) * (weight - self.start[name]).square()
            for name, weight in self.weights.items()
        ]
        return torch.stack([values.sum() for values in moved]).sum() / max(self.squared_length, 1e-12)


def fisher(
    generator: Generator,
    targets: Sequence[ClipTarget],
    weights: Mapping[str, Tensor],
    samples: int,
    seed: int,
    label: int | None = None,
) -> dict[str, Tensor]:
    """Estimate the diagonal of the Fisher information of the weights, scaled to mean 1.

    An embedding is taken for the mean of a Gaussian, whose Fisher information is the mean squared gradient of the
    embedding along random directions.

    Args:
        weights: parameters of the generator, by name. They need no gradients before and have none afterwards.
        samples: number of latents, at least 1.
        label: the class of a conditional generator.
    """
    rng = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for _ in range(samples):
            z = torch.randn(1, generator.z_dim, generator=rng).to(generator.w_avg.device)
            image = generator.synthesize(generator.map(z, generator.one_hot(label, 1)))
            for target in targets:
                direction = torch.randn(1, target.guide.dim, generator=rng).to(image.device)
                projection = (target.guide.encode_images(image) * direction).sum() * target.weight
                gradients = torch.autograd.grad(
                    projection, list(weights.values()), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient.square()
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    mean = sum(float(value.sum()) for value in total.values()) / sum(value.numel() for value in total.values())
    return {name: value / max(mean, 1e-30) for name, value in total.items()}
