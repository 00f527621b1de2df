"""The residual trunks under face recognisers and StyleGAN encoders, built from the shapes in a file.

IR, the improved residual unit of ArcFace (Deng et al., arXiv:1801.07698, section 3), alone or with the squeeze and
excitation of SE-Net (Hu et al., arXiv:1709.01507, section 3); and the basic units of ResNet (He et al.,
arXiv:1512.03385, section 3.3). Parameters have the names of InsightFace_Pytorch's and torchvision's files. Sizes are
those of the tensors: a stage begins with the first unit and with every unit that changes the number of channels.

Letters: N pictures, C channels, H = W pixels a side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.errors import CheckpointError


class Sizes(NamedTuple):
    """One unit of a trunk."""

    inputs: int  # C before
    outputs: int  # C after
    squeezed: int  # C between the two layers of the squeeze and excitation; 0: there is none


class SqueezeExcite(nn.Module):
    """Every channel times a gate, 0..1, computed from the means of all channels (SE-Net, equations 2 to 4)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class Unit(nn.Module):
    """BN-Conv-PReLU-Conv-BN, with or without SE, beside a shortcut; the second convolution has the stride."""

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
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)  # every stride-th pixel
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class BasicUnit(nn.Module):
    """Conv-BN-ReLU-Conv-BN beside a shortcut, ReLU on the sum; the first convolution has the stride."""

    def __init__(self, sizes: Sizes, stride: int) -> None:
        super().__init__()
        inputs, outputs, _ = sizes
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + kept)


class Trunk(nn.Module):
    """Pictures to maps, halved at the first unit of each stage: `input_layer`, then `body`."""

    LAYERS = ("input_layer", "body")

    def __init__(self, channels: int, units: Sequence[Sizes]) -> None:
        super().__init__()
        self.channels, self.starts = channels, stage_starts(units)
        self.reduction = 2 ** len(self.starts)
        self.widths = tuple(units[start].outputs for start in self.starts)
        first = units[0].inputs
        self.input_layer = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        self.body = nn.Sequential(*(Unit(sizes, 2 if index in self.starts else 1) for index, sizes in enumerate(units)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, channels, H, W] -> the last map of every stage: [N, C, H / 2, W / 2], [N, C, H / 4, W / 4] and so on."""
        return _stages(self.body, self.starts, self.input_layer(images))


class ResNetTrunk(nn.Module):
    """The same of ResNet's basic units, for a picture halved before the first stage, which keeps the side."""

    LAYERS = ("conv1", "bn1", "relu", "body")

    def __init__(self, channels: int, units: Sequence[Sizes]) -> None:
        super().__init__()
        self.channels, self.starts = channels, stage_starts(units)
        self.reduction = 2 ** len(self.starts)
        self.widths = tuple(units[start].outputs for start in self.starts)
        first = units[0].inputs
        self.conv1 = nn.Conv2d(channels, first, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.PReLU(first)
        self.body = nn.Sequential(
            *(BasicUnit(sizes, 2 if index in self.starts[1:] else 1) for index, sizes in enumerate(units))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, channels, H, W] -> the last map of every stage: [N, C, H / 2, W / 2], [N, C, H / 4, W / 4] and so on."""
        return _stages(self.body, self.starts, self.relu(self.bn1(self.conv1(images))))


def stage_starts(units: Sequence[Sizes]) -> tuple[int, ...]:
    """The index of every stage's first unit."""
    return tuple(index for index, unit in enumerate(units) if not index or unit.inputs != unit.outputs)


def trunk_of(state: Mapping[str, Tensor]) -> Trunk | ResNetTrunk:
    """The trunk that a state dict's names and shapes describe, without its weights. Raises CheckpointError."""
    count = len({name.split(".")[1] for name in state if re.fullmatch(r"body\.\d+\..+", name)})
    if not count:
        raise CheckpointError("there are no units body.0, body.1, ...; the file is incomplete, or another network.")
    if "input_layer.0.weight" in state:
        return Trunk(shape(state, "input_layer.0.weight", 4)[1], [_ir_unit(state, index) for index in range(count)])
    return ResNetTrunk(shape(state, "conv1.weight", 4)[1], [_basic_unit(state, index) for index in range(count)])


def shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there. Raises CheckpointError."""
    if name not in state or state[name].ndim != axes or not state[name].numel():
        got = f"of shape {list(state[name].shape)}" if name in state else "missing"
        raise CheckpointError(
            f"{name} is {got}, expected a tensor with {axes} axes. The file is incomplete, or a "
            "variant of the network that is not supported; download it again."
        )
    return tuple(state[name].shape)


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module built on the meta device its weights, which must fit exactly: float32, frozen, in evaluation mode.

    Raises CheckpointError.
    """
    # Copies of our own: a file's tensors may be half precision, share storage, or lie in the mapped file.
    ready = {
        name: value.detach().to(
            torch.float32 if value.is_floating_point() else value.dtype,
            memory_format=torch.contiguous_format,
            copy=True,
        )
        for name, value in state.items()
    }
    try:
        missing, unexpected = module.load_state_dict(ready, strict=False, assign=True)
    except RuntimeError as error:  # the message lists every tensor of another shape, one a line
        wrong = str(error).splitlines()
        raise CheckpointError(
            f"{len(wrong) - 1} tensors have another shape than the rest of the file tells: "
            f"{wrong[1].strip()} It is damaged, or a variant that is not supported."
        ) from error
    for words, names in (("missing are", missing), ("unexpected are", unexpected)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise CheckpointError(
                f"{words} {', '.join(names[:4])}{more}. The file is incomplete, or a variant of the "
                "network that is not supported; download it again."
            )
    module.eval().requires_grad_(False)


def _ir_unit(state: Mapping[str, Tensor], index: int) -> Sizes:
    outputs, inputs, *_ = shape(state, f"body.{index}.res_layer.1.weight", 4)
    gate = f"body.{index}.res_layer.5.fc1.weight"
    return Sizes(inputs, outputs, shape(state, gate, 4)[0] if gate in state else 0)


def _basic_unit(state: Mapping[str, Tensor], index: int) -> Sizes:
    outputs, inputs, *_ = shape(state, f"body.{index}.conv1.weight", 4)
    return Sizes(inputs, outputs, 0)


def _stages(body: nn.Sequential, starts: Sequence[int], x: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    for index, unit in enumerate(body):
        if index in starts[1:]:
            maps.append(x)
        x = unit(x)
    return [*maps, x]
