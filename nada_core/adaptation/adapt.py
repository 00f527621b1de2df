"""StyleGAN-NADA (Gal et al., arXiv:2108.00946): adapt a generator to a new domain along a direction of CLIP space.

Two generators start equal. The source stays frozen; the student is trained so that every image moves parallel to the
text direction in CLIP space, and so keeps what distinguishes it from other images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..guidance.reconstruction import FaceRecognizer, Features, check_networks
from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import check_devices, clip_targets, source_images, weighted_guides
from ..models.clip import ClipGuide
from ..models.domain import Domain
from ..models.generator import Generator
from ..runtime.allocator import keep_freed_memory
from ..runtime.distributed import broadcast, check_batch_size, world_size
from ..runtime.precision import check_precision, tf32
from ..runtime.threads import cpu_threads
from .batch import Batch, draw_batch
from .config import AdaptConfig
from .layer_selection import trained_names
from .objective import Objective, StepResult
from .pairs import HoldOut
from .provenance import RunInputs
from .resume import Autosave, check_autosave
from .snapshots import Snapshot, SnapshotWriter, check_snapshots
from .threads import choose_threads
from .train_state import TrainState
from .validation import Measure, Validator, check_judge
from .weight_regularizer import WeightRegularizer


@dataclass(frozen=True)
class Step:
    """One finished training step.

    Attributes:
        images: returns the student's latest batch [N, 3, H, W], detached; computed lazily, only when called.
        generator: the student in training, with its latest weights, not their average. Do not change it.
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
    """The result of a run.

    Attributes:
        generator: the adapted generator, on the source's device.
        history: one record a step: index, loss, terms, layers, movement, and candidate where the step was validated.
        domain: what the run changed, on the CPU; save it with `save_domain` or apply it in another strength.
        chosen_because: which checkpoint the judge chose and why; empty without a judge.
        snapshots: those in the folder that belong to this run, by step; empty on other ranks than 0.
    """

    generator: Generator
    history: list[dict[str, Any]]
    config: AdaptConfig
    domain: Domain
    chosen_because: str = ""
    snapshots: tuple[Snapshot, ...] = ()


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
    stop: Callable[[], bool] | None = None,
    threads: int | None = None,
    snapshots: str | Path | None = None,
    snapshot_every: int = 0,
    fingerprint: str | None = None,
) -> Adaptation:
    """Train a copy of `generator` along `shift`; the one given stays bit-identical.

    Equal inputs give equal weights on one CPU with one thread count (not checked on GPUs). When memory runs out, the
    step is retried with half as many latents at a time. Under torch.distributed, processes share each batch.

    Args:
        guides: one CLIP model, several, or (model, weight) pairs, on the generator's device.
        config: None takes the settings recommended by the generator's file, or the paper's.
        on_step: called after every step; an exception it raises ends the run.
        autosave: a file rewritten by rank 0 every `config.autosave_every` steps, at the end, and after the last
            finished step when an exception ends the run; a step that was interrupted is done again.
        resume: continue from `autosave` if it exists, to the weights of an uninterrupted run.
        judge: a held-out CLIP model, evaluated every `config.keep_every` steps; the best step's weights are returned.
        perceptual, identity: the networks of the `config.lpips` and `config.id` terms.
        stop: asked after every step; True ends the run, which returns its result so far.
        threads: CPU threads of the run, restored afterwards. 0 measures which number is quickest, before the first
            step. A resumed run takes the number of its autosave, because rounding depends on it. None: the caller's.
        snapshots: a folder for a domain file every `snapshot_every` steps and at the end, at most 50 files.
        fingerprint: the `run_fingerprint` of these inputs, to save the time of computing it again.

    Raises:
        ValueError: for inputs that do not fit each other, and for broken weights; before the first step.
        FileExistsError: when the autosave file exists and `resume` is False.
        OSError: when the autosave file cannot be written.
        CheckpointError: when the autosave belongs to another run.
        FloatingPointError: when a loss or gradient is not finite; the weights are still those before the step.
        torch.cuda.OutOfMemoryError: when one latent at a time is still too many.
    """
    config = config or generator.recommended_settings("adapt", AdaptConfig)
    inputs = RunInputs(generator, weighted_guides(guides), shift, config, judge, perceptual, identity)
    return train(inputs, on_step, autosave, resume, stop, threads, snapshots, snapshot_every, fingerprint)


def train(
    inputs: RunInputs,
    on_step: Callable[[Step], None] | None = None,
    autosave: str | Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] | None = None,
    threads: int | None = None,
    snapshots: str | Path | None = None,
    snapshot_every: int = 0,
    fingerprint: str | None = None,
) -> Adaptation:
    """Check the inputs of a run and train; see `adapt`, which describes arguments and errors."""
    generator, config = inputs.source, inputs.config
    _check(inputs, autosave, resume)
    check_snapshots(snapshots, snapshot_every, config.steps)
    run = fingerprint or (inputs.fingerprint() if autosave or snapshots else "")
    saver = None if autosave is None else Autosave(autosave, run, config.autosave_every)
    number = choose_threads(inputs, threads, saver)
    provenance = inputs.describe() | ({"threads": number} if number else {})
    writer = None if snapshots is None else SnapshotWriter(snapshots, snapshot_every, run, generator, provenance)
    with keep_freed_memory(generator.w_avg.device), tf32(config.precision == "tf32"), cpu_threads(number):
        student, state = _train(inputs, on_step, saver, writer, stop)
    return _result(inputs, student, state, writer, provenance)


def _train(
    inputs: RunInputs,
    on_step: Callable[[Step], None] | None,
    saver: Autosave | None,
    writer: SnapshotWriter | None,
    stop: Callable[[], bool] | None,
) -> tuple[Generator, TrainState]:
    # Setup
    source, config = inputs.source, inputs.config
    student = _trainable_copy(source, config)
    state = TrainState(config, source, student)
    objective, validator = _build_objective(inputs, student, state)
    if saver is not None and (saved := saver.load()):
        state.restore(saved, student)
        if writer is not None:
            writer.warn_of_missing(state.index)

    with _saved_on_exception(saver, state):
        state.validate_if_due(validator, student)
        state.snapshot_if_due(writer, source, student)
        while not state.is_finished:
            # Select the layers to train
            if config.layers.mode != "adaptive" or state.index % config.layers.every == 0:
                state.select_layers(student, objective.targets)
            # Forward both generators, backward, update
            batch = draw_batch(source, config, state.rng, state.index)
            if inputs.pairs is not None:
                batch = inputs.pairs.add_to(batch, state.rng, keep=objective.uses_source)
            result = _backward(objective, batch, state)
            state.optimizer_step(result)
            # Validate, save, report
            state.validate_if_due(validator, student)
            state.snapshot_if_due(writer, source, student)
            if saver is not None and (state.index % saver.every == 0 or state.is_finished):
                saver.save(state.save())
            if on_step is not None:
                on_step(_report(state, result, student))
            if stop is not None and broadcast(stop()):
                break

    # Result: the best validated weights, the average, or the latest
    state.finalize()
    student.recompute = 0
    return student, state


def _result(
    inputs: RunInputs, student: Generator, state: TrainState, writer: SnapshotWriter | None, provenance: dict[str, Any]
) -> Adaptation:
    reason = state.validation.explain(inputs.judged_by, inputs.config.patience)
    notes = {"chosen_because": reason, "stopped_after": 0 if state.is_finished else state.index}
    provenance = provenance | {name: value for name, value in notes.items() if value}
    domain = Domain.between(inputs.source, student, provenance)
    snapshots = () if writer is None else writer.written(state.index)
    return Adaptation(student, state.history, inputs.config, domain, reason, snapshots)


@contextmanager
def _saved_on_exception(saver: Autosave | None, state: TrainState) -> Iterator[None]:
    """Save the state after the last finished step if an exception, such as KeyboardInterrupt, ends the run."""
    try:
        yield
    except BaseException:
        if saver is not None:
            saver.save_interrupted(state.save())
        raise


def _check(inputs: RunInputs, autosave: str | Path | None, resume: bool) -> None:
    """Refuse, before the first step, inputs that would fail in a later one."""
    config, guides = inputs.config, [guide for guide, _ in inputs.guides]
    check_devices(inputs.source, [*guides, *([inputs.judge] if inputs.judge else [])], config.label)
    check_batch_size(config.batch)
    check_precision(config.precision, inputs.source.w_avg.device)
    check_autosave(autosave, resume)
    if inputs.pairs is None:
        check_judge(inputs.judge, guides, config)
    else:
        inputs.pairs.check(guided=bool(guides))
    if config.similarity_weights:
        check_networks(config.similarity_weights, inputs.perceptual, inputs.identity)


def _trainable_copy(generator: Generator, config: AdaptConfig) -> Generator:
    student = copy.deepcopy(generator).requires_grad_(False).eval()
    student.source = None  # the sha256 of a file whose weights it will not keep
    student.recompute = config.checkpointing
    return student


def _build_objective(inputs: RunInputs, student: Generator, state: TrainState) -> tuple[Objective, Measure | None]:
    """The objective and, with a judge, the validator. Both start at the source's images where the shift needs them."""
    source, config, shift = inputs.source, inputs.config, inputs.shift
    images = source_images(source, config.seed, config.label) if shift and needs_source_images(shift) else None
    targets = clip_targets(list(inputs.guides), shift, images) if shift else ()
    weights, start = state.parameters.weights, state.parameters.start
    regularizer = WeightRegularizer.build(config, student, targets, weights, start)
    objective = Objective(
        config, source, student, targets, inputs.perceptual, inputs.identity, regularizer, state.scaler
    )
    if inputs.pairs is not None and inputs.pairs.held_out:
        return objective, HoldOut(inputs.pairs)
    if inputs.judge is None or shift is None:
        return objective, None
    return objective, Validator(clip_targets(inputs.judge, shift, images)[0], source, config)


def _backward(objective: Objective, batch: Batch, state: TrainState) -> StepResult:
    """Compute the gradients of a step, with smaller chunks when memory runs out."""
    names = trained_names(objective.config.layers, state.layers.layers)
    zero_grad = state.parameters.zero_grad
    if world_size() > 1:  # retrying on one rank would deadlock the collective
        return objective.backward(batch, names, zero_grad, state.batcher.size)
    return state.batcher.run(objective.backward, batch, names, zero_grad)


def _report(state: TrainState, result: StepResult, student: Generator) -> Step:
    layers, movement, record = state.layers.names, state.layers.movement, state.history[-1]
    steps, images = state.config.steps, result.images.detach
    return Step(record["index"], steps, record["loss"], record["terms"], layers, movement, images, student)
