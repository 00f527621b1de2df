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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import anchor, metrics
from .clip import (
    Aim,
    ClipGuide,
    ImageShift,
    Shift,
    TextShift,
    as_guides,
    parts_of,
    starts_at_images,
    take_aim,
)
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
from .likeness import Features, Likeness, Recogniser, refuse_blind
from .losses import TERMS, embed, objective, shared_views
from .low_rank import factors, fold, hand_on
from .memory import Portion
from .overshoot import Candidate, best, is_over, why
from .precision import PRECISIONS, arithmetic, gradient_scale, tf32
from .processes import add_up, count, gather, rank, refuse_uneven, share
from .prompts import TEMPLATES
from .runs import RunState, fingerprint, load_run, save_run
from .settings import check, setting

_LOOKED_AT = 64  # latents that a judge looks at


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
    anchor: float = setting(0.0, "weight of the distance of the trained weights from where they started, as a share "
                            "of their length; it needs more steps", low=0.0, high=1e6, step=0.5)  # fmt: skip
    fisher: int = setting(0, "latents that tell how much each weight matters to the anchor; 0: all alike",
                          low=0, high=1000)  # fmt: skip
    keep_every: int = setting(0, "let a held-out guide look every so many steps, and return what it liked best; 0: "
                                 "return the last state", low=0, high=100_000)  # fmt: skip
    patience: int = setting(0, "looks without a better state, one after another, after which the run ends; 0: never",
                            low=0, high=1000)  # fmt: skip
    mirror: bool = setting(False, "mirror every second view, where there are two or more")
    patches: int = setting(0, "further views, each of a quarter of the picture: textures close by", low=0, high=16)
    lpips: float = setting(0.0, "weight of LPIPS between every picture and what it was before, which keeps its look",
                           low=0.0, high=1e4, step=0.05)  # fmt: skip
    id: float = setting(0.0, "weight of 1 - cosine of the faces before and after, which keeps the person", low=0.0,
                        high=1e4, step=0.05)  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.layers, LayerChoice):
            raise ValueError(f"AdaptConfig.layers is {self.layers!r}, expected a LayerChoice, such as LayerChoice().")
        if self.fisher and not self.anchor:
            raise ValueError("AdaptConfig.fisher has no anchor to weigh; give the anchor a weight, such as 10.")
        if self.patience and not self.keep_every:
            raise ValueError("AdaptConfig.patience has no looks to count; set keep_every, such as 25.")
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
    and what the run changed, on the CPU, to be saved with `save_domain` or applied in another strength. Where a judge
    chose among candidates, their figures are in the history and `chosen_because` says why it is this one."""

    generator: Generator
    history: list[dict[str, Any]]
    config: AdaptConfig
    domain: Domain
    chosen_because: str = ""


def adapt(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig | None = None,
    on_step: Callable[[Step], None] | None = None,
    autosave: str | Path | None = None,
    resume: bool = False,
    judge: ClipGuide | None = None,
    perceptual: Features | None = None,
    identity: Recogniser | None = None,
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
    judge: a guide that is not among `guides`; with `config.keep_every` it chooses which step's weights are returned.
    perceptual, identity: the networks of `config.lpips` and `config.id`, which keep pictures near what they were.

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
    refuse_unfit(generator, [*as_guides(guides), *([judge] if judge else [])], config.label)
    refuse_uneven(config.batch)
    _refuse_autosave(autosave, resume)
    _refuse_judge(judge, guides, config)
    kept = _kept(config, perceptual, identity)
    rng = torch.Generator().manual_seed(config.seed)
    teacher, student = generator, copy.deepcopy(generator).requires_grad_(False).eval()
    student.source = None  # the file's weights are what it will no longer have
    student.recompute = config.checkpointing
    start = first_look(teacher, config.seed, config.label) if starts_at_images(shift) else None
    aims = take_aim(guides, shift, start)
    run = _Run(config, teacher, student, rng)
    importance = anchor.fisher(student, aims, run.weights, config.fisher, config.seed, config.label)
    look = _witness(judge, teacher, shift, start, config) if judge else None
    mark = _identity(teacher, guides, shift, config, judge) if autosave is not None else ""
    if autosave is not None and resume and Path(autosave).exists():
        run.restore(load_run(autosave, mark))

    def compare(drawn: _Drawn, chunk: int) -> tuple[Tensor, float, dict[str, float]]:
        """Where a step's memory goes, and so what is done again if there is too little. It leaves gradients only."""
        run.forget()
        with torch.no_grad():  # the same latents, noise and views, before ...
            source, before, _ = _see(teacher, aims, drawn, chunk, config.precision)
            likeness = Likeness(source, kept, perceptual, identity) if kept else None
        trained = parameter_names(config.layers, run.chosen.layers)
        with only_trainable(student, trained), torch.enable_grad(), tf32(config.precision == "tf32"):
            images, after, unlike = _see(student, aims, drawn, chunk, config.precision, likeness)  # ... and after
            loss, terms = objective(aims, config.terms, gather(before), gather(after))
            for name, values in unlike.items():
                (whole,) = gather([values])
                loss, terms = loss + kept[name] * whole.mean(), {**terms, name: float(whole.detach().mean())}
            if config.anchor:
                held = anchor.distance(run.weights, run.start, importance)
                once = held / count()  # the processes' gradients will be added up
                loss = loss + config.anchor * (once + (held - once).detach())
                terms = {**terms, "anchor": float(held.detach())}
            (loss * run.gradient_scale).backward()
        return images, loss.item(), terms

    for index in range(run.index, config.steps):
        if run.is_over:
            break
        if config.layers.mode != "adaptive" or index % config.layers.every == 0:
            run.chosen = choose(config.layers, student, aims, rng, config.label, run.voters, config.precision)
        drawn = _draw(teacher, config, rng)
        # What one process would do again, the others would wait for in vain.
        images, loss, terms = run.portion.fit(compare, drawn) if count() == 1 else compare(drawn, run.portion.size)
        run.learn(index, loss)
        run.record(index, loss, terms)
        ending = index + 1 == config.steps
        if look is not None and ((index + 1) % config.keep_every == 0 or ending):
            run.consider(look)
        due = (index + 1) % config.autosave_every == 0 or ending or run.is_over
        if autosave is not None and due and not rank():
            save_run(autosave, run.state(), mark)
        if on_step is not None:
            on_step(Step(index, config.steps, **run.last(), images=images.detach, generator=student))

    run.settle()
    because = why(run.candidates, judge.name, run.is_over) if judge else ""
    domain = Domain.between(teacher, student, _provenance(teacher, guides, shift, config, because))
    return Adaptation(student, run.history, config, domain, because)


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


def _refuse_judge(
    judge: ClipGuide | None, guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]], config: AdaptConfig
) -> None:
    if judge is None:
        if config.keep_every:
            raise ValueError("AdaptConfig.keep_every is set, and nobody is there to look; give adapt a judge, a guide "
                             "that is not among the guides.")  # fmt: skip
        return
    if not config.keep_every:
        raise ValueError(f"got the judge {judge.name}, who would never look; set AdaptConfig.keep_every, such as 25.")
    if judge.fingerprint in {guide.fingerprint for guide, _ in as_guides(guides)}:
        raise ValueError(f"got {judge.name} as judge and as guide; a run flatters its own guides, so take another one.")


def _kept(config: AdaptConfig, perceptual: Features | None, identity: Recogniser | None) -> dict[str, float]:
    """The terms that hold pictures near what they were, and their weights."""
    weights = {name: value for name, value in (("lpips", config.lpips), ("id", config.id)) if value}
    if weights:
        refuse_blind(weights, perceptual, identity)
    return weights


def _witness(
    judge: ClipGuide, teacher: Generator, shift: Shift, start: Tensor | None, config: AdaptConfig
) -> Callable[[Generator, int, int], Candidate]:
    """What the judge sees in the same latents at any step. They have random numbers of their own."""
    (aim,) = take_aim(judge, shift, start)
    goal, way = aim.goal.cpu(), aim.direction.cpu()
    z = torch.randn(_LOOKED_AT, teacher.z_dim, generator=torch.Generator().manual_seed(config.seed))
    with torch.no_grad():
        z = z.to(teacher.w_avg.device)
        ws = teacher.map(z, teacher.one_hot(config.label, _LOOKED_AT), config.psi)

    @torch.no_grad()
    def see(generator: Generator, chunk: int) -> Tensor:
        return torch.cat([metrics.embed(judge, generator.synthesize(part)) for part in ws.split(chunk)])

    before: list[Tensor] = []  # the source, seen once, when it is first asked for

    def look(student: Generator, steps: int, chunk: int) -> Candidate:
        before.extend([] if before else [see(teacher, chunk)])
        after = see(student, chunk)
        return Candidate(steps, metrics.quality(after, goal) - metrics.quality(before[0], goal),
                         metrics.direction(before[0], after, way),
                         metrics.diversity(after) / max(metrics.diversity(before[0]), 1e-9))  # fmt: skip

    return look


class _Run:
    """What changes from step to step: weights, their average, the optimiser, the layers in force, the history."""

    def __init__(self, config: AdaptConfig, teacher: Generator, student: Generator, rng: torch.Generator) -> None:
        self.config, self.student, self.rng = config, student, rng
        self.weights = _trainable(student, config)  # of the network
        self.start = {name: teacher.get_parameter(name).detach() for name in self.weights}
        self.folded = config.layers.train == "low-rank"
        trainable = factors(self.weights, config.layers.rank, config.seed) if self.folded else self.weights
        self.trainable = trainable  # what the optimiser moves: the same, or what they are made of
        self.optimizer = torch.optim.Adam(trainable.values(), lr=config.lr, betas=(config.beta1, config.beta2))
        self.average = {n: p.detach().clone() for n, p in trainable.items()} if config.ema else {}
        self.gradient_scale = gradient_scale(config.precision, student.resolution)
        self.portion = Portion(min(config.chunk or config.batch, config.batch))
        self.voters = Portion(min(config.layers.chunk, config.layers.batch))
        self.chosen = Chosen(())
        self.history: list[dict[str, Any]] = []
        self.candidates: list[Candidate] = []
        self.best: dict[str, Tensor] = {}  # of the best candidate so far, on the CPU
        self.index = 0

    def forget(self) -> None:
        """Gradients become None, not zero."""
        for one in (*self.weights.values(), *self.trainable.values()):
            one.grad = None

    def learn(self, index: int, loss: float) -> None:
        """One optimiser step. Gradients start as None, not zero: Adam then leaves unchosen layers and moments alone."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _rate(self.config, index)
        if self.folded:
            hand_on(self.weights, self.trainable)
        slopes = [p.grad for p in self.trainable.values() if p.grad is not None]
        if self.gradient_scale != 1:
            torch._foreach_div_(slopes, self.gradient_scale)
        add_up(slopes)
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.clip).item()
        if not math.isfinite(loss + norm):  # said before the weights take it in
            raise FloatingPointError(f"step {index} has loss {loss} and a gradient of norm {norm}; lower the learning "
                                     "rate or the weights of the terms.")  # fmt: skip
        self.optimizer.step()
        if self.folded:
            fold(self.weights, self.start, self.trainable)
        keep = min(self.config.ema, (1 + index) / (10 + index))  # a short memory first, or the source would linger
        for name, mean in self.average.items():
            mean.lerp_(self.trainable[name].detach(), 1 - keep)

    def record(self, index: int, loss: float, terms: dict[str, float]) -> None:
        self.history.append({"index": index, "loss": loss, "terms": terms, "layers": self.chosen.names,
                             "movement": self.chosen.movement})  # fmt: skip
        self.index = index + 1

    def last(self) -> dict[str, Any]:
        return {key: value for key, value in self.history[-1].items() if key not in ("index", "candidate")}

    def consider(self, look: Callable[[Generator, int, int], Candidate]) -> None:
        """Let the judge look at what would be returned now, and keep it if there was nothing better."""
        latest = {name: p.detach().clone() for name, p in self.trainable.items()} if self.average else {}
        self._put(self.average)
        self.candidates.append(look(self.student, self.index, min(self.portion.size, 8)))
        self.history[-1]["candidate"] = asdict(self.candidates[-1])
        if best(self.candidates) == len(self.candidates) - 1:
            self.best = {name: p.detach().to("cpu", copy=True) for name, p in self.trainable.items()}
        self._put(latest)

    @property
    def is_over(self) -> bool:
        return is_over(self.candidates, self.config.patience)

    def settle(self) -> None:
        """Put in place what was chosen, or the averaged weights, where an average was asked for."""
        self._put(self.best or self.average)
        self.forget()
        self.student.recompute = 0

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.trainable[name].copy_(value)
        if self.folded:
            fold(self.weights, self.start, self.trainable)

    def state(self) -> RunState:
        moments = {
            name: {k: v for k, v in self.optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
            for name, p in self.trainable.items()
        }
        weights = {name: p.detach() for name, p in self.trainable.items()}
        rng, names = self.rng.get_state(), self.chosen.names
        return RunState(self.index, weights, self.average, moments, rng, names, self.history, self.best)

    def restore(self, state: RunState) -> None:
        self._put({name: state.weights[name] for name in self.trainable})
        for name, p in self.trainable.items():
            if name in state.average:
                self.average[name].copy_(state.average[name])
            if name in state.moments:
                # Adam counts its steps on the CPU and keeps its moments beside the weights.
                moments = state.moments[name].items()
                self.optimizer.state[p] = {k: v.clone() if k == "step" else v.to(p) for k, v in moments}
        self.rng.set_state(state.rng)
        self.index = state.index
        self.history = [{**r, "layers": tuple(r["layers"]), "movement": tuple(r["movement"])} for r in state.history]
        self.candidates = [Candidate(**record["candidate"]) for record in self.history if "candidate" in record]
        self.best = state.best
        known = {layer.name: layer for layer in self.student.layers()}
        self.chosen = Chosen(tuple(known[name] for name in state.chosen), self.history[-1]["movement"])


def _trainable(student: Generator, config: AdaptConfig) -> dict[str, Tensor]:
    """Every parameter the run may ever train, by name."""
    layers = candidates(config.layers, student)
    names = parameter_names(config.layers, layers)
    if not names:
        told = ", ".join(layer.name for layer in layers)
        raise ValueError(f"LayerChoice.train is {config.layers.train!r}, of which {told} has nothing; name other "
                         "layers, or train their weights.")  # fmt: skip
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
    return _Drawn(share(ws), noise, _views(config, teacher.resolution, rng))


def _views(config: AdaptConfig, size: int, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    return shared_views(config.views, size, rng, mirror=config.mirror, patches=config.patches)


def _see(
    generator: Generator, aims: Sequence[Aim], drawn: _Drawn, chunk: int, precision: str,
    likeness: Likeness | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:  # fmt: skip
    """The images [N, 3, H, W], detached, every guide's embeddings [V N, D] of their views, and by name how unlike each
    image is to what it was [N], chunk after chunk."""
    names = tuple(likeness.weights) if likeness else ()

    def see(ws: Tensor, noise: Noise, rows: Tensor) -> tuple[Tensor, ...]:
        with arithmetic(precision, ws.device):
            images = generator.synthesize(ws, noise)
        unlike = likeness.terms(images, rows) if likeness else {}
        return images, *(unlike[name] for name in names), *embed(aims, drawn.look(images))

    rows = torch.arange(len(drawn.ws), device=drawn.ws.device)
    if chunk >= len(drawn.ws):
        images, *seen = see(drawn.ws, drawn.noise, rows)
    else:
        # Nothing in here draws random numbers, so there are none to keep for the second time.
        parts = [checkpoint(see, ws, noise, part, use_reentrant=False, preserve_rng_state=False)
                 for (ws, noise), part in zip(drawn.parts(chunk), rows.split(chunk), strict=True)]  # fmt: skip
        images, *seen = (torch.cat(column) for column in zip(*parts, strict=True))
    first = len(names)
    return images.detach(), tuple(seen[first:]), dict(zip(names, seen[:first], strict=True))


def _provenance(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig,
    because: str,
) -> dict[str, Any]:
    """What it takes to make the same weights again, JSON-ready. Templates are told where they are not the usual."""
    mixed = [{**_told(part), "weight": weight} for part, weight in parts_of(shift)]
    told = {"mixed": mixed} if len(mixed) > 1 else _told(parts_of(shift)[0][0])
    named = [{"name": g.name, "fingerprint": g.fingerprint, "weight": weight} for g, weight in as_guides(guides)]
    chosen = {"chosen_because": because} if because else {}
    return {"source": {"sha256": teacher.source}, **told, "guides": named, "config": asdict(config), **chosen}


def _told(shift: TextShift | ImageShift) -> dict[str, Any]:
    if isinstance(shift, ImageShift):
        return {"images": len(shift.images)}
    own = {} if shift.templates == TEMPLATES else {"templates": shift.templates}
    return {"prompts": {"source": shift.source, "target": shift.target, **own}}


def _identity(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig,
    judge: ClipGuide | None,
) -> str:
    parts = parts_of(shift)
    told = {
        "generator": teacher.spec(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("autosave_every", "chunk", "checkpointing")},
        "guides": [(guide.fingerprint, weight) for guide, weight in as_guides(guides)],
        "judge": judge.fingerprint if judge else None,
        "shift": [(asdict(part) if isinstance(part, TextShift) else "images", weight) for part, weight in parts],
    }
    images = {f"shift.{i}": part.images for i, (part, _) in enumerate(parts) if isinstance(part, ImageShift)}
    return fingerprint({**teacher.state_dict(), **images}, told)
