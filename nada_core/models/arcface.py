"""Who is in the picture: networks that turn a face into a unit vector, for the identity loss and for measuring.

The identity loss is that of pSp (Richardson et al., arXiv:2008.00951, section 3.2, equation 4), with the network of
ArcFace (Deng et al., arXiv:1801.07698) as InsightFace_Pytorch saves it.

Letters: N pictures, C channels, D size of a face's vector, H = W pixels a side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import BUILTIN, RawCheckpoint, read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.images import resize
from .irse import Trunk, fill, shape, trunk_of

BUILTINS = {"portraits": BUILTIN / "identity.safetensors"}

# What other files can be told by, so that the refusal can say what the file is.
_SIGNATURES = (
    ("encoder_q.", "MoCo, which tells things apart but not faces"),
    ("visual.", "a CLIP model; load it as a guide"),
    ("text_model.", "a CLIP model; load it as a guide"),
    ("state_dict.encoder.", "an encoder (pSp, e4e, ReStyle); load it with load_encoder"),
    ("conv1.conv.modulation.", "a generator; load it with load_generator"),
    ("synthesis.", "a generator; load it with load_generator"),
    ("layer4.", "a ResNet for pictures of all kinds"),
    ("body.", "a trunk without its output_layer, from which an encoder's training starts"),
)


class Identity(nn.Module):
    """A frozen face recogniser. Differentiable with respect to the pictures; the weights never receive gradients."""

    def __init__(self, name: str, net: nn.Module, source: str | None = None) -> None:
        """net: [N, 3, H, W] in -1..1 -> [N, D]; frozen here. source: sha256 of the file."""
        super().__init__()
        self.name, self.source = name, source
        self.net = net.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Identity:
        """It stays in evaluation mode whatever it is asked: a face must not depend on the others in the batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, H] in -1..1, of any side -> unit vectors [N, D]; 1 - their dot product is the identity loss.

        Raises ValueError for anything but square pictures with three channels.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.numel():
            raise ValueError(
                f"got images of shape {list(images.shape)}, expected [N, 3, H, H] with at least one "
                "picture: aligned faces, as a generator makes them; see images.square."
            )
        return F.normalize(self.net(images), dim=-1)


class SmallFace(nn.Module):
    """A plain convolutional network for the faces of the built-in world.

    Four stages of two 3x3 convolutions, each halving the side by averaging, which leaves smoother gradients than the
    maximum; stage k has k * width channels. width: a multiple of 8. dim: D.
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
        """[N, 3, H, W] in -1..1 -> [N, D], of any length; other sides than 64 are brought to it by area."""
        if images.shape[-2:] != (self.SIDE, self.SIDE):
            images = F.interpolate(images, size=(self.SIDE, self.SIDE), mode="area")
        return self.head(self.trunk(images).flatten(1))


class ArcFace(nn.Module):
    """The IR-SE50 network, or a smaller or larger one of its kind, and the way it has faces cut out.

    It was trained on tight faces of 112 pixels; FFHQ's alignment leaves more around them. pSp brings the picture to
    256 pixels, keeps rows 35..223 and columns 32..220, and reduces that to 112. A network for another side than 112
    has all of it in proportion.
    """

    def __init__(self, trunk: Trunk, side: int, dim: int, affine: bool = True) -> None:
        """side: pixels the trunk was trained on, H. dim: D. affine: whether the last normalisation has weights."""
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
        """[N, 3, H, H] -> [N, 3, side, side]."""
        # Averaging does not enlarge: it repeats pixels, and the network knows no such steps.
        larger = images.shape[-1] > self.framed
        framed = F.adaptive_avg_pool2d(images, self.framed) if larger else resize(images, self.framed)
        top, bottom, left, right = (round(edge * self.framed / 256) for edge in (35, 223, 32, 220))
        return F.adaptive_avg_pool2d(framed[:, :, top:bottom, left:right], self.side)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, H] in -1..1 -> [N, D], of any length."""
        return self.output_layer(self.trunk(self.prepare(images))[-1])


def load_identity(name_or_path: str | Path, device: torch.device | str = "cpu") -> Identity:
    """A face recogniser by name or from a file: frozen, in evaluation mode, on `device`.

    "portraits" is the built-in one, which knows the faces of the built-in generator only. Files are model_ir_se50.pth,
    which pSp and its descendants use, others of InsightFace_Pytorch's layout, and safetensors of either kind. Raises
    CheckpointError.
    """
    path = Path(BUILTINS.get(str(name_or_path), name_or_path))
    raw = read_checkpoint(path)
    try:
        net = _small_face(raw) if raw.hints.get("kind") == "nada_identity" else _arc_face(raw)
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
    fill(net, raw.tensors)
    return net


def _arc_face(raw: RawCheckpoint) -> ArcFace:
    if "input_layer.0.weight" not in raw.tensors or "output_layer.3.weight" not in raw.tensors:
        raise UnsupportedCheckpointError(
            f"not a face recogniser; it looks like {_guess(raw.tensors)}. Expected model_ir_se50.pth, the network of "
            "InsightFace_Pytorch that pSp, e4e and ReStyle link to; in ComfyUI it belongs into "
            "models/stylegan_nada/identity."
        )
    with torch.device("meta"):
        trunk = trunk_of(raw.tensors)
        assert isinstance(trunk, Trunk)  # it is the one with an input_layer
        dim, inputs = shape(raw.tensors, "output_layer.3.weight", 2)
        last = math.isqrt(inputs // trunk.widths[-1])
        if trunk.channels != 3 or trunk.widths[-1] * last**2 != inputs:
            raise CheckpointError(
                f"the last layer reads {inputs} numbers, which is no square map of the trunk's "
                f"{trunk.widths[-1]} channels, or the first reads {trunk.channels} channels, not 3. "
                "The file is damaged, or a variant that is not supported."
            )
        net = ArcFace(trunk, trunk.reduction * last, dim, "output_layer.4.weight" in raw.tensors)
    fill(net, {re.sub(r"^(?=input_layer\.|body\.)", "trunk.", name): value for name, value in raw.tensors.items()})
    return net


def _guess(tensors: Mapping[str, Tensor]) -> str:
    for mark, meaning in _SIGNATURES:
        if any(mark in name for name in tensors):
            return meaning
    return f"none of the usual files; its {len(tensors)} tensors begin with {sorted(tensors)[:3]}"
