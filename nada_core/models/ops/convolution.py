"""Modulated convolution of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, section 2.2, equations 1 to 3).

The paper scales the weights, which needs one set of weights per sample and a grouped convolution. Scaling the input
channels by the style and the output channels by the demodulation gives the same numbers from one ordinary convolution.

Shapes: N batch, I input channels, O output channels, K kernel size, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .fir import smooth


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolve x [N, I, H, W] with weight [O, I, K, K] (K odd) modulated by style [N, I].

    Returns:
        [N, O, H, W], or [N, O, 2 H, 2 W] with `up`: a stride-2 transposed convolution followed by the FIR filter.
    """
    x = x * style[:, :, None, None]  # eq. 1, applied to the input
    if up:
        x = smooth(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return x * demodulation(weight, style)[:, :, None, None] if demodulate else x


def demodulation(weight: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """Return one over the norm of each modulated filter (eq. 3): [N, O] of weight [O, I, K, K] and style [N, I]."""
    energy = weight.square().sum(dim=(2, 3))  # [O, I]
    return torch.rsqrt(style.square() @ energy.T + eps)
