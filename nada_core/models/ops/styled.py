"""One layer of StyleGAN2 as one operation (Karras et al. 2020, arXiv 1912.04958, figure 2c): modulated 3x3 convolution,
FIR filter after upsampling, noise, bias, leaky ReLU.

Plain autograd would store four images per layer. This operation stores two, its input and its output, and the output is
the next layer's input. Everything else is one number per channel or cheap to recompute. Full-size temporaries are
overwritten in place.

Shapes: N batch, I input channels, O output channels, H height, W width, R output resolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import GAIN, SLOPE, bias_act
from .convolution import demodulation, modulated_conv
from .fir import smooth, smooth_backward
from .winograd import conv3x3, conv3x3_backward


def styled_conv(
    x: Tensor, weight: Tensor, style: Tensor, noise: Tensor | None, bias: Tensor, *, up: bool, clamp: float | None
) -> Tensor:
    """Run one styled layer; it differentiates twice.

    Args:
        x: [N, I, H, W]. If its type is narrower than that of weight, images use it and per-channel factors do not.
        weight: [O, I, 3, 3].
        style: [N, I].
        noise: broadcastable to [N, 1, R, R], already scaled.
        bias: [O].
        up: double the resolution.
        clamp: limit of the activations.

    Returns:
        [N, O, R, R] in the type of x.
    """
    if x.dtype != weight.dtype:  # demodulation cancels any factors; these prevent overflow in float16
        weight = weight / math.sqrt(weight[0].numel())
        style = style / style.detach().abs().amax(1, keepdim=True).clamp(min=1e-8)
    scale = demodulation(weight, style)
    out: Tensor = _StyledConv.apply(x, weight.to(x.dtype), style, scale, noise, bias, up, clamp)
    return out


class _StyledConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        style: Tensor,
        scale: Tensor,  # [N, O], the demodulation
        noise: Tensor | None,
        bias: Tensor,
        up: bool,
        clamp: float | None,
    ) -> Tensor:
        scaled = x * _per_channel(style, x)
        if up:
            out = smooth(F.conv_transpose2d(scaled, weight.transpose(0, 1), stride=2))
        else:
            out = conv3x3(scaled, weight)
        del scaled
        out.mul_(_per_channel(scale * GAIN, x))  # leaky ReLU commutes with the gain: apply it to the small tensors
        if noise is not None:
            out.add_((noise * GAIN).to(x.dtype))
        out = F.leaky_relu_(out.add_(_per_channel(bias * GAIN, x)), SLOPE)
        if clamp is not None:
            out.clamp_(-clamp, clamp)
        ctx.up, ctx.clamp = up, clamp
        ctx.save_for_backward(x, weight, style, scale, noise, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, style, scale, noise, bias, out = ctx.saved_tensors
        need_x, need_weight, need_style, need_scale, need_noise, need_bias = need = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():  # create_graph=True
            return (*_backward_with_graph(ctx.saved_tensors[:6], need, grad, ctx.up, ctx.clamp), None, None)

        # Activation, bias, noise and demodulation.
        if ctx.clamp is not None:
            grad = grad.masked_fill(out.abs() >= ctx.clamp, 0)
        grad_act = torch.ops.aten.leaky_relu_backward(grad, out, SLOPE, True)  # [N, O, R, R], without the gain
        grad_channels = grad_act.sum((2, 3), dtype=scale.dtype) * GAIN  # [N, O]
        grad_noise = grad_scale = None
        if need_noise:
            grad_noise = (grad_act.sum(1, keepdim=True, dtype=scale.dtype) * GAIN).sum_to_size(noise.shape)
        if need_scale:
            # grad * out = grad_act * GAIN * (scale * convolution + noise + bias).
            grad_scale = _dot(grad, out, scale.dtype) - grad_channels * bias
            if noise is not None:
                grad_scale -= _dot(grad_act, noise.expand(len(out), 1, *out.shape[2:]), scale.dtype) * GAIN
            grad_scale /= scale
        del grad

        # Convolution and style.
        grad_conv = grad_act.mul_(_per_channel(scale * GAIN, x))
        scaled = x * _per_channel(style, x) if need_weight else x
        backward = _conv_up_backward if ctx.up else conv3x3_backward
        grad_x, grad_weight = backward(grad_conv, scaled, weight, need_x or need_style, need_weight)
        grad_style = _dot(grad_x, x, style.dtype) if grad_x is not None and need_style else None
        grad_x = grad_x.mul_(_per_channel(style, x)) if grad_x is not None and need_x else None
        grad_bias = grad_channels.sum(0) if need_bias else None
        return grad_x, grad_weight, grad_style, grad_scale, grad_noise, grad_bias, None, None


def _backward_with_graph(
    inputs: Sequence[Tensor | None], need: Sequence[bool], grad: Tensor, up: bool, clamp: float | None
) -> list[Tensor | None]:
    """Differentiate the same layer written as separate operations."""
    x, weight, style, scale, noise, bias = inputs
    assert x is not None and weight is not None and style is not None and scale is not None and bias is not None
    out = modulated_conv(x, weight, style.to(x.dtype), demodulate=False, up=up) * _per_channel(scale, x)
    out = bias_act(out if noise is None else out + noise.to(x.dtype), bias.to(x.dtype), clamp)
    wanted = [tensor for tensor, needed in zip(inputs, need, strict=True) if needed and tensor is not None]
    gradients = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(gradients) if needed else None for needed in need]


def _conv_up_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and weight of the transposed convolution and its filter; grad: [N, O, 2 H, 2 W]."""
    mask = [need_x, need_weight, False]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        smooth_backward(grad), x, weight.transpose(0, 1), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, mask
    )
    return grad_x, grad_weight.transpose(0, 1) if need_weight else None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[..., C] -> [..., C, 1, 1] in the type of images x."""
    return values[..., None, None].to(x.dtype)


def _dot(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum products over the pixels: a [N, C, H, W], b [N, C or 1, H, W] -> [N, C]."""
    if a.dtype != dtype:  # a sum over all pixels may overflow float16
        return (a * b).sum((2, 3), dtype=dtype)
    return torch.einsum("nchw,nchw->nc", a, b) if a.shape == b.shape else torch.einsum("nchw,nhw->nc", a, b[:, 0])
