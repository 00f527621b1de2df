"""The activation of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): bias, leaky ReLU of slope 0.2, gain sqrt(2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2
GAIN = math.sqrt(2.0)


def bias_act(x: Tensor, bias: Tensor, clamp: float | None = None) -> Tensor:
    """Return sqrt(2) * leaky_relu(x + bias), clamped to +-clamp if set. x: [N, C, ...], bias: [C]."""
    bias = bias.reshape([-1] + [1] * (x.ndim - 2))
    # Leaky ReLU commutes with a positive gain. Applied with the addition, it needs no third pass over memory.
    x = F.leaky_relu_(torch.add(bias * GAIN, x, alpha=GAIN), SLOPE)
    return x if clamp is None else x.clamp(-clamp, clamp)
