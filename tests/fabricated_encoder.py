"""Small files in the layouts of model_ir_se50.pth, pSp, e4e and ReStyle, for tests only.

Names and shapes are written out here, independently of the code under test.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import generator
from torch import Tensor

from nada_core.io.metadata import write_torch
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.models.stylegan2_layouts import to_rosinality

WIDTHS, UNITS, SQUEEZED, FIRST = (4, 6, 8, 10), (2, 2, 3, 1), 2, 4
ROWS, W_DIM, RESOLUTION = 8, 6, 32
TYPES = {
    "psp": "GradualStyleEncoder",
    "e4e": "Encoder4Editing",
    "restyle-psp": "BackboneEncoder",
    "restyle-e4e": "ProgressiveBackboneEncoder",
}


class Draw:
    """A sequence of random tensors."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        fan = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=self.rng) / fan**0.5

    def norm(self, name: str, channels: int) -> dict[str, Tensor]:
        """A batch normalization with random statistics and parameters."""

        def around(center: float) -> Tensor:
            return center + 0.3 * torch.rand(channels, generator=self.rng)

        return {
            f"{name}.weight": around(0.8),
            f"{name}.bias": around(-0.2),
            f"{name}.running_mean": around(-0.2),
            f"{name}.running_var": around(0.7),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }


def body_units() -> Iterator[tuple[str, int, int]]:
    """Yield the name, the input channels and the output channels of every residual unit."""
    widths = [width for width, units in zip(WIDTHS, UNITS, strict=True) for _ in range(units)]
    for index, (inputs, width) in enumerate(zip([FIRST, *widths], widths, strict=False)):
        yield f"body.{index}", inputs, width


def irse(draw: Draw, channels: int = 3, squeezed: int = SQUEEZED) -> dict[str, Tensor]:
    """The tensors of input_layer and body."""
    state = {
        "input_layer.0.weight": draw(FIRST, channels, 3, 3),
        **draw.norm("input_layer.1", FIRST),
        "input_layer.2.weight": 0.25 + 0.1 * draw(FIRST),
    }
    for unit, inputs, width in body_units():
        state |= {
            **draw.norm(f"{unit}.res_layer.0", inputs),
            f"{unit}.res_layer.1.weight": draw(width, inputs, 3, 3),
            f"{unit}.res_layer.2.weight": 0.25 + 0.1 * draw(width),
            f"{unit}.res_layer.3.weight": draw(width, width, 3, 3),
            **draw.norm(f"{unit}.res_layer.4", width),
        }
        if squeezed:
            state |= {
                f"{unit}.res_layer.5.fc1.weight": draw(squeezed, width, 1, 1),
                f"{unit}.res_layer.5.fc2.weight": draw(width, squeezed, 1, 1),
            }
        if inputs != width:
            state |= {
                f"{unit}.shortcut_layer.0.weight": draw(width, inputs, 1, 1),
                **draw.norm(f"{unit}.shortcut_layer.1", width),
            }
    return state


def resnet(draw: Draw, channels: int) -> dict[str, Tensor]:
    """The tensors of conv1, bn1, relu and body of the ResNet variants."""
    state = {"conv1.weight": draw(FIRST, channels, 7, 7), **draw.norm("bn1", FIRST), "relu.weight": 0.25 + draw(FIRST)}
    for unit, inputs, width in body_units():
        state |= {
            f"{unit}.conv1.weight": draw(width, inputs, 3, 3),
            **draw.norm(f"{unit}.bn1", width),
            f"{unit}.conv2.weight": draw(width, width, 3, 3),
            **draw.norm(f"{unit}.bn2", width),
        }
        if inputs != width:
            state |= {
                f"{unit}.downsample.0.weight": draw(width, inputs, 1, 1),
                **draw.norm(f"{unit}.downsample.1", width),
            }
    return state


def face_state(seed: int = 0, last: int = 2, dim: int = 5, squeezed: int = SQUEEZED) -> dict[str, Tensor]:
    """A small model_ir_se50.pth; the last feature map of its trunk is `last` pixels wide."""
    draw = Draw(seed)
    return {
        **irse(draw, squeezed=squeezed),
        **draw.norm("output_layer.0", WIDTHS[-1]),
        "output_layer.3.weight": draw(dim, WIDTHS[-1] * last**2),
        "output_layer.3.bias": draw(dim),
        **draw.norm("output_layer.4", dim),
    }


def decoder(**changes: Any) -> StyleGAN2:
    """The generator of the fabricated files."""
    return generator(**{"resolution": RESOLUTION, "z_dim": W_DIM, "w_dim": W_DIM, "widths": [8, 7, 4, 4]} | changes)


def encoder_state(kind: str, seed: int = 0, trunk: str = "irse") -> dict[str, Tensor]:
    """The tensors below `encoder.`; the heads halve maps of 2, 4 and 8 pixels, or all the last one, of 2."""
    draw = Draw(seed)
    channels = 6 if kind.startswith("restyle") else 3
    state = irse(draw, channels) if trunk == "irse" else resnet(draw, channels)
    pyramid = kind in ("psp", "e4e")
    for row in range(ROWS):
        depth = 1 + (row >= 3) + (row >= 7) if pyramid else 1
        for index in range(depth):
            conv = f"styles.{row}.convs.{2 * index}"
            inputs = W_DIM if index else WIDTHS[-1]
            state |= {f"{conv}.weight": draw(W_DIM, inputs, 3, 3), f"{conv}.bias": 0.1 * draw(W_DIM)}
        linear = f"styles.{row}.linear"
        state |= {f"{linear}.weight": 2.4 * draw(W_DIM, W_DIM), f"{linear}.bias": 0.1 * draw(W_DIM)}
    if pyramid:
        for number, width in ((1, WIDTHS[-2]), (2, WIDTHS[-3])):
            state |= {
                f"latlayer{number}.weight": draw(WIDTHS[-1], width, 1, 1),
                f"latlayer{number}.bias": 0.1 * draw(WIDTHS[-1]),
            }
    return state


def content(kind: str, seed: int = 0, trunk: str = "irse", namespace: bool = False, **options: Any) -> dict[str, Any]:
    """The content of a checkpoint of `kind`. options: further entries of opts."""
    stylegan = decoder()
    parts = {"encoder": encoder_state(kind, seed, trunk), "decoder": to_rosinality(stylegan)}
    state = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    opts = {
        "encoder_type": ("ResNet" if trunk == "resnet" else "") + TYPES[kind],
        "dataset_type": "ffhq_encode",
        "checkpoint_path": None,
        "start_from_latent_avg": True,
    } | options
    return {
        "state_dict": state,
        "opts": argparse.Namespace(**opts) if namespace else opts,
        "latent_avg": stylegan.w_avg.repeat(ROWS, 1),
    }


def write(path: Path, kind: str, **settings: Any) -> Path:
    """Write `content(kind, **settings)` to a file."""
    write_torch(path, content(kind, **settings))
    return path
