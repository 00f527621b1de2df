"""CLIP as a frozen guide, and the directions it gives (StyleGAN-NADA, arXiv:2108.00946, section 4.1, equation 3).

A guide turns images and phrases into unit vectors of one space. A shift says which way to go in that space: from one
phrase to another, or from the generator's images to a few style images. Shifts travel as data; only `direction` and
`target` run a network, once before the first step.

Weights come through open_clip whoever made them: the guide that ships with the pack is loaded by the same lines as a
local file of ViT-B/32. Nothing is ever downloaded unless the caller names a published tag.

Shapes: N images or phrases, D embedding, M source images, K templates, V vocabulary.
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
    """One guide, several, or several with weights -> ((guide, weight), ...); a guide without a weight weighs 1.

    The paper sums over ViT-B/32 and ViT-B/16: two encoders are harder to fool than one.

    Raises:
        ValueError: for no guides, for anything that is not a guide, and for weights that are not positive and finite.
    """
    listed = [guides] if isinstance(guides, ClipGuide) else list(guides)
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in listed]
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
    """What one guide asks of a run, computed once: its weight, the direction [1, D] and the goal [1, D]."""

    guide: ClipGuide
    weight: float
    direction: Tensor
    target_embedding: Tensor


def clip_targets(
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]], shift: Shift, images: Tensor | None = None
) -> tuple[ClipTarget, ...]:
    """Direction and goal of every guide; weights are scaled to sum to 1, so that a loss means the same with any number.

    images: [M, 3, H, W] of the generator before training; needed where style images are, best left out otherwise.
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
    """Find out before the work, not in it, that gradients cannot flow from these guides to this generator.

    Raises:
        ValueError: in inference mode, for a class or devices that do not fit, and for broken weights.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode is on, which forbids training; use torch.inference_mode(False).")
    generator.one_hot(label, 1)
    here = generator.w_avg.device
    for guide, _ in weighted_guides(guides):
        if guide.mean.device != here:
            raise ValueError(
                f"the generator is on {here}, the guide {guide.name} on {guide.mean.device}; move one to "
                "the other with .to(device), or give load_guide the device."
            )
    broken = [name for name, value in generator.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors of the generator hold NaN or infinity, the first is {broken[0]}; take "
            "an earlier state of it."
        )


@torch.no_grad()
def source_images(generator: Generator, seed: int, label: int | None = None) -> Tensor:
    """Sixteen images [16, 3, H, W] of the generator, where directions to style images start. They have random numbers
    of their own: a run that looks draws the same ones afterwards as a run that does not."""
    z = torch.randn(16, generator.z_dim, generator=torch.Generator().manual_seed(seed)).to(generator.w_avg.device)
    ws = generator.map(z, generator.one_hot(label, 16))
    return MicroBatcher(4).run(lambda size: torch.cat([generator.synthesize(part) for part in ws.split(size)]))
