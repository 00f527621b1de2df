"""LPIPS: how different two pictures look to a network (Zhang et al., arXiv:1801.03924, section 3, equation 1).

The network is the `lpips` package's. Its calibration comes with that package; the weights of the trunk, which was
trained on ImageNet, do not, and are not fetched unless somebody asks for it.

Letters: N pictures, C channels of a layer, F features, H = W pixels a side.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.images import resize

#: The trunks, and the files that torchvision keeps their weights in.
TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}

_SMALLEST = 32  # AlexNet has halved anything less to nothing before its last layer

_SEED = 20180111


class Perceptual(nn.Module):
    """A frozen LPIPS, differentiable with respect to the pictures.

    name: the trunk and where its weights come from. relative: the trunk was never trained, so that its numbers can be
    compared with each other but mean nothing beside published ones; `label` says so.
    """

    def __init__(self, name: str, net: nn.Module, relative: bool, side: int = 256) -> None:
        """net: an lpips.LPIPS. side: larger pictures are reduced to it by area, as projectors do (StyleGAN2,
        arXiv:1912.04958, appendix D); 0: never."""
        super().__init__()
        self.name, self.relative, self.side = name, relative, side
        self.net = net.requires_grad_(False)
        self.eval()

    @property
    def label(self) -> str:
        """What to write beside its numbers."""
        return "LPIPS (untrained trunk, relative only)" if self.relative else "LPIPS"

    def train(self, mode: bool = True) -> Perceptual:
        """It stays in evaluation mode whatever it is asked: dropout has no place in a measurement."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in -1..1 -> [N, F]; the squared Euclidean distance of two rows is LPIPS.

        Equation 1 sums weighed squares of differences over channels and takes their mean over places, which is that
        distance when every feature is multiplied by the roots of its weight and of one over the number of places.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(f"got images of shape {list(images.shape)}, expected [N, 3, H, W] with at least one.")
        net: Any = self.net
        rows = []
        for layer, maps in enumerate(net.net(net.scaling_layer(self._sized(images)))):
            # As the package has it, but for the clamp: the root of nothing has no slope, and the slopes become NaN.
            unit = maps / (maps.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)  # [N, C, h, w]
            weight = net.lins[layer].model[-1].weight.clamp(min=0)  # [1, C, 1, 1]
            rows.append((unit * (weight / (maps.shape[2] * maps.shape[3])).sqrt()).flatten(1))
        return torch.cat(rows, 1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS of pairs, both [N, 3, H, W] in -1..1: [N], 0 for equal pictures, about 0.5 for unlike ones."""
        return (self.features(first) - self.features(second)).square().sum(1)

    def _sized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.side and max(height, width) > self.side:
            shrink = self.side / max(height, width)
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
            return F.interpolate(images, size=size, mode="area")
        if min(height, width) < _SMALLEST:
            enlarge = _SMALLEST / min(height, width)
            return resize(images, (round(height * enlarge), round(width * enlarge)))
        return images


def load_perceptual(
    name: str | os.PathLike[str] = "vgg", device: torch.device | str = "cpu", side: int = 256
) -> Perceptual:
    """LPIPS with the trunk "vgg", "alex" or "squeeze", or one of them followed by where its weights are.

    "vgg": torchvision's own file in torch's cache, where lpips and torchvision put it; nothing is fetched.
    "vgg:imagenet": the same, fetched by torchvision if it is not there. "vgg:PATH": a file of that layout.
    "vgg:random": an untrained trunk, the same on every machine, whose numbers are `relative`. side: see `Perceptual`.

    Raises:
        CheckpointError: for unknown names, weights that are not there, and files that are damaged or of another kind.
        ValueError: for a side of 1 to 31.
    """
    wanted = os.fspath(name)
    trunk, _, place = wanted.partition(":")
    if trunk not in TRUNKS:
        raise CheckpointError(
            f"There is no perceptual network {wanted!r}; expected {', '.join(TRUNKS)}, alone or "
            "followed by :random, :imagenet or :PATH of torchvision's weights."
        )
    if side and side < _SMALLEST:
        raise ValueError(f"got side {side}, expected 0 or at least {_SMALLEST} pixels.")
    path = Path(torch.hub.get_dir(), "checkpoints", TRUNKS[trunk]) if place in ("", "imagenet") else Path(place)
    if place == "imagenet" and not path.is_file():
        _fetch(trunk, path)
    elif not place and not path.is_file():
        raise CheckpointError(
            f"The weights of {trunk} are not in {path.parent}. Take {trunk}:imagenet to download "
            f"them, {trunk}:PATH for a copy of {path.name}, or {trunk}:random for an untrained "
            "trunk, whose numbers are relative only."
        )
    net = _build(trunk)
    state = _calibration(trunk) | (_untrained(net) if place == "random" else _trained(path, net))
    net.load_state_dict(state, assign=True)
    label = wanted if place in ("", "imagenet", "random") else f"{trunk}:{path.name}"
    return Perceptual(label, net, place == "random", side).to(device)


def _build(trunk: str) -> nn.Module:
    """The package's network without numbers in it: they would be drawn from torch's global generator."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # torchvision's, about how the package calls it
        net: nn.Module = lpips.LPIPS(net=trunk, pretrained=False, pnet_rand=True, verbose=False)
    net.scaling_layer = lpips.ScalingLayer()
    return net


def _calibration(trunk: str) -> dict[str, Tensor]:
    """What is no part of the trunk: the weights of the layers' differences, which come with the package."""
    import lpips

    state = read_checkpoint(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{trunk}.pth").tensors
    names = {f"lins.{name.removeprefix('lin')}": value for name, value in state.items()}  # the package has both
    return state | names | dict(lpips.ScalingLayer().state_dict(prefix="scaling_layer."))


def _untrained(net: nn.Module) -> dict[str, Tensor]:
    """A trunk of normal weights that keep the variance of a rectified layer (He et al., arXiv:1502.01852, eq. 10)."""
    rng = torch.Generator().manual_seed(_SEED)
    return {
        name: torch.zeros(value.shape)
        if value.ndim == 1
        else torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5
        for name, value in net.state_dict().items()
        if name.startswith("net.")
    }


def _trained(path: Path, net: nn.Module) -> dict[str, Tensor]:
    """torchvision's `features.3.weight` is the package's `net.slice1.3.weight`; its classifier is not needed."""
    known = read_checkpoint(path).tensors
    state = {}
    for name, value in net.state_dict().items():
        if not name.startswith("net."):
            continue
        theirs = f"features.{name.split('.', 2)[2]}"
        if theirs not in known or known[theirs].shape != value.shape:
            found = list(known[theirs].shape) if theirs in known else f"none among {sorted(known)[:3]}"
            raise UnsupportedCheckpointError(
                f"{path}: expected {theirs} of shape {list(value.shape)}, found {found}. "
                "Take torchvision's own weights of this very network."
            )
        state[name] = known[theirs].float()
    return state


def _fetch(trunk: str, path: Path) -> None:
    import torchvision.models as models

    weights = {"vgg": models.VGG16_Weights, "alex": models.AlexNet_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    try:
        weights[trunk].IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # whatever the network did, the person gets one kind of answer
        raise CheckpointError(
            f"The weights of {trunk} could not be downloaded ({error}). Put {path.name} into "
            f"{path.parent}, or take {trunk}:random, whose numbers are relative only."
        ) from error
