"""Residual trunks of face recognition networks and StyleGAN encoders, built from the shapes in a file.

Implements IR, the improved residual unit of ArcFace (Deng et al., arXiv:1801.07698, section 3), optionally with
squeeze-and-excitation (Hu et al., arXiv:1709.01507, section 3), and the basic unit of ResNet (He et al.,
arXiv:1512.03385, section 3.3). Parameters have the names of InsightFace_Pytorch and torchvision. A stage starts at the
first unit and at every unit that changes the number of channels.

Shapes: N images, C channels, H = W pixels per side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.errors import CheckpointError
from .state_dict import shape

_MOST_UNITS = 100  # IR-152 has 50


class Sizes(NamedTuple):
    """Channels of one residual unit."""

    inputs: int
    outputs: int
    squeezed: int  # between the two layers of the squeeze-and-excitation; 0: none


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in 0..1 computed from all channel means (SE-Net, equations 2 to 4)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class Unit(nn.Module):
    """IR unit: BN-Conv-PReLU-Conv-BN, optionally SE, plus a shortcut; the second convolution has the stride."""

    def __init__(self, sizes: Sizes, stride: int) -> None:
        super().__init__()
        inputs, outputs, squeezed = sizes
        layers: list[nn.Module] = [
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if squeezed:
            layers.append(SqueezeExcite(outputs, squeezed))
        self.res_layer = nn.Sequential(*layers)
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inputs == outputs else _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class BasicUnit(nn.Module):
    """ResNet unit: Conv-BN-ReLU-Conv-BN plus a shortcut, then ReLU; the first convolution has the stride."""

    def __init__(self, sizes: Sizes, stride: int) -> None:
        super().__init__()
        inputs, outputs, _ = sizes
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None if inputs == outputs else _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class Trunk(nn.Module):
    """Residual trunk. IR: the first unit of every stage halves the resolution; ResNet: the stem does, not stage one."""

    def __init__(self, channels: int, units: Sequence[Sizes], resnet: bool = False) -> None:
        super().__init__()
        self.channels, self.starts = channels, stage_starts(units)
        self.reduction = 2 ** len(self.starts)
        self.widths = tuple(units[start].outputs for start in self.starts)  # C after each stage
        first = units[0].inputs
        if resnet:
            self.conv1 = nn.Conv2d(channels, first, 7, 2, padding=3, bias=False)
            self.bn1, self.relu = nn.BatchNorm2d(first), nn.PReLU(first)
        else:
            conv = nn.Conv2d(channels, first, 3, padding=1, bias=False)
            self.input_layer = nn.Sequential(conv, nn.BatchNorm2d(first), nn.PReLU(first))
        self.layers = ("conv1", "bn1", "relu", "body") if resnet else ("input_layer", "body")
        unit, strided = (BasicUnit, self.starts[1:]) if resnet else (Unit, self.starts)
        self.body = nn.Sequential(*(unit(sizes, 2 if index in strided else 1) for index, sizes in enumerate(units)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [N, channels, H, W] to the outputs of all stages: [N, C, H / 2, W / 2], [N, C, H / 4, W / 4], ..."""
        x, maps = images, []
        for name in self.layers[:-1]:
            x = self.get_submodule(name)(x)
        for index, unit in enumerate(self.body):
            if index in self.starts[1:]:
                maps.append(x)
            x = unit(x)
        return [*maps, x]


def stage_starts(units: Sequence[Sizes]) -> tuple[int, ...]:
    """Return the index of the first unit of every stage."""
    return tuple(index for index, unit in enumerate(units) if not index or unit.inputs != unit.outputs)


def trunk_of(state: Mapping[str, Tensor]) -> Trunk:
    """Build the trunk that the names and shapes of a state dict describe, without its weights.

    Raises:
        CheckpointError: if there are no units, or a tensor that gives a size is missing.
    """
    count = len({name.split(".")[1] for name in state if re.fullmatch(r"body\.\d+\..+", name)})
    if not 1 <= count <= _MOST_UNITS:
        raise CheckpointError(
            f"there are {count} units body.0, body.1, ..., expected 1 to {_MOST_UNITS}; the file is incomplete, or "
            "another network."
        )
    resnet = "input_layer.0.weight" not in state
    channels = shape(state, "conv1.weight" if resnet else "input_layer.0.weight", 4)[1]
    return Trunk(channels, [_unit_sizes(state, index, resnet) for index in range(count)], resnet)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _unit_sizes(state: Mapping[str, Tensor], index: int, resnet: bool) -> Sizes:
    outputs, inputs, *_ = shape(state, f"body.{index}.{'conv1' if resnet else 'res_layer.1'}.weight", 4)
    gate = f"body.{index}.res_layer.5.fc1.weight"
    return Sizes(inputs, outputs, shape(state, gate, 4)[0] if gate in state else 0)
