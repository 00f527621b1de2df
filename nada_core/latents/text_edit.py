"""Latents moved by words: the optimisation of StyleCLIP (Patashnik et al., arXiv:2103.17249, section 4, equation 1).

The generator stays as it is; the latents go where the guides see the text, held near their start by the distance in W+
and, for faces, by a recogniser.

Letters: N latents, n those that pass at once, L rows of W+, C width of a row, V views, D embedding, R pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..guidance.augment import shared_augmentation
from ..guidance.clip_losses import embed, objective
from ..guidance.reconstruction import FaceRecognizer
from ..guidance.shifts import TextShift
from ..guidance.targets import ClipTarget, check_devices, clip_targets
from ..models.clip import ClipGuide
from ..models.generator import Generator
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import check, setting
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from .sampling import Latents, check_latents, render

OBJECTIVES = ("global", "direction")

SPACES = ("w", "w+")

_ADVICE = "Take a smaller guide, fewer guides, fewer views, or a generator of lower resolution."


@dataclass(frozen=True)
class TextEditConfig:
    """Settings of one edit. The defaults suit published generators of 1024 pixels."""

    objective: str = setting(
        "global",
        "CLIP loss: global moves the pictures towards the target phrase; direction changes them along the direction "
        "from the source phrase to it",
        choices=OBJECTIVES,
    )
    space: str = setting("w+", "space to search: in w+ every row moves on its own, in w all move alike", choices=SPACES)
    steps: int = setting(200, "optimiser steps", low=1, high=10_000)
    lr: float = setting(0.1, "Adam's learning rate", low=1e-6, high=10.0, step=0.01)
    lr_rampup: float = setting(
        0.05, "share of the steps over which the learning rate rises", low=0.0, high=1.0, step=0.05
    )
    lr_rampdown: float = setting(
        0.25, "share of the steps over which the learning rate falls", low=0.0, high=1.0, step=0.05
    )
    clip: float = setting(1.0, "weight of the CLIP loss", low=1e-6, high=1e4, step=0.1)
    l2: float = setting(
        0.008,
        "weight of the squared distance in w+ from the start; lower values allow larger edits",
        low=0.0,
        high=1e4,
        step=0.001,
    )
    id: float = setting(
        0.0,
        "weight of 1 - cosine between the faces before and after; needs a face recogniser",
        low=0.0,
        high=1e4,
        step=0.01,
    )
    first_row: int = setting(0, "first row that may move", low=0, high=64)
    last_row: int | None = setting(
        None, "the row after the last that may move; without it, up to the end", low=1, high=64
    )
    views: int = setting(0, "augmented views of every image; 0: the unchanged image", low=0, high=16)
    batch: int = setting(4, "latents at once; the result is the same", low=1, high=256)
    seed: int = setting(0, "seed of the views", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EditStep:
    """One finished step: the mean loss over the latents and the mean of each term before it is weighed.

    images: gives the latest pictures [N, 3, R, R], detached; nobody who looks away pays.
    """

    index: int
    steps: int
    loss: float
    terms: dict[str, float]
    images: Callable[[], Tensor]


def edit_by_text(
    generator: Generator,
    latents: Latents,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift,
    config: TextEditConfig | None = None,
    identity: FaceRecognizer | None = None,
    on_step: Callable[[EditStep], None] | None = None,
) -> Latents:
    """New latents whose pictures show what the shift's target phrase says; noise and all else as they were.

    shift: the source phrase says what the pictures show now, the target the same with what is wanted: "photo", "photo
    with glasses". identity: a face recogniser on the generator's device, for the id term. A latent's result does not
    depend on the others beside it, up to rounding. When memory runs out, a step is done again with half as many at
    once. on_step is called after every step, and whatever it raises ends the work.

    Raises:
        ValueError: for latents of another generator, devices or rows that do not fit, and an id term without a
            recogniser.
        FloatingPointError: when a loss is not finite.
        torch.cuda.OutOfMemoryError: when one latent at a time is still too much.
    """
    config = config or TextEditConfig()
    if not isinstance(shift, TextShift):
        raise ValueError(
            f"got a {type(shift).__name__}, expected a TextShift: words for what the pictures show now "
            "and for what they shall show."
        )
    check_latents(generator, latents.ws, latents.space, len(latents))
    if config.id and identity is None:
        raise ValueError(
            f"The id term weighs {config.id:g}, but there is no network to compute it; give "
            "a face recogniser (load_identity; Load Likeness in ComfyUI), or set id to 0."
        )
    last = generator.num_ws if config.last_row is None else config.last_row
    if not config.first_row < last <= generator.num_ws:
        raise ValueError(
            f"got rows {config.first_row} to {last}, expected first < last <= {generator.num_ws}, which is "
            "how many rows these latents have; the last is not included."
        )
    check_devices(generator, guides, 0 if generator.c_dim else None)
    targets = clip_targets(guides, shift)
    scene = _Scene(generator, latents, targets, config, identity if config.id else None, slice(config.first_row, last))
    rng = torch.Generator().manual_seed(config.seed)
    batcher = MicroBatcher(min(config.batch, len(latents)), _ADVICE)
    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.enable_grad():
        way = scene.start.new_zeros(
            len(latents), last - config.first_row if config.space == "w+" else 1, generator.w_dim
        )
        optimizer = torch.optim.Adam([way], lr=config.lr)
        for index in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_scale(index / config.steps, config.lr_rampup, config.lr_rampdown)
            look = shared_augmentation(config.views, generator.resolution, rng)
            images, way.grad, loss, terms = batcher.run(scene.measure, way, look)
            if not math.isfinite(loss) or not way.grad.isfinite().all():
                raise FloatingPointError(
                    f"Step {index} has a loss of {loss}, or a gradient that is not finite; lower the learning rate."
                )
            optimizer.step()
            if on_step is not None:
                on_step(EditStep(index, config.steps, loss, terms, images.detach))
    return replace(latents, ws=scene.moved(way, slice(None)).to(latents.ws), space=generator.space())


class _Scene:
    """What stays the same from step to step: the start, how the recogniser sees it, and the settings."""

    def __init__(
        self,
        generator: Generator,
        latents: Latents,
        targets: Sequence[ClipTarget],
        config: TextEditConfig,
        identity: FaceRecognizer | None,
        rows: slice,
    ) -> None:
        self.generator, self.latents, self.targets, self.config = generator, latents, targets, config
        self.identity, self.rows = identity, rows
        self.start = latents.ws.to(generator.w_avg)  # [N, L, C]
        self.before = render(generator, latents, config.batch)  # [N, 3, R, R], on the CPU
        with torch.no_grad():
            parts = self.before.to(self.start).split(config.batch)
            self.faces = torch.cat([identity(part) for part in parts]) if identity else None  # [N, D]

    def measure(
        self, way: Tensor, look: Callable[[Tensor], Tensor], batch: int
    ) -> tuple[Tensor, Tensor, float, dict[str, float]]:
        """Pictures [N, 3, R, R], the gradient of the sum over latents, so that a latent's own is what it would be
        alone, the mean loss and the mean terms."""
        pictures, slope = [], torch.zeros_like(way)
        total, sums = 0.0, dict.fromkeys(("clip", "l2", "id") if self.identity else ("clip", "l2"), 0.0)
        for at in (slice(first, first + batch) for first in range(0, len(way), batch)):
            mine = way[at].detach().requires_grad_()
            ws = self.moved(mine, at)
            after = self.draw(ws, at)
            terms = self.terms(after, at, look) | {"l2": (ws - self.start[at]).square().sum()}
            loss = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
            (slope[at],) = torch.autograd.grad(loss, mine)  # of the latents alone: the generator keeps its own
            pictures.append(after.detach())
            total += loss.item()
            sums = {name: sums[name] + terms[name].item() for name in sums}
        means = {name: value / len(way) for name, value in sums.items()}
        return torch.cat(pictures), slope, total / len(way), means

    def terms(self, after: Tensor, at: slice, look: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What is seen of pictures [n, 3, R, R], summed over them."""
        seen = embed(self.targets, look(after))
        start = seen  # the global goal has none
        if self.config.objective == "direction":
            with torch.no_grad():
                start = embed(self.targets, look(self.before[at].to(after)))
        loss, _ = objective(self.targets, {self.config.objective: 1.0}, start, seen)
        terms = {"clip": loss * len(after)}
        if self.identity is not None and self.faces is not None:
            terms["id"] = (1 - (self.faces[at] * self.identity(after)).sum(1)).sum()
        return terms

    def moved(self, way: Tensor, at: slice) -> Tensor:
        """These latents [n, L, C] after going a way [n, 1 or rows, C]."""
        ws = self.start[at].clone()
        ws[:, self.rows] += way
        return ws

    def draw(self, ws: Tensor, at: slice) -> Tensor:
        """The pictures of ws [n, L, C] with the maps of noise of these latents."""
        noise = self.latents[at].noise
        given = noise if isinstance(noise, str) else [maps.to(ws) for maps in noise]
        return self.generator.synthesize(ws, given)  # type: ignore[arg-type]
