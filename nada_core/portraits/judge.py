"""The independent judge of the built-in world: which style a picture is in, or none, and what it shows.

It shares neither weights nor training with the guides, so an adaptation that merely flatters its guide is found out.
A judge alone can still be fooled, so `examine` always reports four figures together: style, attributes kept, distance
to the true picture, and diversity against the true style's own.

Letters: N pictures, K classes (the styles and "none of these"), A attributes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import BUILTIN, read_checkpoint
from ..models.generator import Generator
from .captions import CLASSES
from .content import Content
from .render import ATTRIBUTES, STYLES, readable, render, visible

NONE = len(CLASSES) - 1  # the class "none of these"


class Judge(nn.Module):
    """A plain convolutional network with a style head and an attribute head; pictures [N, 3, 64, 64] in -1..1."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, width * 2, width * 3, width * 4):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1, groups=out // 16), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.MaxPool2d(2)]
            channels = out
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, 160), nn.SiLU())
        self.style = nn.Linear(160, len(CLASSES))
        self.attributes = nn.Linear(160, len(ATTRIBUTES))

    @classmethod
    def load(cls, path: Path = BUILTIN / "judge.safetensors") -> Judge:
        judge = cls()
        judge.load_state_dict({name: t.float() for name, t in read_checkpoint(path).tensors.items()})
        return judge.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Style logits [N, K] and attributes [N, A]."""
        features = self.trunk(pictures)
        return self.style(features), self.attributes(features)


@dataclass(frozen=True)
class Verdict:
    """Four figures that only mean something together, each beside what it should be held against.

    judge: share of pictures taken for the target style, 0..1.
    attributes: mean correlation of the attributes read with those of the latent; source_attributes: the source's own.
    distance: mean |picture - true picture| on a 0..1 scale; source_distance: the unadapted picture's.
    diversity: mean pairwise pixel distance of the pictures over that of the true ones.
    """

    judge: float
    attributes: float
    source_attributes: float
    distance: float
    source_distance: float
    diversity: float

    @property
    def kept(self) -> float:
        """Attribute correlation as a share of the source's."""
        return self.attributes / max(self.source_attributes, 1e-6)

    @property
    def passed(self) -> bool:
        """The bar every target is held to; "clearly below" is taken as at most 0.85 of the source's distance."""
        close = self.distance <= 0.85 * self.source_distance
        return self.judge >= 0.90 and self.kept >= 0.75 and close and 0.8 <= self.diversity <= 1.25

    def as_row(self) -> dict[str, float]:
        return {**asdict(self), "kept": self.kept}


@torch.no_grad()
def examine(
    judge: Judge,
    content: Content,
    source: Generator,
    adapted: Generator,
    style: str,
    count: int = 192,
    seed: int = 10_000,
) -> Verdict:
    """Judge `count` pictures of the adapted generator for latents nobody trained on."""
    rng = torch.Generator().manual_seed(seed)
    ws = source.map(torch.randn(count, source.z_dim, generator=rng))
    wanted = readable(content(ws))
    truth = render(content(ws), style)
    before = torch.cat([source.synthesize(part) for part in ws.split(32)]).clamp(-1, 1)
    after = torch.cat([adapted.synthesize(part) for part in ws.split(32)]).clamp(-1, 1)
    (_, read_before), (styles, read_after) = judge(before), judge(after)
    shown = visible(style)
    return Verdict(
        judge=float((styles.argmax(1) == STYLES.index(style)).float().mean()),
        attributes=_correlation(read_after, wanted)[shown].mean().item(),
        source_attributes=_correlation(read_before, wanted)[shown].mean().item(),
        distance=float((after - truth).abs().mean() / 2),
        source_distance=float((before - truth).abs().mean() / 2),
        diversity=_spread(after) / _spread(truth),
    )


def _correlation(read: Tensor, wanted: Tensor) -> Tensor:
    """Pearson correlation of every column: [A]."""
    read, wanted = read - read.mean(0), wanted - wanted.mean(0)
    return (read * wanted).sum(0) / (read.norm(dim=0) * wanted.norm(dim=0)).clamp(min=1e-6)


def _spread(pictures: Tensor) -> float:
    """Mean pairwise distance of slightly blurred pictures, so that grain does not count as diversity."""
    flat = F.avg_pool2d(pictures, 4).flatten(1)
    return float(torch.pdist(flat).mean())
