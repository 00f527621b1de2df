"""StyleGAN-NADA (Gal et al., arXiv:2108.00946): move a generator into a new domain along the direction of a text.

Two generators start equal. The teacher stays; the student is trained so that every image moves, in the space of the
guides, parallel to the text's own move, and keeps what makes it itself.

A batch that is too large for the memory passes in chunks: activations of one chunk live at a time and are computed
again on the way back (Chen et al., arXiv:1604.06174), while the embeddings of the whole batch meet in one loss.

Letters: N latents a step, L rows of W+, C width of a row, V views, D embedding, R a layer's resolution.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .clip import Aim, ClipGuide, ImageShift, TextShift, as_guides, take_aim
from .domains import Domain
from .generators import Generator, Noise
from .layers import (
    Chosen,
    LayerChoice,
    candidates,
    choose,
    first_look,
    only_trainable,
    parameter_names,
    refuse_unfit,
)
from .losses import TERMS, embed, objective, shared_views
from .memory import Portion
from .precision import PRECISIONS, arithmetic, gradient_scale, tf32
from .processes import add_up, count, gather, rank, refuse_uneven, share
from .prompts import TEMPLATES
from .runs import RunState, fingerprint, load_run, save_run
from .settings import check, setting


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of one adaptation. The defaults are the paper's (section 4, appendix I) for a published generator."""

    steps: int = setting(300, "optimiser steps", low=1, high=100_000)
    batch: int = setting(2, "latents a step", low=1, high=256)
    lr: float = setting(0.002, "Adam's learning rate", low=1e-7, high=1.0, step=1e-4)
    schedule: str = setting("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup: int = setting(10, "steps over which the learning rate rises from zero", low=0, high=10_000)
    beta1: float = setting(0.0, "Adam's first decay", low=0.0, high=0.999, step=0.01)
    beta2: float = setting(0.992, "Adam's second decay", low=0.0, high=0.99999, step=0.001)
    clip: float = setting(10.0, "longest gradient, as a norm over all trained weights", low=1e-6, high=1e6,
                          step=0.5)  # fmt: skip
    ema: float = setting(0.0, "decay of the averaged weights that are returned; 0 returns the last ones",
                         low=0.0, high=0.9999, step=0.001)  # fmt: skip
    terms: dict[str, float] = setting({"direction": 1.0}, "weights of the loss terms", low=0.0, high=1e4, step=0.05,
                                        choices=tuple(TERMS))  # fmt: skip
    views: int = setting(0, "augmented views a guide judges each pair by, alike before and after; 0: the images as "
                            "they are", low=0, high=16)  # fmt: skip
    psi: float = setting(1.0, "truncation of the training latents", low=0.0, high=1.0, step=0.05)
    label: int | None = setting(None, "class of a conditional generator", low=0)
    noise: str = setting("random", "noise maps, shared by both generators", choices=("random", "const", "none"))
    seed: int = setting(0, "seed of everything random in the run", low=0, high=2**32 - 1)
    autosave_every: int = setting(50, "write the autosave file every so many steps", low=1, high=100_000)
    chunk: int = setting(0, "latents that pass through the networks at once, with the same result for less memory; 0: "
                            "the whole batch", low=0, high=256)  # fmt: skip
    precision: str = setting("fp32", "arithmetic of the generators; all but fp32 is quicker, where the machine has it, "
                                     "and changes the pictures a little", choices=tuple(PRECISIONS))  # fmt: skip
    checkpointing: int = setting(0, "blocks of at least so many pixels a side are computed again on the way back, with "
                                    "the same result for less memory; 0: none", low=0, high=1024)  # fmt: skip
    layers: LayerChoice = field(default_factory=LayerChoice)

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.layers, LayerChoice):
            raise ValueError(f"AdaptConfig.layers is {self.layers!r}, expected a LayerChoice, such as LayerChoice().")
        if not any(self.terms.values()):
            raise ValueError("AdaptConfig.terms weighs nothing; give at least one term a weight, as direction 1.")


@dataclass(frozen=True)
class Step:
    """One finished step.

    images: gives the student's latest batch [N, 3, H, W], detached; a preview nobody asks for costs nothing.
    generator: the student itself, in training; look, do not change. Its weights are the latest, not their average.
    """

    index: int
    steps: int
    loss: float
    terms: dict[str, float]
    layers: tuple[str, ...]
    movement: tuple[float, ...]
    images: Callable[[], Tensor]
    generator: Generator


@dataclass(frozen=True)
class Adaptation:
    """A finished run: the adapted generator, one record a step (index, loss, terms, layers, movement), the settings,
    and what the run changed, on the CPU, to be saved with `save_domain` or applied in another strength."""

    generator: Generator
    history: list[dict[str, Any]]
    config: AdaptConfig
    domain: Domain


def adapt(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift | ImageShift,
    config: AdaptConfig | None = None,
    on_step: Callable[[Step], None] | None = None,
    autosave: str | Path | None = None,
    resume: bool = False,
) -> Adaptation:
    """Train a copy of `generator` along `shift`; the one given stays bit-identical.

    The run lives on the generator's device; the guides must be there too. Same seed, CPU and thread count:
    same weights (not checked on GPUs, where some backward passes are not deterministic). When memory runs out, the
    step is done again with half as many latents at once, and so are those that follow.
    Processes that torch.distributed has joined share each batch; steps and autosaves are those of a run by one, and
    process 0 alone writes. The images of a step are then the own share's.
    on_step is called after every step, and whatever it raises ends the run. autosave names a file that is rewritten
    every `config.autosave_every` steps and at the end; with `resume` a run goes on from that file, if it is there, to
    exactly the weights it would have reached uninterrupted (up to rounding, where the chunks differ).

    Raises:
        ValueError: for layers, labels, guides, texts, devices or numbers of processes that do not fit, and for broken
            weights.
        FileExistsError: when the autosave file is already there and `resume` was not asked for.
        OSError: when the autosave file has no place to go.
        CheckpointError: when the autosave belongs to another run.
        FloatingPointError: when a step's loss or gradient is not finite; the weights have not taken it in.
        torch.cuda.OutOfMemoryError: when one latent at a time is still too many; the message says what to do.
    """
    config = config or AdaptConfig()
    refuse_unfit(generator, guides, config.label)
    refuse_uneven(config.batch)
    _refuse_autosave(autosave, resume)
    rng = torch.Generator().manual_seed(config.seed)
    teacher, student = generator, copy.deepcopy(generator).requires_grad_(False).eval()
    student.source = None  # the file's weights are what it will no longer have
    student.recompute = config.checkpointing
    start = first_look(teacher, config.seed, config.label) if isinstance(shift, ImageShift) else None
    aims = take_aim(guides, shift, start)
    run = _Run(config, student, rng)
    identity = _identity(teacher, guides, shift, config) if autosave is not None else ""
    if autosave is not None and resume and Path(autosave).exists():
        run.restore(load_run(autosave, identity))

    def compare(drawn: _Drawn, chunk: int) -> tuple[Tensor, float, dict[str, float]]:
        """Where a step's memory goes, and so what is done again if there is too little. It leaves gradients only."""
        run.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # the same latents, noise and views, before ...
            _, before = _see(teacher, aims, drawn, chunk, config.precision)
        trained = parameter_names(config.layers, run.chosen.layers)
        with only_trainable(student, trained), torch.enable_grad(), tf32(config.precision == "tf32"):
            images, after = _see(student, aims, drawn, chunk, config.precision)  # ... and after
            loss, terms = objective(aims, config.terms, gather(before), gather(after))
            (loss * run.gradient_scale).backward()
        return images, loss.item(), terms

    for index in range(run.index, config.steps):
        if config.layers.mode != "adaptive" or index % config.layers.every == 0:
            run.chosen = choose(config.layers, student, aims, rng, config.label, run.voters, config.precision)
        drawn = _draw(teacher, config, rng)
        # What one process would do again, the others would wait for in vain.
        images, loss, terms = run.portion.fit(compare, drawn) if count() == 1 else compare(drawn, run.portion.size)
        run.learn(index, loss)
        run.record(index, loss, terms)
        due = (index + 1) % config.autosave_every == 0 or index + 1 == config.steps
        if autosave is not None and due and not rank():
            save_run(autosave, run.state(), identity)
        if on_step is not None:
            on_step(Step(index, config.steps, **run.last(), images=images.detach, generator=student))

    run.settle()
    domain = Domain.between(teacher, student, _provenance(teacher, guides, shift, config))
    return Adaptation(student, run.history, config, domain)


def _refuse_autosave(autosave: str | Path | None, resume: bool) -> None:
    """Find out before the work, not in it, that it cannot be kept."""
    if autosave is None:
        if resume:
            raise ValueError("resume was asked for without an autosave file to go on from; name it.")
        return
    path = Path(autosave)
    if path.exists() and not resume:
        raise FileExistsError(f"{path} is already there; resume from it, remove it, or name another autosave file.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it as the autosave.")
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is a file; name another place for the autosave.")
    path.parent.mkdir(parents=True, exist_ok=True)


class _Run:
    """What changes from step to step: weights, their average, the optimiser, the layers in force, the history."""

    def __init__(self, config: AdaptConfig, student: Generator, rng: torch.Generator) -> None:
        self.config, self.student, self.rng = config, student, rng
        self.trainable = trainable = _trainable(student, config)
        self.optimizer = torch.optim.Adam(trainable.values(), lr=config.lr, betas=(config.beta1, config.beta2))
        self.average = {n: p.detach().clone() for n, p in trainable.items()} if config.ema else {}
        self.gradient_scale = gradient_scale(config.precision, student.resolution)
        self.portion = Portion(min(config.chunk or config.batch, config.batch))
        self.voters = Portion(min(config.layers.chunk, config.layers.batch))
        self.chosen = Chosen(())
        self.history: list[dict[str, Any]] = []
        self.index = 0

    def learn(self, index: int, loss: float) -> None:
        """One optimiser step. Gradients start as None, not zero: Adam then leaves unchosen layers and moments alone."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _rate(self.config, index)
        slopes = [p.grad for p in self.trainable.values() if p.grad is not None]
        if self.gradient_scale != 1:
            torch._foreach_div_(slopes, self.gradient_scale)
        add_up(slopes)
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.clip).item()
        if not math.isfinite(loss + norm):  # said before the weights take it in
            raise FloatingPointError(f"step {index} has loss {loss} and a gradient of norm {norm}; lower the learning "
                                     "rate or the weights of the terms.")  # fmt: skip
        self.optimizer.step()
        keep = min(self.config.ema, (1 + index) / (10 + index))  # a short memory first, or the source would linger
        for name, mean in self.average.items():
            mean.lerp_(self.trainable[name].detach(), 1 - keep)

    def record(self, index: int, loss: float, terms: dict[str, float]) -> None:
        self.history.append({"index": index, "loss": loss, "terms": terms, "layers": self.chosen.names,
                             "movement": self.chosen.movement})  # fmt: skip
        self.index = index + 1

    def last(self) -> dict[str, Any]:
        return {key: value for key, value in self.history[-1].items() if key != "index"}

    def settle(self) -> None:
        """Put the averaged weights in place, where an average was asked for."""
        with torch.no_grad():
            for name, mean in self.average.items():
                self.trainable[name].copy_(mean)
        self.optimizer.zero_grad(set_to_none=True)
        self.student.recompute = 0

    def state(self) -> RunState:
        moments = {
            name: {k: v for k, v in self.optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
            for name, p in self.trainable.items()
        }
        weights = {name: p.detach() for name, p in self.trainable.items()}
        rng, names = self.rng.get_state(), self.chosen.names
        return RunState(self.index, weights, self.average, moments, rng, names, self.history)

    def restore(self, state: RunState) -> None:
        with torch.no_grad():
            for name, p in self.trainable.items():
                p.copy_(state.weights[name])
                if name in state.average:
                    self.average[name].copy_(state.average[name])
                if name in state.moments:
                    # Adam counts its steps on the CPU and keeps its moments beside the weights.
                    moments = state.moments[name].items()
                    self.optimizer.state[p] = {k: v.clone() if k == "step" else v.to(p) for k, v in moments}
        self.rng.set_state(state.rng)
        self.index = state.index
        self.history = [{**r, "layers": tuple(r["layers"]), "movement": tuple(r["movement"])} for r in state.history]
        known = {layer.name: layer for layer in self.student.layers()}
        self.chosen = Chosen(tuple(known[name] for name in state.chosen), self.history[-1]["movement"])


def _trainable(student: Generator, config: AdaptConfig) -> dict[str, Tensor]:
    """Every parameter the run may ever train, by name."""
    names = parameter_names(config.layers, candidates(config.layers, student))
    return {name: p for name, p in student.named_parameters() if name in names}


def _rate(config: AdaptConfig, index: int) -> float:
    """The schedule's factor at a step: a linear rise, because the first edits have no direction yet, then its shape."""
    rise = min(1.0, (index + 1) / (config.warmup + 1))
    if config.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * index / config.steps))


@dataclass(frozen=True)
class _Drawn:
    """What both generators share in a step."""

    ws: Tensor  # [N, L, C]
    noise: Noise  # a name, or one map [N, 1, R, R] a convolution
    look: Callable[[Tensor], Tensor]  # images [n, 3, H, W] -> their views [V n, 3, H, W]

    def parts(self, chunk: int) -> list[tuple[Tensor, Noise]]:
        """Latents with their noise, at most `chunk` at a time."""
        latents = self.ws.split(chunk)
        if isinstance(self.noise, str):
            return [(part, self.noise) for part in latents]
        return list(zip(latents, zip(*(maps.split(chunk) for maps in self.noise), strict=True), strict=True))


@torch.no_grad()
def _draw(teacher: Generator, config: AdaptConfig, rng: torch.Generator) -> _Drawn:
    device = teacher.w_avg.device
    z = torch.randn(config.batch, teacher.z_dim, generator=rng).to(device)
    ws = teacher.map(z, teacher.one_hot(config.label, config.batch), config.psi)
    noise: Noise = teacher.draw_noise(config.batch, rng) if config.noise == "random" else config.noise  # type: ignore[assignment]
    noise = noise if isinstance(noise, str) else [share(maps) for maps in noise]
    return _Drawn(share(ws), noise, shared_views(config.views, teacher.resolution, rng))


def _see(
    generator: Generator, aims: Sequence[Aim], drawn: _Drawn, chunk: int, precision: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The images [N, 3, H, W], detached, and every guide's embeddings [V N, D] of their views, chunk after chunk."""

    def see(ws: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        with arithmetic(precision, ws.device):
            images = generator.synthesize(ws, noise)
        return images, *embed(aims, drawn.look(images))

    if chunk >= len(drawn.ws):
        images, *seen = see(drawn.ws, drawn.noise)
        return images.detach(), tuple(seen)
    # Nothing in here draws random numbers, so there are none to keep for the second time.
    parts = [checkpoint(see, ws, noise, use_reentrant=False, preserve_rng_state=False)
             for ws, noise in drawn.parts(chunk)]  # fmt: skip
    images, *seen = (torch.cat(column) for column in zip(*parts, strict=True))
    return images.detach(), tuple(seen)


def _provenance(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift | ImageShift,
    config: AdaptConfig,
) -> dict[str, Any]:
    """What it takes to make the same weights again, JSON-ready. Templates are told where they are not the usual."""
    told: dict[str, Any] = {"images": len(shift.images)} if isinstance(shift, ImageShift) else {
        "prompts": {"source": shift.source, "target": shift.target}
        | ({} if shift.templates == TEMPLATES else {"templates": shift.templates})
    }  # fmt: skip
    named = [{"name": g.name, "fingerprint": g.fingerprint, "weight": weight} for g, weight in as_guides(guides)]
    return {"source": {"sha256": teacher.source}, **told, "guides": named, "config": asdict(config)}


def _identity(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: TextShift | ImageShift,
    config: AdaptConfig,
) -> str:
    told = {
        "generator": teacher.spec(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("autosave_every", "chunk", "checkpointing")},
        "guides": [(guide.fingerprint, weight) for guide, weight in as_guides(guides)],
        "shift": asdict(shift) if isinstance(shift, TextShift) else "images",
    }
    images = {"shift.images": shift.images} if isinstance(shift, ImageShift) else {}
    return fingerprint({**teacher.state_dict(), **images}, told)
