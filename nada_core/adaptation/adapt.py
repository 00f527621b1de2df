"""StyleGAN-NADA (Gal et al., arXiv:2108.00946): move a generator into a new domain along the direction of a text.

Two generators start equal. The teacher stays; the student is trained so that every image moves, in the space of the
guides, parallel to the text's own move, and keeps what makes it itself.

A batch that is too large for the memory passes in chunks: activations of one chunk live at a time and are computed
again on the way back (Chen et al., arXiv:1604.06174), while the embeddings of the whole batch meet in one loss.

Letters: N latents a step, L rows of W+, C width of a row, V views, D embedding, R a layer's resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..guidance.augment import shared_augmentation
from ..guidance.clip_losses import embed, objective
from ..guidance.reconstruction import FaceRecognizer, Features, ReconstructionLoss, check_networks
from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import ClipTarget, check_devices, clip_targets, source_images, weighted_guides
from ..models.clip import ClipGuide
from ..models.domain import Domain
from ..models.generator import Generator, Noise
from ..runtime.allocator import keep_freed_memory
from ..runtime.distributed import all_gather, check_batch_size, rank, shard, world_size
from ..runtime.precision import arithmetic, tf32
from . import weight_regularizer as anchor
from .config import AdaptConfig
from .layer_selection import choose, only_trainable, parameter_names
from .provenance import _identity, _provenance
from .resume import check_autosave, load_run, save_run
from .train_state import Run
from .validation import _witness, check_judge, why


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
    identity: FaceRecognizer | None = None,
) -> Adaptation:
    """Train a copy of `generator` along `shift`; the one given stays bit-identical.

    The run lives on the generator's device; the guides must be there too. Same seed, CPU, thread count and native
    convolution or none (`ops.winograd`): same weights (not checked on GPUs, where some backward passes are not
    deterministic). When memory runs out, the step is done again with half as many latents at once, and so are those
    that follow.
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
    config = config or generator.recommended_settings("adapt", AdaptConfig)
    check_devices(generator, [*weighted_guides(guides), *([judge] if judge else [])], config.label)
    check_batch_size(config.batch)
    check_autosave(autosave, resume)
    check_judge(judge, guides, config)
    kept = _kept(config, perceptual, identity)
    rng = torch.Generator().manual_seed(config.seed)
    teacher, student = generator, copy.deepcopy(generator).requires_grad_(False).eval()
    student.source = None  # the file's weights are what it will no longer have
    student.recompute = config.checkpointing
    start = source_images(teacher, config.seed, config.label) if needs_source_images(shift) else None
    targets = clip_targets(guides, shift, start)
    run = Run(config, teacher, student, rng)
    length = anchor.squared_length(run.start) if config.weight_reg else 0.0
    importance = anchor.fisher(student, targets, run.weights, config.fisher_samples, config.seed, config.label)
    look = _witness(judge, teacher, shift, start, config) if judge else None
    mark = _identity(teacher, guides, shift, config, judge) if autosave is not None else ""
    seen: dict[int, tuple[Tensor, ...]] = {}  # of the pool's batches, what the guides saw in the source
    if autosave is not None and resume and Path(autosave).exists():
        run.restore(load_run(autosave, mark))

    def compare(drawn: _Drawn, chunk: int) -> tuple[Tensor, float, dict[str, float]]:
        """Where a step's memory goes, and so what is done again if there is too little. It leaves gradients only."""
        run.forget()
        before, likeness = seen.get(drawn.number), None
        if before is None:
            with torch.no_grad():  # the same latents, noise and views, before ...
                source, before, _ = _see(teacher, targets, drawn, chunk, config.precision)
            likeness = ReconstructionLoss(source, kept, perceptual, identity) if kept else None
            if config.pool and not kept:  # pictures, which likeness needs, would fill the memory
                seen[drawn.number] = before
        trained = parameter_names(config.layers, run.chosen.layers)
        with only_trainable(student, trained), torch.enable_grad(), tf32(config.precision == "tf32"):
            images, after, unlike = _see(student, targets, drawn, chunk, config.precision, likeness)  # ... and after
            loss, terms = objective(targets, config.terms, all_gather(before), all_gather(after))
            for name, values in unlike.items():
                (whole,) = all_gather([values])
                loss, terms = loss + kept[name] * whole.mean(), {**terms, name: float(whole.detach().mean())}
            if config.weight_reg:
                held = anchor.distance(run.weights, run.start, importance, length)
                once = held / world_size()  # the processes' gradients will be added up
                loss = loss + config.weight_reg * (once + (held - once).detach())
                terms = {**terms, "weight_reg": float(held.detach())}
            (loss * run.gradient_scale).backward()
        return images, loss.item(), terms

    with keep_freed_memory(teacher.w_avg.device):
        for index in range(run.index, config.steps):
            if run.is_over:
                break
            if config.layers.mode != "adaptive" or index % config.layers.every == 0:
                run.chosen = choose(
                    config.layers, student, targets, rng, config.label, run.selection_batcher, config.precision
                )
            drawn = _draw(teacher, config, rng, index)
            # What one process would do again, the others would wait for in vain.
            images, loss, terms = (
                run.batcher.run(compare, drawn) if world_size() == 1 else compare(drawn, run.batcher.size)
            )
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


def _kept(config: AdaptConfig, perceptual: Features | None, identity: FaceRecognizer | None) -> dict[str, float]:
    """The terms that hold pictures near what they were, and their weights."""
    weights = {name: value for name, value in (("lpips", config.lpips), ("id", config.id)) if value}
    if weights:
        check_networks(weights, perceptual, identity)
    return weights


@dataclass(frozen=True)
class _Drawn:
    """What both generators share in a step."""

    number: int  # of the step, or of the batch in its pool
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
def _draw(teacher: Generator, config: AdaptConfig, rng: torch.Generator, number: int) -> _Drawn:
    device = teacher.w_avg.device
    if config.pool:  # random numbers of a batch's own, the same whenever it comes
        number %= config.pool
        seeds = torch.randint(2**31, (config.pool,), generator=torch.Generator().manual_seed(config.seed))
        rng = torch.Generator().manual_seed(int(seeds[number]))
    z = torch.randn(config.batch, teacher.z_dim, generator=rng).to(device)
    ws = teacher.map(z, teacher.one_hot(config.label, config.batch), config.psi)
    noise: Noise = teacher.draw_noise(config.batch, rng) if config.noise == "random" else config.noise  # type: ignore[assignment]
    noise = noise if isinstance(noise, str) else [shard(maps) for maps in noise]
    return _Drawn(number, shard(ws), noise, _views(config, teacher.resolution, rng))


def _views(config: AdaptConfig, size: int, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    return shared_augmentation(config.views, size, rng, mirror=config.mirror, patches=config.patches)


def _see(
    generator: Generator,
    targets: Sequence[ClipTarget],
    drawn: _Drawn,
    chunk: int,
    precision: str,
    likeness: ReconstructionLoss | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
    """The images [N, 3, H, W], detached, every guide's embeddings [V N, D] of their views, and by name how unlike each
    image is to what it was [N], chunk after chunk."""
    names = tuple(likeness.weights) if likeness else ()

    def see(ws: Tensor, noise: Noise, rows: Tensor) -> tuple[Tensor, ...]:
        with arithmetic(precision, ws.device):
            images = generator.synthesize(ws, noise)
        unlike = likeness.terms(images, rows) if likeness else {}
        return images, *(unlike[name] for name in names), *embed(targets, drawn.look(images))

    rows = torch.arange(len(drawn.ws), device=drawn.ws.device)
    if chunk >= len(drawn.ws):
        images, *seen = see(drawn.ws, drawn.noise, rows)
    else:
        # Nothing in here draws random numbers, so there are none to keep for the second time.
        parts = [
            checkpoint(see, ws, noise, part, use_reentrant=False, preserve_rng_state=False)
            for (ws, noise), part in zip(drawn.parts(chunk), rows.split(chunk), strict=True)
        ]
        images, *seen = (torch.cat(column) for column in zip(*parts, strict=True))
    first = len(names)
    return images.detach(), tuple(seen[first:]), dict(zip(names, seen[:first], strict=True))
