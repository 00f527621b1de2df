"""The judge of the built-in world: a classifier of style and attributes, and the figures of an adaptation.

It shares neither weights nor training data with the CLIP models, so it detects results that only please those. As one
classifier can still be fooled, `examine` reports four figures together: style, attributes, distance to the true
picture, and diversity relative to the true pictures.

Letters: N pictures, K classes (the styles and "broken image"), A attributes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io.checkpoint_file import BUILTIN, read_checkpoint
from ..models.generator import Generator
from .content import Content
from .render import ATTRIBUTES, STYLES, readable, render, visible

#: Pictures in none of the styles, such as noise or blur.
BROKEN = "broken image"
CLASSES = (*STYLES, BROKEN)


class Judge(nn.Module):
    """A convolutional network with a style head and an attribute head; takes pictures [N, 3, 64, 64] in -1..1."""

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
        """Return style logits [N, K] and attributes [N, A]."""
        features = self.trunk(pictures)
        return self.style(features), self.attributes(features)


@dataclass(frozen=True)
class Verdict:
    """Four figures of an adaptation, with those of the source generator for comparison.

    Args:
        judge: Share of pictures classified as the target style, 0..1.
        attributes: Mean correlation of the attributes read from the pictures with those of the latents.
        source_attributes: The same for the source generator.
        distance: Mean absolute difference from the true pictures, 0..1.
        source_distance: The same for the source generator.
        diversity: Mean pairwise distance of the pictures, divided by that of the true pictures.
    """

    judge: float
    attributes: float
    source_attributes: float
    distance: float
    source_distance: float
    diversity: float

    @property
    def kept(self) -> float:
        """The attribute correlation, divided by that of the source."""
        return self.attributes / max(self.source_attributes, 1e-6)

    @property
    def passed(self) -> bool:
        """Whether all four figures reach their thresholds."""
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
    """Compare `count` pictures of the adapted generator with the true ones, for latents that no fit used."""
    rng = torch.Generator().manual_seed(seed)
    ws = source.map(torch.randn(count, source.z_dim, generator=rng))
    expected = readable(content(ws))
    truth = render(content(ws), style)
    before = torch.cat([source.synthesize(part) for part in ws.split(32)]).clamp(-1, 1)
    after = torch.cat([adapted.synthesize(part) for part in ws.split(32)]).clamp(-1, 1)
    (_, read_before), (styles, read_after) = judge(before), judge(after)
    mask = visible(style)
    return Verdict(
        judge=float((styles.argmax(1) == STYLES.index(style)).float().mean()),
        attributes=_correlation(read_after, expected)[mask].mean().item(),
        source_attributes=_correlation(read_before, expected)[mask].mean().item(),
        distance=float((after - truth).abs().mean() / 2),
        source_distance=float((before - truth).abs().mean() / 2),
        diversity=_diversity(after) / _diversity(truth),
    )


def _correlation(read: Tensor, expected: Tensor) -> Tensor:
    """Pearson correlation of every column, [A]."""
    read, expected = read - read.mean(0), expected - expected.mean(0)
    return (read * expected).sum(0) / (read.norm(dim=0) * expected.norm(dim=0)).clamp(min=1e-6)


def _diversity(pictures: Tensor) -> float:
    """Mean pairwise distance of downscaled pictures, so that noise does not count as diversity."""
    flat = F.avg_pool2d(pictures, 4).flatten(1)
    return float(torch.pdist(flat).mean())
