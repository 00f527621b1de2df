"""The latents of one training step, and how they pass through a generator and the CLIP models.

Both generators get the same latents, noise and augmentation, so that an image and its counterpart differ by the
training alone (StyleGAN-NADA, arXiv:2108.00946, section 4.1). A batch too large for the memory passes in chunks:
activations of one chunk live at a time and are recomputed in the backward pass (Chen et al., arXiv:1604.06174), while
the embeddings of the whole batch enter one loss.

Shapes: N latents of this process, L rows of W+, C width of a row, V views, D embedding, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..guidance.augment import shared_augmentation
from ..guidance.clip_losses import embed
from ..guidance.targets import ClipTarget
from ..models.generator import Generator, Noise
from ..runtime.distributed import shard
from ..runtime.precision import arithmetic
from ..runtime.seeds import generator_on
from .config import AdaptConfig


class ImageLoss(Protocol):
    """Terms of images [n, 3, R, R] that are the rows `rows` of a batch, each [n], with their weights."""

    @property
    def weights(self) -> Mapping[str, float]: ...

    def terms(self, images: Tensor, rows: slice) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Batch:
    """What both generators share in a step."""

    key: int  # the step, or the batch's place in the pool
    ws: Tensor  # [N, L, C]
    noise: Noise  # a name, or one map [N, 1, R, R] a convolution
    augment: Callable[[Tensor], Tensor]  # [n, 3, R, R] -> [V n, 3, R, R]
    losses: tuple[ImageLoss, ...] = ()  # terms of the student's images alone

    def split(self, chunk: int) -> list[tuple[Tensor, Noise, slice]]:
        """Latents with their noise maps and their rows, at most `chunk` at a time."""
        rows = [slice(first, min(first + chunk, len(self.ws))) for first in range(0, max(len(self.ws), 1), chunk)]
        if isinstance(self.noise, str):
            return [(self.ws[part], self.noise, part) for part in rows]
        return [(self.ws[part], [maps[part] for maps in self.noise], part) for part in rows]


@dataclass(frozen=True)
class Outputs:
    """One generator's images of a batch, detached, with everything a loss needs of them."""

    images: Tensor  # [N, 3, R, R]
    embeddings: tuple[Tensor, ...]  # one [V N, D] a CLIP model
    terms: dict[str, Tensor]  # term of the losses -> [N], unweighted


@torch.no_grad()
def draw_batch(source: Generator, config: AdaptConfig, rng: torch.Generator, index: int) -> Batch:
    """Draw the latents, noise and augmentation of step `index`; with `config.pool` they repeat every `pool` steps."""
    key = index
    if config.pool:  # every batch of the pool has a random generator of its own
        key = index % config.pool
        seeds = torch.randint(2**31, (config.pool,), generator=torch.Generator().manual_seed(config.seed))
        rng = torch.Generator().manual_seed(int(seeds[key]))
    device = source.w_avg.device
    z = torch.randn(config.batch, source.z_dim, generator=rng).to(device, non_blocking=True)
    ws = source.map(z, source.one_hot(config.label, config.batch), config.psi)
    noise: Noise = config.noise  # type: ignore[assignment]
    if config.noise == "random":
        noise = [shard(maps) for maps in source.draw_noise(config.batch, generator_on(device, rng))]
    augment = shared_augmentation(config.views, source.resolution, rng, mirror=config.mirror)
    return Batch(key, shard(ws), noise, augment)


def run_batch(
    generator: Generator,
    targets: Sequence[ClipTarget],
    batch: Batch,
    chunk: int,
    precision: str,
    losses: Sequence[ImageLoss] = (),
) -> Outputs:
    """Render a batch and embed its views, `chunk` latents at a time."""
    names = tuple(name for loss in losses for name in loss.weights)

    def run_chunk(ws: Tensor, noise: Noise, rows: slice) -> tuple[Tensor, ...]:
        with arithmetic(precision, ws.device):
            images = generator.synthesize(ws, noise)
        terms = {name: value for loss in losses for name, value in loss.terms(images, rows).items()}
        return images, *(terms[name] for name in names), *(embed(targets, batch.augment(images)) if targets else ())

    if chunk >= len(batch.ws):
        images, *columns = run_chunk(batch.ws, batch.noise, slice(0, len(batch.ws)))
    else:  # run_chunk draws no random numbers, so there is no random state to restore for the recomputation
        chunks = [
            checkpoint(run_chunk, ws, noise, rows, use_reentrant=False, preserve_rng_state=False)
            for ws, noise, rows in batch.split(chunk)
        ]
        images, *columns = (torch.cat(column) for column in zip(*chunks, strict=True))
    terms = dict(zip(names, columns[: len(names)], strict=True))
    return Outputs(images.detach(), tuple(columns[len(names) :]), terms)
