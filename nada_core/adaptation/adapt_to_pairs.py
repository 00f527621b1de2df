"""Adapt a generator to pairs: what an image model, such as a diffusion model, made of the generator's own images.

DATID-3D (arXiv:2211.16374) and PODIA-3D (arXiv:2304.01900) train 3D generators adversarially on such images. Here every
image stays with its latent, so that a regression is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from torch import Tensor
from typing_extensions import Unpack

from ..guidance.reconstruction import FaceRecognizer, Features
from ..guidance.shifts import Shift
from ..guidance.targets import check_devices, weighted_guides
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .adapt import Adaptation, Step, train
from .config import AdaptConfig, PairsConfig
from .pairs import LatentsLike, Pairs
from .provenance import RunInputs

Guides = ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]]


class RunOptions(TypedDict, total=False):
    """Arguments of `adapt` that decide how a run is watched and saved, not its result."""

    on_step: Callable[[Step], None] | None
    autosave: str | Path | None
    resume: bool
    stop: Callable[[], bool] | None
    threads: int | None
    snapshots: str | Path | None
    snapshot_every: int
    fingerprint: str | None


def adapt_to_pairs(
    generator: Generator,
    latents: LatentsLike,
    images: Tensor,
    config: PairsConfig | None = None,
    guides: Guides = (),
    shift: Shift | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
    **options: Unpack[RunOptions],
) -> Adaptation:
    """Train a copy of `generator` to draw edited images [N, C, H, W] from their latents.

    Wrong pairs are rejected first; `result.domain.provenance["pairs"]["rejected"]` has the reasons by index. Of at
    least 8 pairs, a quarter is held out to choose the best step. Otherwise a run is like one of `adapt`.

    Args:
        latents: N `Latents` of this generator.
        images: edited versions of its images of these latents, in their order: uncropped squares in -1..1.
        config: None takes `PairsConfig.for_training` of the settings that the generator's file recommends.
        guides: CLIP models that help to find wrong pairs and, with `shift`, to train on other latents too.
        shift: trains the CLIP terms of `config.training`, such as the directional loss, on pairs and random latents.
        perceptual: the network of the LPIPS terms.
        identity: the network of the id term; it also helps to find wrong pairs.
        options: as for `adapt`.

    Raises:
        ValueError: as `adapt`, and for latents of another generator or number, fewer than two pairs, images that are
            not squares of at least the generator's size, and images in another order than the latents.
    """
    inputs = pair_inputs(generator, latents, images, config, guides, shift, perceptual, identity)
    assert inputs.pairs is not None
    if guides:
        check_devices(generator, guides, inputs.config.label)
    pairs = inputs.pairs.prepared(weighted_guides(guides) if guides else (), identity, inputs.config.seed)
    return train(replace(inputs, pairs=pairs), **options)


def pair_inputs(
    generator: Generator,
    latents: LatentsLike,
    images: Tensor,
    config: PairsConfig | None = None,
    guides: Guides = (),
    shift: Shift | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
) -> RunInputs:
    """Check pairs and return the inputs of the run that `adapt_to_pairs` makes of them, before the filter.

    Their fingerprint is that of its autosave.
    """
    config = config or PairsConfig.for_training(generator.recommended_settings("adapt", AdaptConfig))
    if shift and not guides:
        raise ValueError("Got a shift without a CLIP model, expected guides too; load_guide('portraits') gives one.")
    pairs = Pairs.of(generator, latents, images, config, perceptual)
    used = weighted_guides(guides) if guides else ()
    return RunInputs(generator, used, shift, config.training, None, perceptual, identity, pairs)


def pairs_report(result: Adaptation) -> str:
    """Say how the pairs of a run were used and why some were rejected, one line each."""
    pairs = result.domain.provenance["pairs"]
    rejected = {int(index): reason for index, reason in pairs["rejected"].items()}
    counts = f"{pairs['trained']} trained, {pairs['held_out']} held out, {len(rejected)} rejected"
    lines = [f"{pairs['count']} pairs: {counts}."]
    return "\n".join([*lines, *(f"Pair {index}: {reason}." for index, reason in rejected.items())])
