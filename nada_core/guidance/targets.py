"""CLIP targets: the direction and the target embedding of every CLIP model of a training (StyleGAN-NADA,
arXiv:2108.00946, section 4.1), and the checks of models, devices and weights before it.

Letters: N images, M source images, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.clip import ClipGuide
from ..models.generator import Generator
from ..runtime.batching import MicroBatcher
from .shifts import Shift


def weighted_guides(
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
) -> tuple[tuple[ClipGuide, float], ...]:
    """Normalize one guide, several, or (guide, weight) pairs to pairs; the default weight is 1."""
    items = [guides] if isinstance(guides, ClipGuide) else list(guides)
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
    if not pairs:
        raise ValueError("Got no guides, expected at least one. load_guide('portraits') gives one.")
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], ClipGuide):
            raise ValueError(f"Got {pair!r:.80}, expected a guide or (guide, weight), several of them in a list.")
        if isinstance(pair[1], bool) or not isinstance(pair[1], int | float) or not 0 < pair[1] < math.inf:
            raise ValueError(f"The guide {pair[0].name} has weight {pair[1]!r}, expected a positive finite number.")
    return tuple((guide, float(weight)) for guide, weight in pairs)


@dataclass(frozen=True)
class ClipTarget:
    """A guide with its weight and unit vectors: the direction of the change and the embedding to reach."""

    guide: ClipGuide
    weight: float
    direction: Tensor  # [1, D]
    target_embedding: Tensor  # [1, D]


def clip_targets(
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]], shift: Shift, images: Tensor | None = None
) -> tuple[ClipTarget, ...]:
    """Compute the target of every guide. Weights are scaled to sum to 1, so a loss does not grow with their number.

    images: [M, 3, H, W] of the generator before training, required for shifts to images.
    """
    pairs = weighted_guides(guides)
    total = sum(weight for _, weight in pairs)
    targets = []
    for guide, weight in pairs:
        with torch.no_grad():
            source = None if images is None else torch.cat([guide.encode_images(part) for part in images.split(4)])
        targets.append(ClipTarget(guide, weight / total, shift.direction(guide, source), shift.target_embedding(guide)))
    return tuple(targets)


def check_devices(
    generator: Generator, guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]], label: int | None
) -> None:
    """Check before the work that gradients can flow from the guides to the generator.

    Raises:
        ValueError: in inference mode, for a class or devices that do not fit, and for NaN or infinity in the weights.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode is on, which forbids training; use torch.inference_mode(False).")
    generator.one_hot(label, 1)
    device = generator.w_avg.device
    for guide, _ in weighted_guides(guides) if guides else ():
        if guide.mean.device != device:
            devices = f"The generator is on {device}, the guide {guide.name} on {guide.mean.device}"
            raise ValueError(f"{devices}; move one with .to(device).")
    broken = [name for name, value in generator.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors of the generator hold NaN or infinity, the first is {broken[0]}.")


@torch.no_grad()
def source_images(generator: Generator, seed: int, label: int | None = None) -> Tensor:
    """Draw 16 images [16, 3, H, W], where directions to style images start, with random numbers of their own."""
    z = torch.randn(16, generator.z_dim, generator=torch.Generator().manual_seed(seed)).to(generator.w_avg.device)
    ws = generator.map(z, generator.one_hot(label, 16))
    return MicroBatcher(4).run(lambda size: torch.cat([generator.synthesize(part) for part in ws.split(size)]))
