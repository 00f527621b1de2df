"""Inversion: the latents whose pictures come closest to given ones (StyleGAN2, arXiv:1912.04958, appendix D).

Projection starts from the mean of w and looks around by noise that fades; the learning rate rises, stays and falls;
noise maps are optimised with it, held to be noise by their autocorrelation. It happens in W, where latents stay
editable; in W+ (Image2StyleGAN, arXiv:1904.03189), a w a row, which comes closer; or in W first and from there in W+.

Letters: N pictures, n those not finished yet, L rows of W+, C width of a row, R a layer's resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..guidance.reconstruction import FaceRecognizer, Features, ReconstructionLoss, check_networks, psnr, weight
from ..io.images import square
from ..models.generator import Generator, Noise
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import check, setting
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from .sampling import Latents, check_latents, render

SPACES = ("w", "w+", "w then w+")

_ADVICE = "Take a perceptual network that is smaller, or none, or a generator of lower resolution."


@dataclass(frozen=True)
class InvertConfig:
    """Settings of one inversion. The defaults suit published generators of aligned faces."""

    space: str = setting(
        "w then w+", "space to search: w stays editable, w+ comes closer; w then w+ uses both in turn", choices=SPACES
    )
    steps: int = setting(500, "optimiser steps", low=1, high=100_000)
    w_steps_share: float = setting(0.4, "share of the steps spent in w by w then w+", low=0.05, high=0.95, step=0.05)
    lr: float = setting(0.1, "Adam's learning rate", low=1e-6, high=10.0, step=0.01)
    lr_rampup: float = setting(
        0.05, "share of the steps over which the learning rate rises", low=0.0, high=1.0, step=0.05
    )
    lr_rampdown: float = setting(
        0.25, "share of the steps over which the learning rate falls", low=0.0, high=1.0, step=0.05
    )
    mse: float = weight(1.0, "mse")
    coarse: float = weight(0.0, "coarse")
    lpips: float = weight(0.8, "lpips")
    id: float = weight(0.1, "id")
    delta: float = setting(
        0.01, "weight of the spread of the rows of w+, which keeps them near one w", low=0.0, high=1e4, step=0.01
    )
    initial_noise_factor: float = setting(
        0.05, "noise on w at the start, as a share of the spread of w", low=0.0, high=1.0, step=0.01
    )
    noise_ramp_length: float = setting(
        0.75, "share of the steps after which that noise is gone", low=0.0, high=1.0, step=0.05
    )
    optimize_noise: bool = setting(True, "optimise the noise maps too; off: the generator's own")
    noise_reg: float = setting(1e5, "weight of the noise maps' autocorrelation", low=0.0, high=1e9, step=1000.0)
    stop_psnr: float = setting(
        0.0, "PSNR in dB at which a picture is finished; 0: never", low=0.0, high=100.0, step=0.5
    )
    patience: int = setting(
        0, "steps without improvement after which a picture is finished; 0: never", low=0, high=100_000
    )
    batch: int = setting(4, "pictures at once; the result is the same", low=1, high=256)
    seed: int = setting(0, "seed of everything random", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def weights(self) -> dict[str, float]:
        return {"mse": self.mse, "coarse": self.coarse, "lpips": self.lpips, "id": self.id}


#: Named recipes. "report" is that of the founding report, to be compared with: its weights, and none of the rest.
PRESETS = {
    "default": InvertConfig(),
    "editable": InvertConfig(space="w", optimize_noise=False),
    "report": InvertConfig(
        space="w+",
        mse=0.8,
        lpips=0.5,
        id=1.0,
        delta=0.0,
        initial_noise_factor=0.0,
        optimize_noise=False,
        lr_rampup=0.0,
        lr_rampdown=0.0,
    ),
}


@dataclass(frozen=True)
class InvertStep:
    """One finished step: how far the work is, in steps of single pictures, and the mean loss and PSNR in dB of the best
    found so far for the pictures in work.

    images: gives the latest pictures [n, 3, R, R] of those not finished, detached; nobody who looks away pays.
    """

    done: int
    total: int
    loss: float
    psnr: float
    images: Callable[[], Tensor]


@dataclass(frozen=True)
class Inversion:
    """What came out, one row a picture, on the CPU.

    latents: the best found, noise maps among them where they were optimised. images and targets: [N, 3, R, R] in -1..1,
    what the generator makes of the latents, and what was asked for. loss, psnr (dB): how close `images` came. steps:
    how many each picture took. history: the mean loss and PSNR of the best so far, one record a step.
    """

    latents: Latents
    images: Tensor
    targets: Tensor
    loss: list[float]
    psnr: list[float]
    steps: list[int]
    history: list[dict[str, float]]
    config: InvertConfig


def invert(
    generator: Generator,
    images: Tensor,
    config: InvertConfig | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
    start: Latents | None = None,
    on_step: Callable[[InvertStep], None] | None = None,
) -> Inversion:
    """Latents of pictures [N, C, H, W] in -1..1 of any size; see `images.square` for what becomes of them.

    Real photos want to be aligned first (`faces.align`). perceptual and identity: what the terms lpips and id see with,
    on the generator's device. start: latents to begin with, an encoder's for one, in place of the mean of w; then
    nothing is searched around. A picture's result does not depend on the others beside it, up to rounding. When memory
    runs out, the pictures are done again half as many at once. on_step is called after every step, and whatever it
    raises ends the work.

    Raises:
        ValueError: for pictures that `square` refuses, a term without its network, a conditional generator without
            `start`, and a start of another generator, number or shape.
        FloatingPointError: when a loss is not finite.
        torch.cuda.OutOfMemoryError: when one picture at a time is still too much.
    """
    config = config or generator.recommended_settings("invert", InvertConfig)
    check_networks(config.weights, perceptual, identity)
    targets = square(images, generator.resolution).detach()
    begin = _begin(generator, len(targets), start)
    if start is not None:
        config = replace(config, initial_noise_factor=0.0)
    batcher = MicroBatcher(min(config.batch, len(targets)), _ADVICE)
    found: list[_Search] = []
    done, total = 0, len(targets) * config.steps

    def project(first: int, size: int) -> _Search:
        def tell(search: _Search, pictures: Tensor) -> None:
            if on_step is not None:
                gone = first * config.steps + len(search.history) * len(search.best)
                on_step(
                    InvertStep(gone, total, search.history[-1]["loss"], search.history[-1]["psnr"], pictures.detach)
                )

        part = slice(first, first + size)
        likeness = ReconstructionLoss(targets[part].to(generator.w_avg.device), config.weights, perceptual, identity)
        return _project(generator, likeness, begin.part(part), config, tell)

    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.inference_mode(False), torch.enable_grad():
        while done < len(targets):
            found.append(batcher.run(project, done))
            done += len(found[-1].best)
    return _gather(generator, found, targets, begin.noise, config)


@dataclass(frozen=True)
class _Begin:
    """Where the search for every picture begins."""

    ws: Tensor  # [N, 1 or L, C]
    noise: str | list[Tensor]  # a name, or maps [N, 1, R, R]
    spread: float  # the distance of w from its mean, root mean square

    def part(self, part: slice) -> _Begin:
        noise = self.noise if isinstance(self.noise, str) else [maps[part] for maps in self.noise]
        return replace(self, ws=self.ws[part], noise=noise)


@torch.no_grad()
def _begin(generator: Generator, count: int, start: Latents | None) -> _Begin:
    mean = generator.w_avg
    if start is None:
        if generator.c_dim:
            raise ValueError(
                "Got a conditional generator and nothing to start from; pass start=sample(generator, "
                "seeds, psi=0, label=...), one latent a picture."
            )
        z = torch.randn(10_000, generator.z_dim, generator=torch.Generator().manual_seed(123))
        spread = (generator.map(z.to(mean.device))[:, 0] - mean).square().sum(1).mean().sqrt().item()
        return _Begin(mean.expand(count, 1, -1).clone(), "const", spread)
    check_latents(generator, start.ws, start.space, count)
    ws = start.ws.to(mean)
    spread = (ws - mean).square().sum(2).mean().sqrt().item()
    noise = start.noise
    if not isinstance(noise, str):
        noise = [maps.to(mean).reshape(-1, 1, *maps.shape[-2:]).expand(count, -1, -1, -1) for maps in noise]
    return _Begin(ws, noise, spread)


class _Search:
    """The best latent found so far for every picture of a group, and which pictures are finished."""

    def __init__(self, begin: _Begin, rows: int, maps: list[Tensor]) -> None:
        self.ws = begin.ws.expand(-1, rows, -1).clone()  # [N, L, C]
        self.maps = [kept.clone() for kept in maps]  # [N, 1, R, R] each
        self.best = self.ws.new_full((len(self.ws),), math.inf)  # the loss, [N]
        self.psnr = torch.zeros_like(self.best)
        self.steps = torch.zeros_like(self.best, dtype=torch.long)
        self.idle = torch.zeros_like(self.steps)  # steps since it last came closer
        self.finished = torch.zeros_like(self.steps, dtype=torch.bool)
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def take(
        self, at: Tensor, loss: Tensor, close: Tensor, ws: Tensor, maps: list[Tensor], config: InvertConfig
    ) -> None:
        """Keep what came closer. at: the pictures [n] that the rest, a row each, is about."""
        gained = loss < self.best[at]
        better = at[gained]
        self.best[better], self.psnr[better] = loss[gained], close[gained]
        self.ws[better] = ws[gained].expand(-1, self.ws.shape[1], -1)
        for kept, given in zip(self.maps, maps, strict=True):
            kept[better] = given[gained]
        self.steps[at] += 1
        self.idle[at] = torch.where(gained, 0, self.idle[at] + 1)
        if config.stop_psnr:
            self.finished |= self.psnr >= config.stop_psnr
        self.history.append({"loss": self.best.mean().item(), "psnr": self.psnr.mean().item()})


def _project(
    generator: Generator,
    likeness: ReconstructionLoss,
    begin: _Begin,
    config: InvertConfig,
    tell: Callable[[_Search, Tensor], None],
) -> _Search:
    """Search for a group of pictures."""
    rngs = [torch.Generator().manual_seed(config.seed) for _ in begin.ws]  # one a picture: alone or not, the same
    maps: list[Tensor] = []
    if config.optimize_noise:
        fresh = isinstance(begin.noise, str)
        maps = generator.draw_noise(len(rngs), rngs) if fresh else [given.clone() for given in begin.noise]  # type: ignore[union-attr]
    search = _Search(begin, generator.num_ws, maps)
    ws = begin.ws.mean(1, keepdim=True) if config.space != "w+" else begin.ws
    for space, steps in _stages(config):
        if space == "w+":
            ws = search.ws if search.history else ws.expand(-1, generator.num_ws, -1)
        ws = ws.clone().requires_grad_()
        maps = [given.clone().requires_grad_() for given in search.maps]
        optimizer = torch.optim.Adam([ws, *maps], lr=config.lr)
        for index in range(steps):
            at = (~search.finished).nonzero()[:, 0]
            if not len(at):
                break
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_scale(index / steps, config.lr_rampup, config.lr_rampdown)
            away = (
                config.initial_noise_factor
                * begin.spread
                * max(0.0, 1 - index / steps / max(config.noise_ramp_length, 1e-9)) ** 2
            )
            wandered = torch.stack([torch.randn(ws.shape[1:], generator=rngs[i]) for i in at.tolist()]).to(ws)
            here = ws[at] + away * wandered  # [n, 1 or L, C]
            noise: Noise = [given[at] for given in maps] or _rows(begin.noise, at)
            pictures = generator.synthesize(here.expand(-1, generator.num_ws, -1), noise)
            loss = likeness(pictures, at)
            if not loss.isfinite().all():
                raise FloatingPointError(f"Step {index} has a loss of {loss.tolist()}; lower the learning rate.")
            close = psnr(pictures.detach(), likeness.targets[at])
            search.take(at, loss.detach(), close, here.detach(), [given[at].detach() for given in maps], config)
            held = config.delta * _scatter(here, begin.spread) + config.noise_reg * _structure(maps, at)
            optimizer.zero_grad(set_to_none=True)
            (loss.sum() + held).backward()  # a sum, so that a picture's gradient is its own
            optimizer.step()
            _normalise(maps)
            tell(search, pictures)
            if config.patience:
                search.finished |= search.idle >= config.patience
        search.idle.zero_()
        search.finished &= search.psnr >= (config.stop_psnr or math.inf)  # what w could do no better, w+ may
    return search


def _stages(config: InvertConfig) -> Iterator[tuple[str, int]]:
    """Spaces in turn, each with its steps."""
    if config.space != "w then w+":
        yield config.space, config.steps
        return
    first = min(max(1, round(config.steps * config.w_steps_share)), max(1, config.steps - 1))
    yield "w", first
    if first < config.steps:
        yield "w+", config.steps - first


def _rows(noise: str | list[Tensor], at: Tensor) -> Noise:
    return noise if isinstance(noise, str) else [maps[at] for maps in noise]  # type: ignore[return-value]


def _scatter(ws: Tensor, spread: float) -> Tensor:
    """How far rows lie from the mean row, [n, L, C] -> one number, in squared spreads: the delta regulariser of e4e
    (arXiv:2102.02766, section 4.2), about the mean instead of the first row."""
    return (ws - ws.mean(1, keepdim=True)).square().sum(2).mean(1).sum() / max(spread, 1e-8) ** 2


def _structure(maps: list[Tensor], at: Tensor) -> Tensor | float:
    """What noise maps have in common with themselves a pixel further, at every size down to 8 (StyleGAN2, appendix D):
    pictures hidden in the noise show there."""
    total: Tensor | float = 0.0
    for whole in maps:
        one = whole[at]
        while True:
            for side in (2, 3):
                total = total + (one * one.roll(1, side)).mean((1, 2, 3)).square().sum()
            if one.shape[-1] <= 8:
                break
            one = torch.nn.functional.avg_pool2d(one, 2) * 2  # the mean of four halves the deviation
    return total


@torch.no_grad()
def _normalise(maps: list[Tensor]) -> None:
    """Back to mean 0 and deviation 1, map by map."""
    for one in maps:
        one -= one.mean((2, 3), keepdim=True)
        one *= one.square().mean((2, 3), keepdim=True).clamp(min=1e-12).rsqrt()


def _gather(
    generator: Generator, found: list[_Search], targets: Tensor, noise: str | list[Tensor], config: InvertConfig
) -> Inversion:
    ws = torch.cat([search.ws for search in found]).detach().cpu()
    if config.optimize_noise:
        noise = [torch.cat(maps) for maps in zip(*(search.maps for search in found), strict=True)]
    kept = noise if isinstance(noise, str) else [maps.detach().cpu() for maps in noise]
    latents = Latents(ws, kept, generator.space())
    longest = max(len(search.history) for search in found)
    shares = [len(search.best) / len(targets) for search in found]
    history = [
        {
            key: sum(
                share * search.history[min(index, len(search.history) - 1)][key]
                for share, search in zip(shares, found, strict=True)
            )
            for key in ("loss", "psnr")
        }
        for index in range(longest)
    ]

    def all_of(name: str) -> list[float]:
        return torch.cat([getattr(search, name) for search in found]).tolist()

    pictures = render(generator, latents, config.batch)
    return Inversion(
        latents, pictures, targets, all_of("best"), all_of("psnr"), [int(n) for n in all_of("steps")], history, config
    )
