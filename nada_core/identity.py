"""Who is in the picture: networks that turn a face into a unit vector, for the identity loss and for measuring.

Letters: N pictures, D size of a face's vector, H = W pixels a side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
