"""Kernels that change by a product of two thin matrices (LoRA, Hu et al., arXiv:2106.09685, 4.1).

The network is not rewired. After every step each kernel is set to its start plus left @ right, and the gradient of the
kernel gives those of the factors by the chain rule. So the generator in training is an ordinary one at any time.

Letters: O, I channels out and in, k side of a kernel, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: What of a layer is trained in this way; everything else is trained as it is.
REPARAMETRIZED = ("low-rank",)


def factors(kernels: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """Two tensors a kernel [O, I, k, k]: `NAME.left` [O, r], zero, so that nothing changes at first, and `NAME.right`
    [r, I k k], random and so long that a kernel moves as far a step as if it were trained itself."""
    rng, made = torch.Generator().manual_seed(seed), {}
    for name, kernel in kernels.items():
        outputs, inputs = len(kernel), kernel[0].numel()
        r = min(rank, outputs, inputs)
        made[f"{name}.left"] = torch.zeros(outputs, r).to(kernel)
        made[f"{name}.right"] = (torch.randn(r, inputs, generator=rng) / math.sqrt(r)).to(kernel)
    return made


def backprop_to_factors(kernels: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Give factors the gradients that follow from those of the kernels: none where a kernel has none."""
    for name, kernel in kernels.items():
        left, right = parts[f"{name}.left"], parts[f"{name}.right"]
        slope = None if kernel.grad is None else kernel.grad.flatten(1)
        left.grad = None if slope is None else slope @ right.mT
        right.grad = None if slope is None else left.mT @ slope


@torch.no_grad()
def merge_into_weights(kernels: Mapping[str, Tensor], start: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    """Write every kernel as what it was at the start and its change."""
    for name, kernel in kernels.items():
        kernel.copy_(start[name] + (parts[f"{name}.left"] @ parts[f"{name}.right"]).view_as(kernel))


def factorize(change: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor] | None:
    """The thinnest left [O, r] and right [r, I k k] whose product is the change of a kernel [O, I, k, k], up to
    rounding; none where they would hold no fewer numbers than it."""
    left, sizes, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    r = int((sizes > tolerance * sizes.max()).sum())
    if r * (left.shape[0] + right.shape[1]) >= change.numel():
        return None
    return (left[:, :r] * sizes[:r]).contiguous(), right[:r].contiguous()


def channel_gain(old: Tensor, change: Tensor) -> Tensor | None:
    """The gain [I] of a kernel [O, I, k, k] whose change is one factor an input channel up to rounding; else none."""
    if old.ndim != 4:
        return None
    gain: Tensor = (change * old).sum((0, 2, 3)) / old.square().sum((0, 2, 3)).clamp(min=1e-12)
    left_over = (change - old * gain[:, None, None]).norm()
    return gain if left_over <= 1e-6 * old.norm() and left_over <= 1e-2 * change.norm() else None
