"""Each operation against the definition in the paper, written out the slow way."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.ops import bias_act, modulated_conv, smooth, upsample
from nada_core.ops.convolution import demodulation


def draw(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


def filtered(x: Tensor) -> Tensor:
    """The 4x4 filter with gain 4, every channel by itself, no padding."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = 4 * torch.outer(taps, taps) / 64
    return torch.stack([F.conv2d(x[:, c:c + 1], kernel[None, None])[:, 0] for c in range(x.shape[1])], dim=1)


def stuffed(x: Tensor) -> Tensor:
    """Zeros between the samples: [N, C, 2 H, 2 W]."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def per_sample(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> Tensor:
    """Equations 1 to 3 as the paper has them: one set of weights a sample."""
    images = []
    for one, row in zip(x, style, strict=True):
        scaled = weight * row[None, :, None, None]
        if demodulate:
            scaled = scaled / (scaled.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # A transposed convolution correlates the zero-stuffed image with the mirrored kernel.
            wide = F.conv2d(F.pad(stuffed(one[None]), (2, 1, 2, 1)), scaled.flip(2, 3))
            images.append(filtered(F.pad(wide, (1, 2, 1, 2)))[:, :, :2 * one.shape[1], :2 * one.shape[2]])
        else:
            images.append(F.conv2d(one[None], scaled, padding=weight.shape[-1] // 2))
    return torch.cat(images)


def test_bias_act_value() -> None:
    x, bias = draw(2, 3, 4, 4), draw(3)
    expected = F.leaky_relu(x + bias[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(bias_act(x, bias), expected)
    torch.testing.assert_close(bias_act(x, bias, clamp=0.5), expected.clamp(-0.5, 0.5))
    torch.testing.assert_close(bias_act(x[:, :, 0, 0], bias), expected[:, :, 0, 0])


def test_bias_act_leaves_its_input_alone() -> None:
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
        (modulated_conv, conv), (partial(modulated_conv, up=True), conv), (bias_act, (draw(1, 2, 3, 3), draw(2))),
        (upsample, (draw(1, 2, 3, 3),)), (smooth, (draw(1, 2, 4, 4),)),
    ]
    for function, arguments in checked:
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
