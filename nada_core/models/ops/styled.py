"""One layer of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, figure 2c) as one operation: modulated 3x3 convolution,
smoothing where it doubles the image, noise, bias, leaky ReLU.

Autograd would keep four images a layer for the way back: what came in, that times the style, what the convolution gave,
and the result. Two are enough, and the result is the next layer's input. All else is a factor a channel, or is made
again in a pass over memory that costs less than keeping it. Full-size temporaries are overwritten in place.

Letters: N batch, I input channels, O output channels, H height, W width, R pixels a side of the result.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import GAIN, SLOPE, bias_act
from .convolution import demodulation, modulated_conv
from .fir import smooth, smooth_back
from .winograd import conv3x3, conv3x3_backward


def styled_conv(
    x: Tensor, weight: Tensor, style: Tensor, noise: Tensor | None, bias: Tensor, *, up: bool, clamp: float | None
) -> Tensor:
    """x [N, I, H, W], weight [O, I, 3, 3], style [N, I], noise as broadcasts to [N, 1, R, R], bias [O] -> [N, O, R, R].

    The result has the type of x; where that is half of the weight's, images are held in it and factors in the weight's.
    Differentiates twice: the second time through `plain`, which is the same mathematics a step at a time.
    """
    if x.dtype != weight.dtype:  # demodulation takes any factor out again; this one keeps sums within float16's reach
        weight = weight / math.sqrt(weight[0].numel())
    scale = demodulation(weight, style)
    out: Tensor = _StyledConv.apply(x, weight.to(x.dtype), style, scale, noise, bias, up, clamp)
    return out


def plain(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    bias: Tensor,
    up: bool,
    clamp: float | None,
) -> Tensor:
    """The layer as a chain of operations; scale [N, O] is the demodulation."""
    x = modulated_conv(x, weight, style.to(x.dtype), demodulate=False, up=up) * scale[:, :, None, None].to(x.dtype)
    return bias_act(x if noise is None else x + noise.to(x.dtype), bias.to(x.dtype), clamp)


class _StyledConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        style: Tensor,
        scale: Tensor,
        noise: Tensor | None,
        bias: Tensor,
        up: bool,
        clamp: float | None,
    ) -> Tensor:
        scaled = x * _as_factor(style, x)
        if up:
            out = smooth(F.conv_transpose2d(scaled, weight.transpose(0, 1), stride=2))
        else:
            out = conv3x3(scaled, weight)
        del scaled
        out.mul_(_as_factor(scale * GAIN, x))  # leaky ReLU commutes with the gain, which rides on small tensors
        if noise is not None:
            out.add_((noise * GAIN).to(x.dtype))
        out = F.leaky_relu_(out.add_(_as_factor(bias * GAIN, x)), SLOPE)
        if clamp is not None:
            out.clamp_(-clamp, clamp)
        ctx.up, ctx.clamp = up, clamp
        ctx.save_for_backward(x, weight, style, scale, noise, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, style, scale, noise, bias, out = ctx.saved_tensors
        need = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():  # somebody differentiates twice
            given = (x, weight, style, scale, noise, bias)
            wanted = [one for one, needed in zip(given, need, strict=True) if needed]
            found = iter(torch.autograd.grad(plain(*given, ctx.up, ctx.clamp), wanted, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in need), None, None)

        if ctx.clamp is not None:
            grad = grad.masked_fill(out.abs() >= ctx.clamp, 0)
        slope = torch.ops.aten.leaky_relu_backward(grad, out, SLOPE, True)  # [N, O, R, R]; the gain follows
        by_channel = slope.sum((2, 3), dtype=scale.dtype) * GAIN  # [N, O]
        to_noise = to_scale = None
        if need[4]:
            to_noise = (slope.sum(1, keepdim=True, dtype=scale.dtype) * GAIN).sum_to_size(noise.shape)
        if need[3]:
            # grad * out is slope * gain * (what went into the ReLU): less noise and bias, that is scale * convolution.
            to_scale = _dot(grad, out, scale.dtype) - by_channel * bias
            if noise is not None:
                to_scale -= _dot(slope, noise.expand(len(slope), 1, *slope.shape[2:]), scale.dtype) * GAIN
            to_scale /= scale
        del grad

        slope.mul_(_as_factor(scale * GAIN, x))
        scaled = x * _as_factor(style, x) if need[1] else x
        if ctx.up:
            slope = smooth_back(slope)
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                slope,
                scaled,
                weight.transpose(0, 1),
                None,
                [2, 2],
                [0, 0],
                [1, 1],
                True,
                [0, 0],
                1,
                [need[0] or need[2], need[1], False],
            )
            to_weight = to_weight.transpose(0, 1) if need[1] else None
        else:
            to_x, to_weight = conv3x3_backward(slope, scaled, weight, need[0] or need[2], need[1])
        to_style = _dot(to_x, x, style.dtype) if need[2] else None
        to_x = to_x.mul_(_as_factor(style, x)) if need[0] else None
        return to_x, to_weight, to_style, to_scale, to_noise, by_channel.sum(0) if need[5] else None, None, None


def _as_factor(values: Tensor, x: Tensor) -> Tensor:
    """[..., C] -> [..., C, 1, 1] in the type of images x."""
    return values[..., None, None].to(x.dtype)


def _dot(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of products over the pixels, a [N, C, H, W] and b [N, C or 1, H, W] -> [N, C]."""
    if a.dtype != dtype:  # a sum over all pixels is beyond the reach of float16
        return (a * b).sum((2, 3), dtype=dtype)
    return torch.einsum("nchw,nchw->nc", a, b) if a.shape == b.shape else torch.einsum("nchw,nhw->nc", a, b[:, 0])
