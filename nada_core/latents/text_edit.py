"""Edits of latents by text: the optimization of StyleCLIP (Patashnik et al., arXiv:2103.17249, section 4, equation 1).

The generator stays fixed. The latents minimize a CLIP loss, held near their start by their distance in W+ and, for
faces, by the features of a face recognizer.

Letters: N latents, n of them in a batch, L rows of W+, C width of a row, D features, R pixels a side.
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
from ..models.generator import Generator, check_latents
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import setting, settings
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from ..runtime.transfer import fetch
from .sampling import Latents, render, row_slice, synthesize

OBJECTIVES = ("global", "direction")
SPACES = ("w", "w+")
_ADVICE = "Take a smaller guide, fewer guides, fewer views, or a generator of lower resolution."


@settings
class TextEditConfig:
    """Settings of an edit. The defaults suit published generators of 1024 pixels."""

    objective: str = setting("global", "CLIP loss: global or direction (change along the shift)", choices=OBJECTIVES)
    space: str = setting("w+", "search space: w+ (each row separately) or w (all rows alike)", choices=SPACES)
    steps: int = setting(200, "optimizer steps", low=1, high=10_000)
    lr: float = setting(0.1, "Adam learning rate", low=1e-6, high=10.0, step=0.01)
    lr_rampup: float = setting(0.05, "share of steps with a rising learning rate", low=0.0, high=1.0, step=0.05)
    lr_rampdown: float = setting(0.25, "share of steps with a falling learning rate", low=0.0, high=1.0, step=0.05)
    clip: float = setting(1.0, "weight of the CLIP loss", low=1e-6, high=1e4, step=0.1)
    l2: float = setting(0.008, "weight of the squared distance from the start", low=0.0, high=1e4, step=0.001)
    id: float = setting(0.0, "weight of 1 - cosine of the face embeddings", low=0.0, high=1e4, step=0.01)
    first_row: int = setting(0, "first row to optimize", low=0, high=64)
    last_row: int | None = setting(None, "row after the last to optimize; none: to the end", low=1, high=64)
    views: int = setting(0, "augmented views of each image; 0: the unchanged image", low=0, high=16)
    batch: int = setting(4, "latents at a time; the result is the same", low=1, high=256)
    seed: int = setting(0, "seed of the views", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class EditStep:
    """One finished step: the loss and its unweighted terms, averaged over the latents."""

    index: int
    steps: int
    loss: float
    terms: dict[str, float]
    images: Callable[[], Tensor]  # returns the latest images [N, 3, R, R], detached


def edit_by_text(
    generator: Generator,
    latents: Latents,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift,
    config: TextEditConfig | None = None,
    identity: FaceRecognizer | None = None,
    on_step: Callable[[EditStep], None] | None = None,
) -> Latents:
    """Move latents until their images show the target phrase of the shift. Noise maps are kept.

    Up to rounding, the result of a latent does not depend on the others. When memory runs out, fewer run at once.

    Args:
        shift: what the images show now, and the same with what is wanted: "photo", "photo with glasses".
        identity: a face recognizer on the generator's device, for the id term.
        on_step: called after every step; may raise to stop.

    Raises:
        ValueError: for latents of another generator, devices or rows that do not fit, an id term without `identity`.
        FloatingPointError: when a loss or a gradient is not finite.
        torch.cuda.OutOfMemoryError: when a single latent does not fit.
    """
    config = config or TextEditConfig()
    rows = _check(generator, latents, shift, config, identity)
    check_devices(generator, guides, 0 if generator.c_dim else None)
    targets = clip_targets(guides, shift)
    loss_function = _EditLoss(generator, latents, targets, config, identity if config.id else None, rows)
    batcher = MicroBatcher(min(config.batch, len(latents)), _ADVICE)
    rng = torch.Generator().manual_seed(config.seed)
    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.enable_grad():
        offset = torch.zeros_like(loss_function.start[:, rows if config.space == "w+" else slice(1)])
        optimizer = torch.optim.Adam([offset], lr=config.lr)
        for index in range(config.steps):
            lr = config.lr * lr_scale(index / config.steps, config.lr_rampup, config.lr_rampdown)
            optimizer.param_groups[0]["lr"] = lr
            augment = shared_augmentation(config.views, generator.resolution, rng)
            images, offset.grad, parts = batcher.run(loss_function.backward, offset, augment)
            (finite,), *sums = fetch(offset.grad.isfinite().all(), *parts)
            loss, *means = (sum(column, 0.0) / len(latents) for column in zip(*sums, strict=True))
            if not math.isfinite(loss) or not finite:
                raise FloatingPointError(
                    f"Step {index} has a loss of {loss}, or a gradient that is not finite; lower the learning rate."
                )
            optimizer.step()
            if on_step is not None:
                terms = dict(zip(loss_function.names, means, strict=True))
                on_step(EditStep(index, config.steps, loss, terms, images.detach))
    return replace(latents, ws=loss_function.moved(offset, slice(None)).to(latents.ws), space=generator.space())


def _check(
    generator: Generator, latents: Latents, shift: TextShift, config: TextEditConfig, identity: FaceRecognizer | None
) -> slice:
    """The rows that move. Raises ValueError for arguments that do not fit."""
    if not isinstance(shift, TextShift):
        raise ValueError(f"Got a {type(shift).__name__}, expected a TextShift: phrases for now and for the result.")
    check_latents(generator, latents.ws, latents.space, len(latents))
    if config.id and identity is None:
        raise ValueError(
            f"The id term weighs {config.id:g}, but there is no network to compute it; give "
            "a face recognition network, or set id to 0."
        )
    last = generator.num_ws if config.last_row is None else config.last_row
    return row_slice((config.first_row, last), generator.num_ws)


class _EditLoss:
    """The loss of latents moved by an offset, and what it compares with: the start and its images and faces."""

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
        self.names = ("clip", "l2", "id") if identity else ("clip", "l2")
        self.start = latents.ws.to(generator.w_avg)  # [N, L, C]
        self.before = render(generator, latents, config.batch)  # [N, 3, R, R], on the CPU
        with torch.no_grad():
            parts = self.before.to(self.start).split(config.batch)
            self.faces = torch.cat([identity(part) for part in parts]) if identity else None  # [N, D]

    def backward(
        self, offset: Tensor, augment: Callable[[Tensor], Tensor], batch: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images [N, 3, R, R], the gradient of the summed loss by the offset, and for each part of the latents its
        summed loss and terms, in the order of `names` [1 + terms]."""
        images: list[Tensor] = []
        gradients: list[Tensor] = []
        values: list[Tensor] = []
        for first in range(0, len(offset), batch):
            part = slice(first, first + batch)
            moving = offset[part].detach().requires_grad_()
            ws = self.moved(moving, part)
            after = synthesize(self.generator, replace(self.latents[part], ws=ws))
            terms = self.terms(after, part, augment) | {"l2": (ws - self.start[part]).square().sum()}
            loss = torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum()
            gradients += torch.autograd.grad(loss, moving)  # leaves the .grad of the generator alone
            images.append(after.detach())
            values.append(torch.stack([loss, *(terms[name] for name in self.names)]).detach())
        return torch.cat(images), torch.cat(gradients), values

    def terms(self, after: Tensor, part: slice, augment: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The CLIP and id terms of images [n, 3, R, R], summed over them."""
        source = embedded = embed(self.targets, augment(after))
        if self.config.objective == "direction":  # the global loss has no source
            with torch.no_grad():
                source = embed(self.targets, augment(self.before[part].to(after, non_blocking=True)))
        loss, _ = objective(self.targets, {self.config.objective: 1.0}, source, embedded)
        terms = {"clip": loss * len(after)}
        if self.identity is not None and self.faces is not None:
            terms["id"] = (1 - (self.faces[part] * self.identity(after)).sum(1)).sum()
        return terms

    def moved(self, offset: Tensor, part: slice) -> Tensor:
        """The latents of a part [n, L, C], moved by the offset [n, 1 or rows, C]."""
        ws = self.start[part].clone()
        ws[:, self.rows] += offset
        return ws
