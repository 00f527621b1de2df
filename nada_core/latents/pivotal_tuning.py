"""Pivotal tuning (PTI, Roich et al., arXiv:2106.05744): move the generator a little so that it draws given pictures.

The latents of an inversion, the pivots, stay as they are; a copy of the generator learns to draw the pictures from them
(section 3.2), while the locality regulariser (section 3.3) holds every other latent where it was. What the tuning
changed is a `Domain`: small in a file, applied in any strength, and on generators adapted from the same source too.

Letters: N pictures, n of them in a step, L rows of W+, C width of a row, R pixels a side.
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
from ..models.generator import Generator
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import check, setting
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from .sampling import Latents, check_latents, render


@dataclass(frozen=True)
class TuneConfig:
    """Settings of one tuning. The defaults are the paper's (appendix A) with its regulariser on."""

    steps: int = setting(350, "optimiser steps", low=1, high=100_000)
    lr: float = setting(3e-4, "Adam's learning rate", low=1e-7, high=1.0, step=1e-4)
    lr_rampdown: float = setting(0.5, "share of steps with a falling learning rate", low=0.0, high=1.0, step=0.05)
    mse: float = weight(1.0, "mse")
    lpips: float = weight(1.0, "lpips")
    id: float = weight(0.0, "id")
    locality: float = setting(0.1, "weight of keeping other latents' pictures; 0: off", low=0.0, high=1e4, step=0.05)
    distance: float = setting(30.0, "their distance from the pivot in w+; 0: anywhere", low=0.0, high=1e4, step=1.0)
    psi: float = setting(0.5, "truncation of the random latents they lie towards", low=0.0, high=1.5, step=0.05)
    num_neighbours: int = setting(1, "other latents per step", low=1, high=64)
    stop_psnr: float = setting(0.0, "PSNR in dB of every picture to stop at; 0: never", low=0.0, high=100.0, step=0.5)
    stop_lpips: float = setting(0.06, "LPIPS of every picture to stop at; 0: never", low=0.0, high=10.0, step=0.01)
    batch: int = setting(4, "pictures a step", low=1, high=256)
    seed: int = setting(0, "seed of everything random", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def weights(self) -> dict[str, float]:
        return {"mse": self.mse, "lpips": self.lpips, "id": self.id}


@dataclass(frozen=True)
class TuneStep:
    """One finished step: its loss, what of it is the locality regulariser, and the mean PSNR in dB of its pictures.

    images: gives those pictures [n, 3, R, R], detached; nobody who looks away pays.
    """

    index: int
    steps: int
    loss: float
    locality: float
    psnr: float
    images: Callable[[], Tensor]


@dataclass(frozen=True)
class Tuning:
    """A finished tuning: the tuned generator, what changed in it, and how close every picture came, on the CPU.

    images and targets: [N, 3, R, R] in -1..1. psnr: dB, one a picture. history: loss, locality and psnr, one record a
    step.
    """

    generator: Generator
    domain: Domain
    images: Tensor
    targets: Tensor
    psnr: list[float]
    history: list[dict[str, float]]
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
    """Tune a copy of `generator` to draw pictures [N, C, H, W] from their latents; the one given stays bit-identical.

    images: the same that were inverted, of any size (`images.square`). latents: one a picture, from `invert` or an
    encoder. perceptual and identity: what the terms lpips and id see with, on the generator's device. Several pictures
    share one tuned generator. When memory runs out, the step is done again with half as many pictures, and so are those
    that follow. on_step is called after every step, and whatever it raises ends the work.

    Raises:
        ValueError: for pictures that `square` refuses, a term without its network, latents of another generator,
            number or shape.
        FloatingPointError: when a loss is not finite; the weights have not taken it in.
        torch.cuda.OutOfMemoryError: when one picture at a time is still too much.
    """
    config = config or generator.recommended_settings("tune", TuneConfig)
    check_networks(config.weights, perceptual, identity)
    targets = square(images, generator.resolution).detach()
    check_latents(generator, latents.ws, latents.space, len(targets))
    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.inference_mode(False), torch.enable_grad():
        tuned = copy.deepcopy(generator).requires_grad_(False).eval()
        tuned.source = None  # the file's weights are what it will no longer have
        history = _learn(generator, tuned, targets, latents, config, perceptual, identity, on_step)
        tuned.requires_grad_(False).zero_grad(set_to_none=True)
    pictures = render(tuned, latents, config.batch)
    told = {"pivotal tuning": {"pictures": len(targets), "steps": len(history), "config": asdict(config)}}
    domain = Domain.between(generator, tuned, told)
    return Tuning(tuned, domain, pictures, targets, psnr(pictures, targets).tolist(), history, config)


def _learn(
    source: Generator,
    tuned: Generator,
    targets: Tensor,
    latents: Latents,
    config: TuneConfig,
    perceptual: Features | None,
    identity: FaceRecognizer | None,
    on_step: Callable[[TuneStep], None] | None,
) -> list[dict[str, float]]:
    """The loop. `tuned` is trained in place: all of its synthesis network, nothing of its mapping network."""
    trained = [weight.requires_grad_() for name, weight in tuned.named_parameters() if not name.startswith("mapping.")]
    optimizer = torch.optim.Adam(trained, lr=config.lr)
    likeness = ReconstructionLoss(targets.to(source.w_avg), config.weights, perceptual, identity)
    rng = torch.Generator().manual_seed(config.seed)
    batch = min(config.batch, len(targets))
    batcher = MicroBatcher(batch, "Take a smaller perceptual network, or none, or a generator of lower resolution.")
    close = [0.0] * len(targets)  # PSNR and LPIPS of every picture when it was last seen
    unlike = [math.inf] * len(targets)
    history: list[dict[str, float]] = []

    def attempt(rows: Tensor, others: Tensor | None, size: int) -> tuple[Tensor, Tensor, float, float]:
        """Where a step's memory goes, and so what is done again if there is too little. It leaves gradients only."""
        optimizer.zero_grad(set_to_none=True)
        drawn, alike, loss, strayed = [], [], 0.0, 0.0
        for part in rows.split(size):
            pictures = _draw(tuned, latents, part)
            terms = likeness.terms(pictures, part.to(pictures.device))
            whole = torch.stack([config.weights[name] * term for name, term in terms.items()]).sum() / len(rows)
            whole.backward()
            loss += whole.item()
            drawn.append(pictures.detach())
            alike.append(terms["lpips"].detach() if "lpips" in terms else pictures.new_full((len(part),), math.inf))
        for part in others.split(size) if others is not None else ():
            with torch.no_grad():
                before = source.synthesize(part)
            same = ReconstructionLoss(before, config.weights, perceptual, identity)
            moved = (
                same(tuned.synthesize(part), torch.arange(len(part), device=part.device)).sum() / config.num_neighbours
            )
            (config.locality * moved).backward()
            strayed += moved.item()
        return torch.cat(drawn), torch.cat(alike), loss + config.locality * strayed, strayed

    for index in range(config.steps):
        rows = torch.arange(index * batch, (index + 1) * batch) % len(targets)  # all of them in turn
        pictures, alike, loss, strayed = batcher.run(attempt, rows, _neighbours(source, latents, rows, config, rng))
        if not math.isfinite(loss):
            raise FloatingPointError(f"Step {index} has a loss of {loss}; lower the learning rate.")
        for row, one, other in zip(
            rows.tolist(), psnr(pictures, likeness.targets[rows]).tolist(), alike.tolist(), strict=True
        ):
            close[row], unlike[row] = one, other
        history.append({"loss": loss, "locality": strayed, "psnr": sum(close) / len(close)})
        if on_step is not None:
            on_step(TuneStep(index, config.steps, loss, strayed, history[-1]["psnr"], pictures.detach))
        if min(close) >= (config.stop_psnr or math.inf) or max(unlike) <= config.stop_lpips:
            break  # before the step: it is these weights that came so close
        optimizer.param_groups[0]["lr"] = config.lr * lr_scale(index / config.steps, 0.0, config.lr_rampdown)
        optimizer.step()
    return history


def _draw(generator: Generator, latents: Latents, rows: Tensor) -> Tensor:
    """The pictures of some latents, [n, 3, R, R], with gradients."""
    like, noise = generator.w_avg, latents.noise
    if not isinstance(noise, str):
        noise = [(maps[rows] if maps.ndim == 4 and len(maps) == len(latents) else maps).to(like) for maps in noise]
    return generator.synthesize(latents.ws[rows].to(like), noise)  # type: ignore[arg-type]


def _neighbours(
    source: Generator, latents: Latents, rows: Tensor, config: TuneConfig, rng: torch.Generator
) -> Tensor | None:
    """Latents that shall stay what they are, [others, L, C]: from a pivot `reach` towards random ones (section 3.3).

    The way is measured over all rows together, as in the authors' implementation.
    """
    if not config.locality:
        return None
    like = source.w_avg
    pivots = latents.ws[rows[torch.randint(len(rows), (config.num_neighbours,), generator=rng)]].to(like)
    z = torch.randn(config.num_neighbours, source.z_dim, generator=rng).to(like)
    label = None
    if source.c_dim:
        label = F.one_hot(torch.randint(source.c_dim, (config.num_neighbours,), generator=rng), source.c_dim).to(like)
    with torch.no_grad():
        towards = source.map(z, label, config.psi)
    if not config.distance:
        return towards
    way = towards - pivots
    return pivots + config.distance * way / way.norm(dim=(1, 2), keepdim=True).clamp(min=1e-8)
