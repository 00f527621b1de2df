"""Face recognition for the identity loss of pSp (Richardson et al., arXiv:2008.00951, section 3.2, equation 4).

The network is ArcFace's (Deng et al., arXiv:1801.07698) as InsightFace_Pytorch saves it.

Shapes: N images, D embedding, H = W pixels per side.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import BUILTIN, RawCheckpoint, read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.images import resize
from .file_kinds import describe
from .irse import Trunk, trunk_of
from .state_dict import load_weights, shape

BUILTINS = {"portraits": BUILTIN / "identity.safetensors"}


class Identity(nn.Module):
    """A frozen face recognition network, differentiable with respect to the images."""

    def __init__(self, name: str, net: nn.Module, source: str | None = None) -> None:
        """Freeze `net`, which maps [N, 3, H, W] in -1..1 to [N, D]. source: sha256 of the file."""
        super().__init__()
        self.name, self.source = name, source
        self.net = net.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Identity:
        """Stay in evaluation mode: batch statistics would make an embedding depend on its batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed aligned faces; 1 - the dot product of two embeddings is the identity loss.

        Args:
            images: [N, 3, H, H] in -1..1, of any size.

        Returns:
            Unit vectors [N, D].
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.numel():
            raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, 3, H, H]; see images.square.")
        return F.normalize(self.net(images), dim=-1)


class SmallFace(nn.Module):
    """The network of the built-in world: four stages of two 3x3 convolutions with k * width channels in stage k.

    Average pooling gives smoother gradients than max pooling.

    Args:
        width: a multiple of 8.
        dim: D.
    """

    SIDE = 64

    def __init__(self, width: int = 24, dim: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in (1, 2, 3, 4):
            out = stage * width
            for inputs, groups in ((channels, 1), (out, stage)):
                layers += [nn.Conv2d(inputs, out, 3, padding=1, groups=groups), nn.GroupNorm(8, out), nn.SiLU()]
            layers.append(nn.AvgPool2d(2))
            channels = out
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(channels * (self.SIDE // 16) ** 2, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, W] in -1..1 to [N, D], not normalized. Other sizes than 64 pixels are resized by area."""
        if images.shape[-2:] != (self.SIDE, self.SIDE):
            images = F.interpolate(images, size=(self.SIDE, self.SIDE), mode="area")
        return self.head(self.trunk(images).flatten(1))


class ArcFace(nn.Module):
    """IR-SE50, or a smaller or larger network of its kind, with the face crop of pSp.

    The network expects tight faces of 112 pixels; FFHQ's alignment has wider margins. pSp resizes images to 256 pixels,
    keeps rows 35..223 and columns 32..220, and averages down to 112. Other sizes are proportional.

    Args:
        side: input size of the trunk in pixels.
        dim: D.
        affine: whether the last normalization has weights.
    """

    def __init__(self, trunk: Trunk, side: int, dim: int, affine: bool = True) -> None:
        super().__init__()
        self.side, self.framed = side, round(side * 256 / 112)
        channels = trunk.widths[-1]
        self.trunk = trunk
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(channels * (side // trunk.reduction) ** 2, dim),
            nn.BatchNorm1d(dim, affine=affine),
        )

    def prepare(self, images: Tensor) -> Tensor:
        """Crop and resize [N, 3, H, H] to [N, 3, side, side]."""
        # Average pooling upwards would repeat pixels.
        larger = images.shape[-1] > self.framed
        framed = F.adaptive_avg_pool2d(images, self.framed) if larger else resize(images, self.framed)
        top, bottom, left, right = (round(edge * self.framed / 256) for edge in (35, 223, 32, 220))
        return F.adaptive_avg_pool2d(framed[:, :, top:bottom, left:right], self.side)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, H] in -1..1 to [N, D], not normalized."""
        return self.output_layer(self.trunk(self.prepare(images))[-1])


def load_identity(name_or_path: str | Path, device: torch.device | str = "cpu") -> Identity:
    """Load a frozen face recognition network.

    Args:
        name_or_path: "portraits", the network of the built-in world; or a file: model_ir_se50.pth, which pSp and its
            descendants use, others of InsightFace_Pytorch's layout, or safetensors of either kind.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    path = Path(BUILTINS.get(str(name_or_path), name_or_path))
    raw = read_checkpoint(path)
    try:
        net = _small_face(raw) if raw.kind == "nada_identity" else _arc_face(raw)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    name = str(name_or_path) if str(name_or_path) in BUILTINS else path.stem
    return Identity(name, net, raw.sha256).to(device)


def _small_face(raw: RawCheckpoint) -> SmallFace:
    width = shape(raw.tensors, "trunk.0.weight", 4)[0]
    dim = shape(raw.tensors, "head.weight", 2)[0]
    if width % 8:
        raise CheckpointError(f"trunk.0.weight has {width} channels, expected a multiple of 8; the file is damaged.")
    with torch.device("meta"):
        net = SmallFace(width, dim)
    load_weights(net, raw.tensors)
    return net


def _arc_face(raw: RawCheckpoint) -> ArcFace:
    if "input_layer.0.weight" not in raw.tensors or "output_layer.3.weight" not in raw.tensors:
        raise UnsupportedCheckpointError(
            f"not a face recogniser; it looks like {describe(raw, 'as an identity network')}. Expected "
            "model_ir_se50.pth of InsightFace_Pytorch, which pSp, e4e and ReStyle link to (trained on data for "
            "non-commercial research); ComfyUI: models/stylegan_nada/identity."
        )
    with torch.device("meta"):
        trunk = trunk_of(raw.tensors)
        dim, inputs = shape(raw.tensors, "output_layer.3.weight", 2)
        last = math.isqrt(inputs // trunk.widths[-1])  # H of the last map
        if trunk.channels != 3 or trunk.widths[-1] * last**2 != inputs:
            raise CheckpointError(
                f"output_layer.3.weight reads {inputs} numbers, expected a square map of {trunk.widths[-1]} channels, "
                f"and the first layer {trunk.channels} channels, expected 3. The file is damaged or unsupported."
            )
        net = ArcFace(trunk, trunk.reduction * last, dim, "output_layer.4.weight" in raw.tensors)
    load_weights(
        net, {re.sub(r"^(?=input_layer\.|body\.)", "trunk.", name): value for name, value in raw.tensors.items()}
    )
    return net
