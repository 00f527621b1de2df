"""Inversion: find the latents whose images come closest to given ones (StyleGAN2, arXiv:1912.04958, appendix D).

Projection starts at the mean of w, explores with noise that fades, and optimizes noise maps under an autocorrelation
penalty. It works in W, which stays editable; in W+ (Image2StyleGAN, arXiv:1904.03189), which comes closer; or in both.

Letters: N images, n of them unfinished, L rows of W+, C width of a row, R pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..guidance.reconstruction import FaceRecognizer, Features, ReconstructionLoss, check_networks, psnr, weight
from ..io.images import square
from ..models.generator import Generator, check_latents
from ..runtime.allocator import keep_freed_memory
from ..runtime.batching import MicroBatcher
from ..runtime.config import setting, settings
from ..runtime.precision import tf32
from ..runtime.schedules import lr_scale
from ..runtime.transfer import fetch
from .sampling import Latents, render

SPACES = ("w", "w+", "w then w+")
_ADVICE = "Take a smaller perceptual network, or none, or a generator of lower resolution."


@settings
class InvertConfig:
    """Settings of an inversion. The defaults suit published generators of aligned faces."""

    space: str = setting("w then w+", "search space: w for editing, w+ for the closest match", choices=SPACES)
    steps: int = setting(500, "optimizer steps", low=1, high=100_000)
    w_steps_share: float = setting(0.4, "share of the steps in w, for w then w+", low=0.05, high=0.95, step=0.05)
    lr: float = setting(0.1, "Adam learning rate", low=1e-6, high=10.0, step=0.01)
    lr_rampup: float = setting(0.05, "share of steps with a rising learning rate", low=0.0, high=1.0, step=0.05)
    lr_rampdown: float = setting(0.25, "share of steps with a falling learning rate", low=0.0, high=1.0, step=0.05)
    mse: float = weight(1.0, "mse")
    coarse: float = weight(0.0, "coarse")
    lpips: float = weight(0.8, "lpips")
    id: float = weight(0.1, "id")
    delta: float = setting(0.01, "weight of the differences between the rows of w+", low=0.0, high=1e4, step=0.01)
    initial_noise_factor: float = setting(0.05, "initial noise, in standard deviations", low=0.0, high=1.0, step=0.01)
    noise_ramp_length: float = setting(0.75, "share of steps until the noise is 0", low=0.0, high=1.0, step=0.05)
    optimize_noise: bool = setting(True, "also optimize the noise maps; off: use the generator's")
    noise_reg: float = setting(1e5, "weight of the autocorrelation of the noise maps", low=0.0, high=1e9, step=1000.0)
    stop_psnr: float = setting(0.0, "stop an image at this PSNR in dB; 0: never", low=0.0, high=100.0, step=0.5)
    patience: int = setting(0, "stop an image after so many steps without improvement; 0: never", low=0, high=100_000)
    batch: int = setting(4, "images at a time; the result is the same", low=1, high=256)
    seed: int = setting(0, "random seed", low=0, high=2**32 - 1)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the reconstruction terms."""
        return {"mse": self.mse, "coarse": self.coarse, "lpips": self.lpips, "id": self.id}


_PLAIN = InvertConfig(delta=0.0, initial_noise_factor=0.0, optimize_noise=False, lr_rampup=0.0, lr_rampdown=0.0)

#: Named settings. "report" has the weights of the report that this project is based on, for comparison.
PRESETS = {
    "default": InvertConfig(),
    "editable": InvertConfig(space="w", optimize_noise=False),
    "report": replace(_PLAIN, space="w+", mse=0.8, lpips=0.5, id=1.0),
}


@dataclass(frozen=True)
class InvertStep:
    """One finished step: the progress in steps of single images, and the mean best loss and PSNR (dB) so far."""

    done: int
    total: int
    loss: float
    psnr: float
    images: Callable[[], Tensor]  # returns the latest images of the unfinished ones [n, 3, R, R], detached


@dataclass(frozen=True)
class Inversion:
    """The best latents found, one per image, on the CPU."""

    latents: Latents  # with noise maps where they were optimized
    images: Tensor  # [N, 3, R, R], rendered from the latents
    targets: Tensor  # [N, 3, R, R] in -1..1
    loss: list[float]
    psnr: list[float]  # dB
    steps: list[int]  # how many each image took
    history: list[dict[str, float]]  # mean best loss and psnr so far, per step
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
    """Find latents of images [N, C, H, W] in -1..1, which are cropped to squares; align photos of faces before.

    Up to rounding, the result of an image does not depend on the others. When memory runs out, fewer run at once.

    Args:
        perceptual, identity: networks of the lpips and id terms, on the generator's device.
        start: latents to start from instead of the mean of w, from an encoder for example; turns exploration off.
        on_step: called after every step; may raise to stop.

    Raises:
        ValueError: for a conditional generator without `start`, a term without its network, a start that does not fit.
        FloatingPointError: when a loss is not finite.
        torch.cuda.OutOfMemoryError: when a single image does not fit.
    """
    config = config or generator.recommended_settings("invert", InvertConfig)
    check_networks(config.weights, perceptual, identity)
    targets = square(images, generator.resolution).detach()
    origin = _origin(generator, len(targets), start)
    if start is not None:
        config = replace(config, initial_noise_factor=0.0)
    total = len(targets) * config.steps

    def project(first: int, size: int) -> _Projection:
        part = slice(first, first + size)
        loss = ReconstructionLoss(targets[part].to(generator.w_avg.device), config.weights, perceptual, identity)
        projection = _Projection(generator, loss, origin.part(part), config)
        for latest in projection.run():
            if on_step is not None:
                done = first * config.steps + len(projection.history) * len(projection.loss)
                on_step(InvertStep(done, total, **projection.history[-1], images=latest.detach))
        return projection

    batcher = MicroBatcher(min(config.batch, len(targets)), _ADVICE)
    projections: list[_Projection] = []
    done = 0
    with keep_freed_memory(generator.w_avg.device), tf32(False), torch.inference_mode(False), torch.enable_grad():
        while done < len(targets):
            projections.append(batcher.run(project, done))
            done += len(projections[-1].loss)
    return _collect(generator, projections, targets, origin.noise, config)


@dataclass(frozen=True)
class _Origin:
    """Where the search of every image starts."""

    ws: Tensor  # [N, 1 or L, C]
    noise: str | list[Tensor]  # a name, or maps [N, 1, R, R]
    spread: float  # root mean square distance of w from its mean

    def part(self, part: slice) -> _Origin:
        noise = self.noise if isinstance(self.noise, str) else [maps[part] for maps in self.noise]
        return replace(self, ws=self.ws[part], noise=noise)


@torch.no_grad()
def _origin(generator: Generator, count: int, start: Latents | None) -> _Origin:
    mean = generator.w_avg
    if start is None:
        if generator.c_dim:
            raise ValueError(
                "Got a conditional generator and nothing to start from; give one start latent per image, such as "
                "samples of its class with psi 0."
            )
        z = torch.randn(10_000, generator.z_dim, generator=torch.Generator().manual_seed(123))
        spread = (generator.map(z.to(mean.device))[:, 0] - mean).square().sum(1).mean().sqrt().item()
        return _Origin(mean.expand(count, 1, -1).clone(), "const", spread)
    check_latents(generator, start.ws, start.space, count)
    ws, noise = start.ws.to(mean), start.noise
    spread = (ws - mean).square().sum(2).mean().sqrt().item()
    if not isinstance(noise, str):
        noise = [maps.to(mean).reshape(-1, 1, *maps.shape[-2:]).expand(count, -1, -1, -1) for maps in noise]
    return _Origin(ws, noise, spread)


class _Projection:
    """The search for a group of images: the best latents and noise maps so far, and which images are finished."""

    def __init__(self, generator: Generator, loss: ReconstructionLoss, origin: _Origin, config: InvertConfig) -> None:
        self.generator, self.loss_function, self.origin, self.config = generator, loss, origin, config
        count = len(origin.ws)
        self.rngs = [
            torch.Generator().manual_seed(config.seed) for _ in range(count)
        ]  # per image, so batching is exact
        self.ws = origin.ws.expand(-1, generator.num_ws, -1).clone()  # [N, L, C]
        self.maps: list[Tensor] = []  # [N, 1, R, R] each
        if config.optimize_noise:
            noise = origin.noise
            self.maps = generator.draw_noise(count, self.rngs) if isinstance(noise, str) else [m.clone() for m in noise]
        self.loss = self.ws.new_full((count,), math.inf)
        self.psnr = torch.zeros_like(self.loss)
        self.steps = [0] * count
        self.idle = [0] * count  # steps without improvement
        self.finished = [False] * count
        self.history: list[dict[str, float]] = []

    def run(self) -> Iterator[Tensor]:
        """Search one space after the other; yields the images of every step."""
        for space, steps in _stages(self.config):
            yield from self._run_stage(space, steps)
            self.idle = [0] * len(self.idle)
            close = [value >= (self.config.stop_psnr or math.inf) for value in self.psnr.tolist()]
            self.finished = [one and other for one, other in zip(self.finished, close, strict=True)]  # w+ comes closer

    def _run_stage(self, space: str, steps: int) -> Iterator[Tensor]:
        config = self.config
        ws = (self.ws if space == "w+" else self.origin.ws.mean(1, keepdim=True)).clone().requires_grad_()
        maps = [layer.clone().requires_grad_() for layer in self.maps]
        optimizer = torch.optim.Adam([ws, *maps], lr=config.lr)
        for index in range(steps):
            active = [row for row, finished in enumerate(self.finished) if not finished]
            if not active:
                break
            optimizer.param_groups[0]["lr"] = config.lr * lr_scale(index / steps, config.lr_rampup, config.lr_rampdown)

            rows = torch.tensor(active).to(ws.device, non_blocking=True)
            explored = ws[rows] + self._exploration(ws, active, index / steps)  # [n, 1 or L, C]
            images = self._synthesize(explored, maps, rows)
            loss = self.loss_function(images, rows)
            improved = self._keep_best(rows, loss, images, explored, maps)
            means = torch.stack([self.loss.mean(), self.psnr.mean()])
            self._record(index, active, *fetch(loss, improved, self.psnr, means))

            spread = config.delta * _row_spread(explored, self.origin.spread)
            penalty = spread + config.noise_reg * _autocorrelation([layer[rows] for layer in maps])
            optimizer.zero_grad(set_to_none=True)
            (loss.sum() + penalty).backward()  # the sum keeps the images' gradients independent
            optimizer.step()
            _normalize(maps)
            yield images
            if config.patience:
                self.finished = [
                    one or idle >= config.patience for one, idle in zip(self.finished, self.idle, strict=True)
                ]

    def _exploration(self, ws: Tensor, active: list[int], progress: float) -> Tensor:
        """Noise on w that fades (StyleGAN2, appendix D)."""
        config = self.config
        fade = max(0.0, 1 - progress / max(config.noise_ramp_length, 1e-9)) ** 2
        noise = torch.stack([torch.randn(ws.shape[1:], generator=self.rngs[index]) for index in active])
        return config.initial_noise_factor * self.origin.spread * fade * noise.to(ws, non_blocking=True)

    def _synthesize(self, ws: Tensor, maps: list[Tensor], rows: Tensor) -> Tensor:
        noise = maps or self.origin.noise
        given = noise if isinstance(noise, str) else [layer[rows] for layer in noise]
        return self.generator.synthesize(ws.expand(-1, self.generator.num_ws, -1), given)  # type: ignore[arg-type]

    @torch.no_grad()
    def _keep_best(self, rows: Tensor, loss: Tensor, images: Tensor, ws: Tensor, maps: list[Tensor]) -> Tensor:
        """Store what improved and return where [n]. loss [n], images and ws belong to the images `rows` [n]."""
        improved = loss < self.loss[rows]
        found = (loss, psnr(images, self.loss_function.targets[rows]), ws, *(layer[rows] for layer in maps))
        for best, new in zip((self.loss, self.psnr, self.ws, *self.maps), found, strict=True):
            # A selection by the mask itself would make the CPU wait for the number of its rows.
            best[rows] = torch.where(improved.view(-1, *[1] * (best.ndim - 1)), new, best[rows])
        return improved

    def _record(
        self,
        index: int,
        active: list[int],
        loss: list[float],
        improved: list[float],
        psnr: list[float],
        means: list[float],
    ) -> None:
        """Count a step and note its results. Raises FloatingPointError when a loss is not finite."""
        if not all(map(math.isfinite, loss)):
            raise FloatingPointError(f"Step {index} has a loss of {loss}; lower the learning rate.")
        for row, better in zip(active, improved, strict=True):
            self.steps[row] += 1
            self.idle[row] = 0 if better else self.idle[row] + 1
        if self.config.stop_psnr:
            for row, value in enumerate(psnr):
                self.finished[row] |= value >= self.config.stop_psnr
        self.history.append({"loss": means[0], "psnr": means[1]})


def _stages(config: InvertConfig) -> list[tuple[str, int]]:
    """The spaces to search in turn, with their steps."""
    if config.space != "w then w+":
        return [(config.space, config.steps)]
    first = min(max(1, round(config.steps * config.w_steps_share)), max(1, config.steps - 1))
    return [("w", first), ("w+", config.steps - first)][: 1 + (first < config.steps)]


def _row_spread(ws: Tensor, spread: float) -> Tensor:
    """The delta regularizer of e4e (arXiv:2102.02766, section 4.2) on [n, L, C], about the mean of the rows."""
    return (ws - ws.mean(1, keepdim=True)).square().sum(2).mean(1).sum() / max(spread, 1e-8) ** 2


def _autocorrelation(maps: list[Tensor]) -> Tensor | float:
    """Squared autocorrelation of noise maps [n, 1, R, R] at every size down to 8: keeps image content out of them."""
    total: Tensor | float = 0.0
    for layer in maps:
        while True:
            for dim in (2, 3):
                total = total + (layer * layer.roll(1, dim)).mean((1, 2, 3)).square().sum()
            if layer.shape[-1] <= 8:
                break
            layer = torch.nn.functional.avg_pool2d(layer, 2) * 2  # the mean of four halves the deviation
    return total


@torch.no_grad()
def _normalize(maps: list[Tensor]) -> None:
    """Set mean 0 and deviation 1, map by map."""
    for layer in maps:
        layer -= layer.mean((2, 3), keepdim=True)
        layer *= layer.square().mean((2, 3), keepdim=True).clamp(min=1e-12).rsqrt()


def _collect(
    generator: Generator, parts: list[_Projection], targets: Tensor, noise: str | list[Tensor], config: InvertConfig
) -> Inversion:
    """Join the projections of all groups and render the result."""
    if config.optimize_noise:
        noise = [torch.cat(maps) for maps in zip(*(part.maps for part in parts), strict=True)]
    stored = noise if isinstance(noise, str) else [maps.detach().cpu() for maps in noise]
    latents = Latents(torch.cat([part.ws for part in parts]).detach().cpu(), stored, generator.space())
    history = []
    for index in range(max(len(part.history) for part in parts)):
        step = {"loss": 0.0, "psnr": 0.0}
        for part in parts:  # a group that finished early keeps its last values
            record = part.history[min(index, len(part.history) - 1)]
            step = {key: step[key] + len(part.loss) / len(targets) * record[key] for key in step}
        history.append(step)
    loss, close = (torch.cat([getattr(part, name) for part in parts]).tolist() for name in ("loss", "psnr"))
    steps = [count for part in parts for count in part.steps]
    return Inversion(latents, render(generator, latents, config.batch), targets, loss, close, steps, history, config)
