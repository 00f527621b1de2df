"""Weights held near where they started: L2-SP (Li et al., arXiv:1802.01483, equation 2), and with every weight held as
much as it matters elastic weight consolidation (Kirkpatrick et al., arXiv:1612.00796, equation 3), as SVL
(arXiv:2308.10554) does against collapse.

Distances are told as shares of the length the weights had, so that one factor means the same for kernels, affines and
offsets, whatever their scale and number, and for both kinds of anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..guidance.targets import ClipTarget
from ..models.generator import Generator


def squared_length(start: Mapping[str, Tensor]) -> float:
    """Of the weights where they started: the unit of `distance`, which a run measures once."""
    return sum(float(value.square().sum()) for value in start.values())


def distance(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], importance: Mapping[str, Tensor], length: float
) -> Tensor:
    """Squared distance of the weights from where they started, over `length`, the start's squared length; 0 and up.

    importance: name -> how much each number matters, with a mean of 1 over all of them; without any, all matter alike.
    """
    moved = [
        (importance[name] if importance else 1) * (weight - start[name]).square() for name, weight in weights.items()
    ]
    return torch.stack([one.sum() for one in moved]).sum() / max(length, 1e-12)


def fisher(
    generator: Generator,
    targets: Sequence[ClipTarget],
    weights: Mapping[str, Tensor],
    count: int,
    seed: int,
    label: int | None = None,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the weights, scaled to a mean of 1: how far a picture moves in the
    eyes of the guides when a number does. An embedding is taken for the mean of a Gaussian, whose Fisher information is
    the mean squared slope of the embedding along random directions.

    weights: parameters of the generator, by name; they need no gradients before and have none afterwards.
    count: of latents; with 0 nothing is known, and nothing is returned.
    """
    if not count:
        return {}
    rng = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for _ in range(count):
            z = torch.randn(1, generator.z_dim, generator=rng).to(generator.w_avg.device)
            image = generator.synthesize(generator.map(z, generator.one_hot(label, 1)))
            for target in targets:
                way = torch.randn(1, target.guide.dim, generator=rng).to(image.device)
                seen = (target.guide.encode_images(image) * way).sum() * target.weight
                slopes = torch.autograd.grad(seen, list(weights.values()), retain_graph=True, allow_unused=True)
                for name, slope in zip(weights, slopes, strict=True):
                    if slope is not None:
                        total[name] += slope.square()
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    numbers = sum(value.numel() for value in total.values())
    mean = sum(float(value.sum()) for value in total.values()) / numbers
    return {name: value / max(mean, 1e-30) for name, value in total.items()}
