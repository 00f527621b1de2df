"""Plain StyleGAN-NADA training, written from the papers: the baseline of `benchmarks.speed` and a reference for tests.

It computes the same function as `nada_core`, in the way of the papers and of the first public implementation:

- modulated weights for each sample and one grouped convolution (StyleGAN2, arXiv:1912.04958, section 2.2);
- FIR filters over a zero-stuffed image, with all channels as a batch;
- the frozen and the trained generator draw their own noise, unless the caller passes the same maps to both;
- layer selection (StyleGAN-NADA, arXiv:2108.00946, section 4.2) back-propagates to every weight of the generator,
  embeds the text again in every step, and runs even if all layers would be chosen.

It omits two costs of the first implementation (an unused CLIP model, gradients for CLIP weights), so the measured
ratios are conservative. Only StyleGAN2 is implemented.

Shapes: N batch, L rows of W+, C width of a row, I and O channels in and out, K kernel size, R resolution of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nada_core import AdaptConfig, ClipGuide, LayerChoice, TextShift
from nada_core.models.stylegan2 import Convolution as Ours
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.models.stylegan2 import ToRGB as OurRGB

Mark = Callable[[str], None]


def upfirdn(x: Tensor, up: int, before: int, after: int, gain: float) -> Tensor:
    """Insert zeros between the samples of x [N, C, H, W], pad, and correlate with the 4x4 binomial filter."""
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    kernel = kernel / kernel.sum() * gain
    count, channels, height, width = x.shape
    x = x.reshape(-1, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(-1, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, (before, after, before, after)), kernel[None, None].flip(2, 3))
    return x.reshape(count, channels, *x.shape[2:])


def modulated(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> Tensor:
    """Equations 1 to 3 on x [N, I, H, W], weight [O, I, K, K] and style [N, I], with one group per sample."""
    count, channels, height, width = x.shape
    weights = weight[None] * style[:, None, :, None, None] / math.sqrt(weight[0].numel())  # [N, O, I, K, K]
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum([2, 3, 4]) + 1e-8)[:, :, None, None, None]
    x = x.reshape(1, count * channels, height, width)
    if up:
        weights = weights.transpose(1, 2).reshape(count * channels, -1, *weight.shape[2:])
        x = F.conv_transpose2d(x, weights, stride=2, groups=count)
        return upfirdn(x.reshape(count, -1, *x.shape[2:]), 1, 1, 1, 4.0)
    x = F.conv2d(x, weights.flatten(0, 1), padding=weight.shape[-1] // 2, groups=count)
    return x.reshape(count, -1, height, width)


class Convolution(nn.Module):
    def __init__(self, ours: Ours) -> None:
        super().__init__()
        self.up, self.size, self.clamp = ours.up, ours.noise_const.shape[-1], ours.clamp
        self.weight, self.bias = _copy(ours.weight), _copy(ours.bias)
        self.noise_strength = _copy(ours.noise_strength)
        self.affine, self.affine_bias = _copy(ours.affine.weight), _copy(ours.affine.bias)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = modulated(x, self.weight, _affine(w, self.affine, self.affine_bias), True, self.up)
        if noise is None:
            noise = torch.randn(len(x), 1, self.size, self.size, device=x.device)
        x = x + self.noise_strength * noise
        x = F.leaky_relu(x + self.bias[None, :, None, None], 0.2) * math.sqrt(2.0)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    def __init__(self, ours: OurRGB) -> None:
        super().__init__()
        self.clamp = ours.clamp
        self.weight, self.bias = _copy(ours.weight), _copy(ours.bias)
        self.affine, self.affine_bias = _copy(ours.affine.weight), _copy(ours.affine.bias)

    def forward(self, x: Tensor, w: Tensor, below: Tensor | None) -> Tensor:
        rgb = modulated(x, self.weight, _affine(w, self.affine, self.affine_bias), False, False)
        rgb = rgb + self.bias[None, :, None, None]
        rgb = rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)
        return rgb if below is None else rgb + upfirdn(below, 2, 2, 1, 4.0)


class NaiveGenerator(nn.Module):
    """The synthesis network with a copy of the weights of `ours`. `convs` and `rgbs` are ordered by resolution."""

    def __init__(self, ours: StyleGAN2) -> None:
        super().__init__()
        self.const = _copy(ours.synthesis.get_parameter("b4.const"))
        blocks = list(ours.synthesis.blocks())
        self.convs = nn.ModuleList(Convolution(conv) for block in blocks for _, conv in block.convolutions())
        self.rgbs = nn.ModuleList(ToRGB(block.torgb) for block in blocks)

    def forward(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """ws [N, L, C] -> images [N, 3, R, R]. noise: one map [N, 1, R, R] per convolution, or None to draw them."""
        maps = [None] * len(self.convs) if noise is None else noise
        x = self.convs[0](self.const.repeat(len(ws), 1, 1, 1), ws[:, 0], maps[0])
        rgb = self.rgbs[0](x, ws[:, 1], None)
        for block, torgb in enumerate(self.rgbs[1:]):
            for row in (2 * block + 1, 2 * block + 2):
                x = self.convs[row](x, ws[:, row], maps[row])
            rgb = torgb(x, ws[:, 2 * block + 3], rgb)
        return rgb


class NaiveTraining:
    """The training loop of the first implementation; `step` runs one step.

    Args:
        config: only `batch`, `lr` and `layers` are used. Layer selection runs its whole batch at once.
        off_by_one: select layers by the table of the first implementation, in which row 1 of W+ stands for the first
            ToRGB layer and each later row for the convolution before the one it feeds.
    """

    def __init__(
        self,
        ours: StyleGAN2,
        guides: Sequence[ClipGuide],
        shift: TextShift,
        config: AdaptConfig,
        off_by_one: bool = False,
    ) -> None:
        self.ours, self.guides, self.shift, self.config = ours, guides, shift, config
        self.frozen = NaiveGenerator(ours).requires_grad_(False)
        self.trained = NaiveGenerator(ours)
        self.directions = [shift.direction(guide) for guide in guides]
        first, *later = self.trained.convs
        self.rows: list[nn.Module] = [first, *self.trained.rgbs[:1], *later] if off_by_one else [first, *later]
        self.optimizer = torch.optim.Adam(
            [self.trained.const, *(p for layer in self.rows for p in layer.parameters())],
            lr=config.lr * 0.8,
            betas=(0.0, 0.99**0.8),
        )

    def step(self, mark: Mark = lambda _: None) -> float:
        """Run one step and return its loss. `mark` is called with the name of each part when it ends."""
        layers, config = self.config.layers, self.config
        chosen: Sequence[nn.Module] = self.rows
        if layers.mode == "adaptive":
            self.trained.requires_grad_(True)
            chosen = self.choose(layers)
        self.trained.requires_grad_(False)
        self.trained.const.requires_grad_(layers.mode == "all")
        for layer in chosen:
            layer.requires_grad_(True)
        mark("selection")
        with torch.no_grad():
            ws = self.draw(config.batch)
            before = self.frozen(ws)
        mark("teacher")
        after = self.trained(ws)
        mark("student")
        loss = torch.zeros((), device=after.device)
        for guide, direction in zip(self.guides, self.directions, strict=True):
            edit = guide.encode_images(after) - guide.encode_images(before)
            loss = loss + (1 - F.cosine_similarity(edit, direction, eps=1e-2)).mean()
        mark("guide")
        self.optimizer.zero_grad()
        loss.backward()
        mark("backward")
        self.optimizer.step()
        mark("optimiser")
        return loss.item()

    def choose(self, layers: LayerChoice) -> Sequence[nn.Module]:
        """Return the layers whose rows of W+ move most in gradient descent towards the target text."""
        start = self.draw(layers.batch)
        ws = start.clone().requires_grad_()
        descent = torch.optim.SGD([ws], lr=layers.rate)
        for _ in range(layers.steps):
            images = self.trained(ws)
            loss = torch.zeros((), device=ws.device)
            for guide in self.guides:
                loss = loss + (1 - guide.encode_images(images) @ guide.encode_text([self.shift.target]).mT).mean()
            descent.zero_grad()
            loss.backward()
            descent.step()
        moved = (ws - start).detach().abs().mean(dim=(0, 2))[: len(self.rows)]
        return [self.rows[row] for row in moved.topk(min(layers.count, len(moved))).indices.tolist()]

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        return self.ours.map(torch.randn(count, self.ours.z_dim, device=self.ours.w_avg.device))


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone())


def _affine(w: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(w, weight / math.sqrt(weight.shape[1])) + bias
