"""LPIPS, a perceptual distance of images (Zhang et al., arXiv:1801.03924, section 3, equation 1).

The network is that of the `lpips` package, which includes the calibration. The ImageNet weights of the trunk are not
included and are downloaded only on request.

Shapes: N images, C channels of a layer, F features, H and W pixels.
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

#: The trunks, and the files in which torchvision caches their weights.
TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}

_MIN_SIDE = 32  # the pooling layers of AlexNet reduce smaller images to nothing
_SEED = 20180111


class Perceptual(nn.Module):
    """A frozen LPIPS network, differentiable with respect to the images.

    Args:
        name: the trunk and the origin of its weights.
        net: an lpips.LPIPS.
        relative: the trunk is untrained; distances can be compared with each other, not with published ones.
        side: larger images are reduced to this size by area (StyleGAN2, arXiv:1912.04958, appendix D); 0: never.
    """

    def __init__(self, name: str, net: nn.Module, relative: bool, side: int = 256) -> None:
        super().__init__()
        self.name, self.relative, self.side = name, relative, side
        self.net = net.requires_grad_(False)
        self.eval()

    @property
    def label(self) -> str:
        """Name of the distance for reports."""
        return "LPIPS (untrained trunk, relative only)" if self.relative else "LPIPS"

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode: dropout would add noise to the distance."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """Map images [N, 3, H, W] in -1..1 to [N, F]; the squared Euclidean distance of two rows is LPIPS.

        Equation 1 sums weighted squares over channels and averages over positions. Scaling each feature by the square
        root of its weight over the number of positions gives the same number.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(f"Got images of shape {list(images.shape)}, expected [N, 3, H, W] with at least one.")
        net: Any = self.net
        rows = []
        for layer, maps in enumerate(net.net(net.scaling_layer(self._resized(images)))):
            # As in the package, plus a clamp: the square root has no finite gradient at zero.
            unit = maps / (maps.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)  # [N, C, h, w]
            weight = net.lins[layer].model[-1].weight.clamp(min=0)  # [1, C, 1, 1]
            rows.append((unit * (weight / (maps.shape[2] * maps.shape[3])).sqrt()).flatten(1))
        return torch.cat(rows, 1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return LPIPS of pairs, both [N, 3, H, W] in -1..1, as [N]: 0 for equal images, about 0.5 for unlike ones."""
        return (self.features(first) - self.features(second)).square().sum(1)

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.side and max(height, width) > self.side:
            scale = self.side / max(height, width)
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            return F.interpolate(images, size=size, mode="area")
        if min(height, width) < _MIN_SIDE:
            scale = _MIN_SIDE / min(height, width)
            return resize(images, (round(height * scale), round(width * scale)))
        return images


def load_perceptual(
    name: str | os.PathLike[str] = "vgg", device: torch.device | str = "cpu", side: int = 256
) -> Perceptual:
    """Load LPIPS.

    Args:
        name: a trunk, "vgg", "alex" or "squeeze", whose weights torchvision has cached; or "TRUNK:imagenet" to download
            them if needed, "TRUNK:PATH" for a file of torchvision's layout, or "TRUNK:random" for an untrained trunk,
            equal on every machine, whose distances are `relative`.
        side: see `Perceptual`; 0 or at least 32.

    Raises:
        CheckpointError: the trunk is unknown, or its weights are missing, damaged or of another network.
    """
    requested = os.fspath(name)
    trunk, _, origin = requested.partition(":")
    if trunk not in TRUNKS:
        raise CheckpointError(
            f"There is no perceptual network {requested!r}; expected {', '.join(TRUNKS)}, alone or followed by "
            ":random, :imagenet or :PATH."
        )
    if side and side < _MIN_SIDE:
        raise ValueError(f"Got side {side}, expected 0 or at least {_MIN_SIDE} pixels.")
    path = Path(torch.hub.get_dir(), "checkpoints", TRUNKS[trunk]) if origin in ("", "imagenet") else Path(origin)
    if origin == "imagenet" and not path.is_file():
        _download(trunk, path)
    elif not origin and not path.is_file():
        raise CheckpointError(
            f"The weights of {trunk} are not in {path.parent}. Use {trunk}:imagenet to download them (torchvision, "
            f"BSD-3-Clause), {trunk}:PATH for a copy of {path.name}, or {trunk}:random for an untrained trunk, whose "
            "distances are relative only."
        )
    net = _build(trunk)
    state = _calibration(trunk) | (_random_trunk(net) if origin == "random" else _trained_trunk(path, net))
    net.load_state_dict(state, assign=True)
    label = requested if origin in ("", "imagenet", "random") else f"{trunk}:{path.name}"
    return Perceptual(label, net, origin == "random", side).to(device)


def _build(trunk: str) -> nn.Module:
    """Build the network on the meta device: initialization would use the global random generator."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # deprecated arguments that the package passes to torchvision
        net: nn.Module = lpips.LPIPS(net=trunk, pretrained=False, pnet_rand=True, verbose=False)
    net.scaling_layer = lpips.ScalingLayer()
    return net


def _calibration(trunk: str) -> dict[str, Tensor]:
    """Read the weights of the package: those of the distance, not of the trunk."""
    import lpips

    state = read_checkpoint(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{trunk}.pth").tensors
    names = {f"lins.{name.removeprefix('lin')}": value for name, value in state.items()}  # the package has both
    return state | names | dict(lpips.ScalingLayer().state_dict(prefix="scaling_layer."))


def _random_trunk(net: nn.Module) -> dict[str, Tensor]:
    """Draw normal weights that keep the variance of rectified layers (He et al., arXiv:1502.01852, eq. 10)."""
    rng = torch.Generator().manual_seed(_SEED)
    return {
        name: torch.zeros(value.shape)
        if value.ndim == 1
        else torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5
        for name, value in net.state_dict().items()
        if name.startswith("net.")
    }


def _trained_trunk(path: Path, net: nn.Module) -> dict[str, Tensor]:
    """Rename torchvision's `features.3.weight` to the package's `net.slice1.3.weight`; drop the classifier."""
    tensors = read_checkpoint(path).tensors
    state = {}
    for name, value in net.state_dict().items():
        if not name.startswith("net."):
            continue
        source = f"features.{name.split('.', 2)[2]}"
        if source not in tensors or tensors[source].shape != value.shape:
            got = list(tensors[source].shape) if source in tensors else f"none among {sorted(tensors)[:3]}"
            raise UnsupportedCheckpointError(
                f"{path}: got {source} of shape {got}, expected {list(value.shape)}. Use torchvision's weights of this "
                "trunk."
            )
        state[name] = tensors[source].float()
    return state


def _download(trunk: str, path: Path) -> None:
    import torchvision.models as models

    weights = {"vgg": models.VGG16_Weights, "alex": models.AlexNet_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    try:
        weights[trunk].IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # the network and torch.hub raise many types
        raise CheckpointError(
            f"The weights of {trunk} could not be downloaded ({error}). Copy {path.name} to {path.parent}, "
            f"or use {trunk}:random, whose distances are relative only."
        ) from error
