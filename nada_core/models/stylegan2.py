"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): the generator with skip connections of section 4.1, config F.

Modules have NVIDIA's names: `mapping.fc0.weight`, `synthesis.b8.conv0.affine.bias`.

Shapes: N batch, L rows of ws (num_ws), C w_dim, I and O input and output channels, R resolution of a layer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..runtime.precision import no_autocast
from .generator import Generator, Layer, Noise, Rng
from .ops import bias_act, styled_conv, upsample


class StyleGAN2(Generator):
    """StyleGAN2 of 16 to 1024 pixels, conditional or not.

    Args:
        channel_base: channels at resolution R are min(channel_max, channel_base / R).
        channel_max: see channel_base.
        widths: channels at 4, 8, ... `resolution`; overrides channel_base and channel_max.
        clamp: limit of activations and RGB; some published networks were trained with one.
        mapping_lr: learning rate multiplier of the mapping network.
        rng: source of the initial weights; None uses the global generator.
    """

    family: ClassVar[str] = "stylegan2"
    mapping: "Mapping"
    synthesis: "Synthesis"

    def __init__(
        self,
        resolution: int,
        z_dim: int = 512,
        w_dim: int = 512,
        c_dim: int = 0,
        mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        widths: Sequence[int] | None = None,
        clamp: float | None = None,
        mapping_lr: float = 0.01,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(resolution, int) or resolution not in (16, 32, 64, 128, 256, 512, 1024):
            raise ValueError(f"Got resolution {resolution}, expected a power of two in 16..1024.")
        if not 1 <= mapping_layers <= 8:
            raise ValueError(f"Got mapping_layers {mapping_layers}, expected 1..8.")
        sizes = [2**power for power in range(2, resolution.bit_length())]
        if widths is None:
            widths = [min(channel_max, channel_base // size) for size in sizes]
        if len(widths) != len(sizes) or min(widths) < 1:
            raise ValueError(f"Got widths {list(widths)}, expected {len(sizes)} positive numbers, one per {sizes}.")
        if min(z_dim, w_dim) < 1 or c_dim < 0:
            raise ValueError(f"Got z_dim, w_dim, c_dim {z_dim}, {w_dim}, {c_dim}, expected at least 1, 1, 0.")
        if not _positive(mapping_lr) or not (clamp is None or _positive(clamp)):
            raise ValueError(
                f"Got mapping_lr {mapping_lr!r} and clamp {clamp!r}, expected positive numbers; clamp may be None."
            )
        self.resolution, self.z_dim, self.w_dim, self.c_dim = resolution, z_dim, w_dim, c_dim
        self.num_ws = 2 * len(sizes)
        self.widths, self.clamp = tuple(widths), clamp
        self.mapping = Mapping(z_dim, w_dim, c_dim, mapping_layers, mapping_lr)
        self.synthesis = Synthesis(sizes, widths, w_dim, clamp)
        self.reset(rng)

    def reset(self, rng: torch.Generator | None = None) -> None:
        """Initialize: weights, constant and noise maps standard normal, style biases 1, everything else 0."""
        for module in self.modules():
            if isinstance(module, Linear | Convolution | ToRGB | Block | Mapping):
                module.reset(rng)

    def synthesize(self, ws: Tensor, noise: Noise = "const", rng: Rng = None) -> Tensor:
        self._check_ws(ws)
        const = [conv.noise_const for block in self.synthesis.blocks() for _, conv in block.convolutions()]
        maps = self._noise_maps(noise, len(ws), rng, const)
        half = torch.get_autocast_dtype(ws.device.type) if torch.is_autocast_enabled(ws.device.type) else None
        with no_autocast(ws.device):  # `Synthesis` chooses the type per block
            return self.synthesis(ws, maps, half, self.recompute).float()

    def layers(self) -> tuple[Layer, ...]:
        layers: list[Layer] = []
        row = 0
        for block in self.synthesis.blocks():
            name = f"b{block.size}"
            if block.size == 4:
                layers.append(Layer(f"{name}.const", 4, None, "const", (f"synthesis.{name}.const",)))
            for part, conv in block.convolutions():
                names = _parameter_names(f"synthesis.{name}.{part}", conv)
                layers.append(Layer(f"{name}.{part}", block.size, row, "conv", names))
                row += 1
            # ToRGB shares its row with the next convolution; the last row belongs to the last ToRGB alone.
            names = _parameter_names(f"synthesis.{name}.torgb", block.torgb)
            layers.append(Layer(f"{name}.torgb", block.size, row, "rgb", names))
        return tuple(layers)

    def spec(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "resolution": self.resolution,
            "z_dim": self.z_dim,
            "w_dim": self.w_dim,
            "c_dim": self.c_dim,
            "mapping_layers": self.mapping.depth,
            "widths": list(self.widths),
            "clamp": self.clamp,
            "mapping_lr": self.mapping.lr,
        }


class Linear(nn.Module):
    """Fully connected layer with the equalized learning rate of Progressive GAN (arXiv 1710.10196, section 4.1)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.initial_bias, self.lr = bias, lr

    def reset(self, rng: torch.Generator | None) -> None:
        _fill(self.weight, rng, 1.0 / self.lr)
        nn.init.constant_(self.bias, self.initial_bias / self.lr)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x) + self.bias * self.lr

    def project(self, x: Tensor) -> Tensor:
        """Apply the weight without the bias."""
        return F.linear(x, self.weight * (self.lr / math.sqrt(self.weight.shape[1])))


class Mapping(nn.Module):
    """Mapping network from z, and a label if conditional, to w (StyleGAN, arXiv 1812.04948, section 2)."""

    w_avg: Tensor  # [C]

    def __init__(self, z_dim: int, w_dim: int, c_dim: int, depth: int, lr: float) -> None:
        super().__init__()
        self.depth, self.lr = depth, lr
        self.embed = Linear(c_dim, w_dim) if c_dim else None
        inputs = z_dim + (w_dim if c_dim else 0)
        for index in range(depth):
            self.add_module(f"fc{index}", Linear(w_dim if index else inputs, w_dim, lr=lr))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def reset(self, rng: torch.Generator | None) -> None:
        nn.init.zeros_(self.w_avg)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = _normalize(z)
        if self.embed is not None and label is not None:
            x = torch.cat([x, _normalize(self.embed(label))], dim=1)
        for index in range(self.depth):
            layer = self.get_submodule(f"fc{index}")
            assert isinstance(layer, Linear)
            x = bias_act(layer.project(x), layer.bias * layer.lr)
        return x


class Convolution(nn.Module):
    """Modulated 3x3 convolution, which doubles the resolution if `up`, then noise, bias and leaky ReLU."""

    noise_const: Tensor  # [R, R]

    def __init__(self, inputs: int, outputs: int, w_dim: int, size: int, up: bool, clamp: float | None) -> None:
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.noise_strength = nn.Parameter(torch.empty(()))
        self.register_buffer("noise_const", torch.empty(size, size))

    def reset(self, rng: torch.Generator | None) -> None:
        _fill(self.weight, rng)
        _fill(self.noise_const, rng)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.noise_strength)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:  # x [N, I, H, W], w [N, C]
        # No equalized learning rate: demodulation cancels any constant factor of the weights.
        noise = None if noise is None else noise * self.noise_strength
        return styled_conv(x, self.weight, self.affine(w), noise, self.bias, up=self.up, clamp=self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB, without demodulation, noise or activation."""

    def __init__(self, inputs: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.empty(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(3))

    def reset(self, rng: torch.Generator | None) -> None:
        _fill(self.weight, rng)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * (1.0 / math.sqrt(self.weight.shape[1]))
        # With three output channels, modulated weights per sample need less memory than a modulated input.
        weight = self.weight[:, :, 0, 0] * style[:, None]  # [N, 3, I]
        rgb = (weight.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:]).to(w.dtype) + self.bias[:, None, None]
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class Block(nn.Module):
    """One resolution: two convolutions, or a learned constant and one convolution at 4 pixels, then ToRGB."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, size: int, clamp: float | None) -> None:
        super().__init__()
        self.size = size
        if size == 4:
            self.const = nn.Parameter(torch.empty(outputs, 4, 4))
        else:
            self.conv0 = Convolution(inputs, outputs, w_dim, size, True, clamp)
        self.conv1 = Convolution(outputs, outputs, w_dim, size, False, clamp)
        self.torgb = ToRGB(outputs, w_dim, clamp)

    def reset(self, rng: torch.Generator | None) -> None:
        if self.size == 4:
            _fill(self.const, rng)

    def convolutions(self) -> Iterator[tuple[str, Convolution]]:
        if self.size > 4:
            yield "conv0", self.conv0
        yield "conv1", self.conv1

    def forward(self, x: Tensor, rgb: Tensor, ws: Tensor, noise: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """x: [N, I, H, W], rgb: [N, 3, H, W] of lower blocks, ws: [N, rows, C], noise: one map per convolution."""
        for row, (_, conv) in enumerate(self.convolutions()):
            x = conv(x, ws[:, row], noise[row])
        own = self.torgb(x, ws[:, -1])
        return x, own if self.size == 4 else upsample(rgb) + own


class Synthesis(nn.Module):
    """Blocks of doubling resolution; each adds its RGB to the upsampled sum of the lower ones (section 4.1)."""

    def __init__(self, sizes: Sequence[int], widths: Sequence[int], w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        for size, inputs, outputs in zip(sizes, [0, *widths], widths, strict=False):
            self.add_module(f"b{size}", Block(inputs, outputs, w_dim, size, clamp))

    def blocks(self) -> Iterator[Block]:
        for size in self.sizes:
            block = self.get_submodule(f"b{size}")
            assert isinstance(block, Block)
            yield block

    def forward(
        self, ws: Tensor, noise: Sequence[Tensor | None], half: torch.dtype | None = None, recompute: int = 0
    ) -> Tensor:  # ws [N, L, C]
        """half: type of all blocks but the last, where rounding would be visible. recompute: see Generator."""
        x = self.get_submodule("b4").get_parameter("const").expand(len(ws), -1, -1, -1)
        rgb = ws.new_zeros(())
        row = 0
        for block in self.blocks():
            count = 1 if block.size == 4 else 2
            x = x.to(ws.dtype if half is None or block.size == self.sizes[-1] else half)
            inputs = x, rgb, ws[:, row : row + count + 1], noise[row : row + count]
            if recompute and block.size >= recompute and torch.is_grad_enabled():
                x, rgb = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x, rgb = block(*inputs)
            row += count
        return rgb


def _parameter_names(prefix: str, module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name, _ in module.named_parameters())


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _normalize(x: Tensor) -> Tensor:
    """Scale every row to unit second moment."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def _fill(tensor: Tensor, rng: torch.Generator | None, scale: float = 1.0) -> None:
    if tensor.is_meta:  # normal_ on meta tensors does nothing, but takes a second
        return
    with torch.no_grad():
        tensor.normal_(generator=rng).mul_(scale)
