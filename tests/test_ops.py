"""The operations of StyleGAN2 against a direct implementation of their definitions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.models.ops import bias_act, modulated_conv, smooth, styled_conv, upsample
from nada_core.models.ops.convolution import demodulation


def draw(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


def filtered(x: Tensor) -> Tensor:
    """Apply the 4x4 filter with gain 4 to every channel, without padding."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = 4 * torch.outer(taps, taps) / 64
    return torch.stack([F.conv2d(x[:, c : c + 1], kernel[None, None])[:, 0] for c in range(x.shape[1])], dim=1)


def stuffed(x: Tensor) -> Tensor:
    """Insert zeros between the samples: [N, C, 2 H, 2 W]."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def per_sample(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> Tensor:
    """Equations 1 to 3 of the paper, with one set of weights per sample."""
    images = []
    for one, row in zip(x, style, strict=True):
        scaled = weight * row[None, :, None, None]
        if demodulate:
            scaled = scaled / (scaled.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # A transposed convolution correlates the zero-stuffed image with the mirrored kernel.
            wide = F.conv2d(F.pad(stuffed(one[None]), (2, 1, 2, 1)), scaled.flip(2, 3))
            images.append(filtered(F.pad(wide, (1, 2, 1, 2)))[:, :, : 2 * one.shape[1], : 2 * one.shape[2]])
        else:
            images.append(F.conv2d(one[None], scaled, padding=weight.shape[-1] // 2))
    return torch.cat(images)


def test_bias_act_value() -> None:
    x, bias = draw(2, 3, 4, 4), draw(3)
    expected = F.leaky_relu(x + bias[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(bias_act(x, bias), expected)
    torch.testing.assert_close(bias_act(x, bias, clamp=0.5), expected.clamp(-0.5, 0.5))
    torch.testing.assert_close(bias_act(x[:, :, 0, 0], bias), expected[:, :, 0, 0])


def test_bias_act_does_not_change_its_input() -> None:
    x = draw(2, 3).detach()
    before = x.clone()
    bias_act(x, draw(3).detach())
    assert torch.equal(x, before)


def test_upsample_is_zero_stuffing_and_filtering() -> None:
    x = draw(2, 3, 5, 4)
    torch.testing.assert_close(upsample(x), filtered(F.pad(stuffed(x), (2, 1, 2, 1))))


def test_smooth_value_and_shape() -> None:
    x = draw(2, 3, 9, 7)
    assert smooth(x).shape == (2, 3, 8, 6)
    torch.testing.assert_close(smooth(x), filtered(F.pad(x, (1, 1, 1, 1))))


def test_modulated_conv_equals_modulated_weights() -> None:
    for size, demodulate, up in ((3, True, False), (3, True, True), (3, False, True), (1, False, False)):
        x, weight, style = draw(2, 4, 6, 5), draw(3, 4, size, size), draw(2, 4)
        got = modulated_conv(x, weight, style, demodulate=demodulate, up=up)
        torch.testing.assert_close(got, per_sample(x, weight, style, demodulate, up))


def test_demodulated_output_has_unit_variance() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 32, 32, generator=rng)
    y = modulated_conv(x, torch.randn(16, 32, 3, 3, generator=rng), 100 * torch.randn(2, 32, generator=rng))
    assert 0.9 < y[:, :, 1:-1, 1:-1].std() < 1.1


def test_demodulation_shape() -> None:
    assert demodulation(draw(3, 4, 3, 3), draw(2, 4)).shape == (2, 3)


def test_gradients_first_and_second() -> None:
    conv = draw(1, 2, 3, 3), draw(2, 2, 3, 3), draw(1, 2)
    checked: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (modulated_conv, conv),
        (partial(modulated_conv, up=True), conv),
        (bias_act, (draw(1, 2, 3, 3), draw(2))),
        (upsample, (draw(1, 2, 3, 3),)),
        (smooth, (draw(1, 2, 4, 4),)),
    ]
    for function, arguments in checked:
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


# ---- the fused layer ----------------------------------------------------------------------------------------------


def layer(up: bool, noise: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    inputs = draw(2, 3, 4, 4), draw(2, 3, 3, 3), draw(2, 3), draw(2)
    return inputs if noise is None else (*inputs, draw(*noise))


def separate_steps(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, *noise: Tensor, up: bool, clamp: float | None
) -> Tensor:
    return bias_act(sum(noise, modulated_conv(x, weight, style, up=up)), bias, clamp)


def fused(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, *noise: Tensor, **options: Any) -> Tensor:
    return styled_conv(x, weight, style, *(noise or (None,)), bias, **options)


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize(("up", "size"), [(False, 4), (True, 8)])
def test_styled_conv_and_gradients_equal_the_separate_steps(up: bool, size: int, clamp: float | None) -> None:
    for noise in (None, (2, 1, size, size), (size, size), (1, 1, size, size)):
        inputs = layer(up, noise)
        separate, together = (f(*inputs, up=up, clamp=clamp) for f in (separate_steps, fused))
        torch.testing.assert_close(together, separate)
        seed = torch.randn(separate.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for one, other in zip(
            torch.autograd.grad(separate, inputs, seed), torch.autograd.grad(together, inputs, seed), strict=True
        ):
            torch.testing.assert_close(other, one)


@pytest.mark.parametrize("index", range(5))
def test_styled_conv_computes_each_gradient_alone(index: int) -> None:
    inputs = [one.detach().requires_grad_(i == index) for i, one in enumerate(layer(True, (8, 8)))]
    (alone,) = torch.autograd.grad(fused(*inputs, up=True, clamp=None).square().sum(), inputs[index])
    every = layer(True, (8, 8))
    together = torch.autograd.grad(fused(*every, up=True, clamp=None).square().sum(), every)
    torch.testing.assert_close(alone, together[index])


@pytest.mark.parametrize("up", [False, True])
def test_styled_conv_has_second_gradients(up: bool) -> None:
    inputs = layer(up, (8, 8) if up else (4, 4))
    function = partial(fused, up=up, clamp=None)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_styled_conv_saves_its_input_and_output_only() -> None:
    """Each layer saves one image, because its output is the input of the next; this bounds the memory of a step."""
    x, *rest = (one.float().detach().requires_grad_() for one in layer(False, (4, 4)))
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = fused(x, *rest, up=False, clamp=None)
    images = {tensor.data_ptr() for tensor in saved if tensor.ndim == 4 and tensor.shape[-1] == 4 and len(tensor) == 2}
    assert images == {x.data_ptr(), out.data_ptr()}


@pytest.mark.parametrize("up", [False, True])
def test_large_styles_do_not_overflow_float16(up: bool) -> None:
    x, weight, style = (tensor.detach().float() for tensor in (draw(2, 64, 8, 8), draw(32, 64, 3, 3), draw(2, 64)))
    x, style = 1000 * x, (100 * style).requires_grad_()
    bias, noise = torch.zeros(32), None
    expected = styled_conv(x, weight, style, noise, bias, up=up, clamp=None)
    half = styled_conv(x.half(), weight, style, noise, bias, up=up, clamp=None).float()
    assert (half - expected).norm() < 2e-3 * expected.norm()
    exact, rounded = (torch.autograd.grad((out / 1e3).square().sum(), style)[0] for out in (expected, half))
    assert (rounded - exact).norm() < 0.05 * exact.norm()
