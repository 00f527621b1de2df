"""Low-rank weight changes: kernel = start + left @ right (LoRA, Hu et al., arXiv:2106.09685, section 4.1).

The network has no extra modules. After every step each kernel is rewritten from its factors, and the gradients of the
factors follow from that of the kernel by the chain rule.

Shapes: O output channels, I input channels, k kernel size, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def low_rank_factors(kernels: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """Draw `NAME.left` [O, r] and `NAME.right` [r, I k k] for every kernel [O, I, k, k].

    left is zero, so the kernels start unchanged. right is random and scaled so that a step moves a kernel as far as
    training it directly would.
    """
    rng, factors = torch.Generator().manual_seed(seed), {}
    for name, kernel in kernels.items():
        outputs, inputs = len(kernel), kernel[0].numel()
        r = min(rank, outputs, inputs)
        factors[f"{name}.left"] = torch.zeros(outputs, r).to(kernel)
        factors[f"{name}.right"] = (torch.randn(r, inputs, generator=rng) / math.sqrt(r)).to(kernel)
    return factors


def backprop_to_factors(kernels: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> None:
    """Set the gradients of the factors from those of the kernels; None where a kernel has none."""
    for name, kernel in kernels.items():
        left, right = factors[f"{name}.left"], factors[f"{name}.right"]
        grad = None if kernel.grad is None else kernel.grad.flatten(1)
        left.grad = None if grad is None else grad @ right.mT
        right.grad = None if grad is None else left.mT @ grad


@torch.no_grad()
def merge_into_weights(
    kernels: Mapping[str, Tensor], start: Mapping[str, Tensor], factors: Mapping[str, Tensor]
) -> None:
    """Set every kernel to start + left @ right, in place."""
    for name, kernel in kernels.items():
        kernel.copy_(start[name] + (factors[f"{name}.left"] @ factors[f"{name}.right"]).view_as(kernel))


def factorize(change: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor] | None:
    """Factor a change [O, I, k, k] into left [O, r] and right [r, I k k] of the smallest rank r.

    Args:
        tolerance: singular values below this share of the largest are dropped.

    Returns:
        The factors, or None if they would have no fewer elements than the change.
    """
    left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    r = int((values > tolerance * values.max()).sum())
    if r * (left.shape[0] + right.shape[1]) >= change.numel():
        return None
    return (left[:, :r] * values[:r]).contiguous(), right[:r].contiguous()
