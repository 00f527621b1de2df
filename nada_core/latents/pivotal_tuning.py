"""Pivotal tuning (PTI, Roich et al., arXiv:2106.05744): fine-tune a generator until it draws given images exactly.

The pivots, latents of an inversion, are fixed; a copy of the generator learns to draw the images from them (section
3.2). A locality regularizer (section 3.3) keeps the images of other latents. The change is a `Domain`, which applies to
generators adapted from the same source too.

Letters: N images, n of them in a step, L rows of W+, C width of a row, R pixels a side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..guidance.reconstruction import FaceRecognizer, Features, ReconstructionLoss, check_networks, psnr, weight
from ..io.images import square
from ..models.domain import Domain
from ..models.generator import Generator, check_latents
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import setting, settings
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from ..runtime.transfer import fetch
from .sampling import Latents, render, synthesize

_ADVICE = "Take a smaller perceptual network, or none, or a generator of lower resolution."


@settings
class TuneConfig:
    """Settings of a tuning. The defaults are the paper's (appendix A) with its regularizer on."""

    steps: int = setting(350, "optimizer steps", low=1, high=100_000)
    lr: float = setting(3e-4, "Adam learning rate", low=1e-7, high=1.0, step=1e-4)
    lr_rampdown: float = setting(0.5, "share of steps with a falling learning rate", low=0.0, high=1.0, step=0.05)
    mse: float = weight(1.0, "mse")
    lpips: float = weight(1.0, "lpips")
    id: float = weight(0.0, "id")
    locality: float = setting(0.1, "weight of the locality regularization; 0: off", low=0.0, high=1e4, step=0.05)
    distance: float = setting(30.0, "locality: distance of latents from the pivot; 0: any", low=0.0, high=1e4, step=1.0)
    psi: float = setting(0.5, "locality: truncation of the random latents", low=0.0, high=1.5, step=0.05)
    num_neighbours: int = setting(1, "locality: latents per step", low=1, high=64)
    stop_psnr: float = setting(0.0, "stop when all images have this PSNR (dB); 0: never", low=0.0, high=100.0, step=0.5)
    stop_lpips: float = setting(0.06, "stop when all images have this LPIPS; 0: never", low=0.0, high=10.0, step=0.01)
    batch: int = setting(4, "images per step", low=1, high=256)
    seed: int = setting(0, "random seed", low=0, high=2**32 - 1)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the reconstruction terms."""
        return {"mse": self.mse, "lpips": self.lpips, "id": self.id}


@dataclass(frozen=True)
class TuneStep:
    """One finished step: its loss, the locality term in it, and the mean PSNR (dB) of all images so far."""

    index: int
    steps: int
    loss: float
    locality: float
    psnr: float
    images: Callable[[], Tensor]  # returns the images of this step [n, 3, R, R], detached


@dataclass(frozen=True)
class Tuning:
    """A tuned generator and how close it came, on the CPU."""

    generator: Generator
    domain: Domain  # what the tuning changed
    images: Tensor  # [N, 3, R, R]
    targets: Tensor  # [N, 3, R, R] in -1..1
    psnr: list[float]  # dB, per image
    history: list[dict[str, float]]  # loss, locality and psnr, per step
    config: TuneConfig


def tune(
    generator: Generator,
    images: Tensor,
    latents: Latents,
    config: TuneConfig | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
    on_step: Callable[[TuneStep], None] | None = None,
) -> Tuning:
    """Tune a copy of the generator to draw images [N, C, H, W] from their latents.

    Several images share one tuned generator. When memory runs out, a step is repeated in smaller parts.

    Args:
        images: the inverted ones, of any size; made square first.
        latents: one per image, from `invert` or an encoder.
        perceptual, identity: networks of the lpips and id terms, on the generator's device.
        on_step: called after every step; may raise to stop.

    Raises:
        ValueError: for a term without its network, and latents of another generator, number or shape.
        FloatingPointError: when a loss or gradient is not finite.
        torch.cuda.OutOfMemoryError: when a single image does not fit.
    """
    config = config or generator.recommended_settings("tune", TuneConfig)
    check_networks(config.weights, perceptual, identity)
    targets = square(images, generator.resolution).detach()
    check_latents(generator, latents.ws, latents.space, len(targets))
    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.inference_mode(False), torch.enable_grad():
        tuned = copy.deepcopy(generator).requires_grad_(False).eval()
        tuned.source = None  # its weights are no longer those of the file
        history = _Tuner(generator, tuned, targets, latents, config, perceptual, identity).run(on_step)
        tuned.requires_grad_(False).zero_grad(set_to_none=True)
    result = render(tuned, latents, config.batch)
    provenance = {"pivotal tuning": {"pictures": len(targets), "steps": len(history), "config": asdict(config)}}
    domain = Domain.between(generator, tuned, provenance)
    return Tuning(tuned, domain, result, targets, psnr(result, targets).tolist(), history, config)


class _Tuner:
    """Trains `tuned` in place: its whole synthesis network, nothing of its mapping network."""

    def __init__(
        self,
        source: Generator,
        tuned: Generator,
        targets: Tensor,
        latents: Latents,
        config: TuneConfig,
        perceptual: Features | None,
        identity: FaceRecognizer | None,
    ) -> None:
        self.source, self.tuned, self.latents, self.config = source, tuned, latents, config
        self.perceptual, self.identity = perceptual, identity
        self.loss_function = ReconstructionLoss(targets.to(source.w_avg), config.weights, perceptual, identity)
        parameters = [p.requires_grad_() for name, p in tuned.named_parameters() if not name.startswith("mapping.")]
        self.optimizer = torch.optim.Adam(parameters, lr=config.lr)
        self.psnr = [0.0] * len(targets)  # of every image when it was drawn last
        self.lpips = [math.inf] * len(targets)

    def run(self, on_step: Callable[[TuneStep], None] | None) -> list[dict[str, float]]:
        """Train until the last step or until every image is close enough; returns the history."""
        config, count = self.config, len(self.psnr)
        rng = torch.Generator().manual_seed(config.seed)
        batch = min(config.batch, count)
        batcher = MicroBatcher(batch, _ADVICE)
        history: list[dict[str, float]] = []
        for index in range(config.steps):
            rows = [row % count for row in range(index * batch, (index + 1) * batch)]
            neighbours = _neighbours(self.source, self.latents, rows, config, rng) if config.locality else None
            images, losses, changes, psnrs, distances = batcher.run(self.backward, rows, neighbours)
            numbers = fetch(losses, changes, psnrs, distances, self._gradient_norms())
            for row, quality, distance in zip(rows, *numbers[2:4], strict=True):
                self.psnr[row], self.lpips[row] = quality, distance
            locality = sum(numbers[1], 0.0)
            loss = sum(numbers[0], 0.0) + config.locality * locality
            if not math.isfinite(loss):
                raise FloatingPointError(f"Step {index} has a loss of {loss}; lower the learning rate.")
            history.append({"loss": loss, "locality": locality, "psnr": sum(self.psnr) / count})
            if on_step is not None:
                on_step(TuneStep(index, config.steps, **history[-1], images=images.detach))
            if self._close_enough():
                break  # before the update: the values are those of the weights as they are
            if not all(map(math.isfinite, numbers[4])):
                raise FloatingPointError(f"Step {index} has a gradient that is not finite; lower the learning rate.")
            lr = config.lr * lr_scale(index / config.steps, 0.0, config.lr_rampdown)
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
        return history

    def backward(self, rows: list[int], neighbours: Tensor | None, size: int) -> tuple[Tensor, ...]:
        """Compute the gradients of a step.

        Returns:
            The images [n, 3, R, R] of `rows`, the losses of the parts, the changes of the parts of the neighbours,
            and the PSNR and LPIPS of the images [n].
        """
        self.optimizer.zero_grad(set_to_none=True)
        device = self.loss_function.targets.device
        outputs: list[tuple[Tensor, ...]] = []
        changes = [torch.zeros(1, device=device)]
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            drawn = synthesize(self.tuned, self.latents.select(part))
            indices = torch.tensor(part).to(device, non_blocking=True)
            terms = self.loss_function.terms(drawn, indices)
            loss = torch.stack([self.config.weights[name] * term for name, term in terms.items()]).sum() / len(rows)
            loss.backward()
            images = drawn.detach()
            quality = psnr(images, self.loss_function.targets[indices])
            distance = terms["lpips"].detach() if "lpips" in terms else torch.full_like(quality, math.inf)
            outputs.append((images, loss.detach()[None], quality, distance))
        for points in neighbours.split(size) if neighbours is not None else ():
            change = self._change(points) / self.config.num_neighbours
            (self.config.locality * change).backward()
            changes.append(change.detach()[None])
        images, losses, *qualities = (torch.cat(column) for column in zip(*outputs, strict=True))
        return images, losses, torch.cat(changes), *qualities

    def _change(self, ws: Tensor) -> Tensor:
        """How much the images of latents [n, L, C] changed, summed over them (section 3.3)."""
        with torch.no_grad():
            before = self.source.synthesize(ws)
        loss_function = ReconstructionLoss(before, self.config.weights, self.perceptual, self.identity)
        return loss_function(self.tuned.synthesize(ws), torch.arange(len(ws), device=ws.device)).sum()

    def _gradient_norms(self) -> Tensor:
        gradients = [p.grad for p in self.optimizer.param_groups[0]["params"] if p.grad is not None]
        return torch.stack([gradient.norm() for gradient in gradients])

    def _close_enough(self) -> bool:
        config = self.config
        return min(self.psnr) >= (config.stop_psnr or math.inf) or max(self.lpips) <= config.stop_lpips


def _neighbours(
    source: Generator, latents: Latents, rows: list[int], config: TuneConfig, rng: torch.Generator
) -> Tensor:
    """Sample latents whose images should stay [num_neighbours, L, C]: from pivots towards random ones (section 3.3)."""
    like, count = source.w_avg, config.num_neighbours
    pivots = latents.ws[torch.tensor(rows)[torch.randint(len(rows), (count,), generator=rng)]]
    z = torch.randn(count, source.z_dim, generator=rng)
    label = None
    if source.c_dim:
        label = F.one_hot(torch.randint(source.c_dim, (count,), generator=rng), source.c_dim)
        label = label.to(like, non_blocking=True)
    pivots, z = pivots.to(like, non_blocking=True), z.to(like, non_blocking=True)
    with torch.no_grad():
        random = source.map(z, label, config.psi)
    if not config.distance:
        return random
    direction = random - pivots
    length = direction.norm(dim=(1, 2), keepdim=True)  # over all rows together, as in the authors' implementation
    return pivots + config.distance * direction / length.clamp(min=1e-8)
