"""What changes from step to step: weights and their average, the optimizer, the selected layers and the history.

StyleGAN-NADA (Gal et al., arXiv:2108.00946), section 4 and appendix I.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..guidance.targets import ClipTarget
from ..models.domain import Domain
from ..models.generator import Generator
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import all_reduce, broadcast
from ..runtime.precision import loss_scale
from .config import AdaptConfig
from .layer_selection import SelectedLayers, select_layers
from .objective import StepResult
from .parameters import TrainedParameters
from .resume import SavedRun
from .snapshots import SnapshotWriter
from .validation import Measure, ValidationHistory


class TrainState:
    """The state of one run. It can be saved after any step and restored bit for bit."""

    def __init__(self, config: AdaptConfig, source: Generator, student: Generator) -> None:
        self.config = config
        self.rng = torch.Generator().manual_seed(config.seed)
        self.parameters = TrainedParameters(source, student, config.layers, config.seed)
        self.optimizer = torch.optim.Adam(
            self.parameters.values.values(), lr=config.lr, betas=(config.beta1, config.beta2)
        )
        self.average = self.parameters.copy() if config.ema else {}
        device, half = student.w_avg.device.type, config.precision == "fp16"
        scale = loss_scale(config.precision, student.resolution)
        self.scaler = torch.amp.GradScaler(device, init_scale=scale, enabled=half)
        self.batcher = MicroBatcher(min(config.chunk or config.batch, config.batch))
        self.selection_batcher = MicroBatcher(min(config.layers.chunk, config.layers.batch))
        self.layers = SelectedLayers(())
        self.history: list[dict[str, Any]] = []
        self.validation = ValidationHistory()
        self.index = 0
        self._boundary = self.rng.get_state(), self.layers  # as they were after the last finished step
        self._is_updating = False

    def select_layers(self, student: Generator, targets: Sequence[ClipTarget]) -> None:
        """Select the layers the next steps train."""
        config = self.config
        self.layers = select_layers(
            config.layers, student, targets, self.rng, config.label, self.selection_batcher, config.precision
        )

    def optimizer_step(self, result: StepResult) -> None:
        """Update the weights from their gradients and the average from the weights, and record the step.

        Raises:
            FloatingPointError: when the loss or the gradient is not finite; the weights are still those before. In
                fp16 a gradient may overflow: the step is skipped, and the loss is scaled less from then on.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * _lr_factor(self.config, self.index)
        all_reduce(self.parameters.gradients())
        self.scaler.unscale_(self.optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters.values.values(), self.config.grad_clip)
        loss, norm, terms = result.numbers(length)  # the only wait for the device
        finite = math.isfinite(loss + norm)
        if not finite and not (math.isfinite(loss) and self._can_scale_less()):
            raise FloatingPointError(
                f"Step {self.index} has loss {loss} and a gradient of norm {norm}; lower the learning rate or the "
                "weights of the loss terms."
            )
        self._is_updating = True
        if finite:  # GradScaler.step would ask the device again
            self.optimizer.step()
        self.scaler.update()
        self.parameters.merge()
        decay = min(self.config.ema, (1 + self.index) / (10 + self.index))  # short at first, to forget the source
        for name, mean in self.average.items():
            mean.lerp_(self.parameters.values[name].detach(), 1 - decay)
        self._record(loss, terms)

    def _can_scale_less(self) -> bool:
        return self.scaler.is_enabled() and self.scaler.get_scale() > 2.0**-24

    def _record(self, loss: float, terms: dict[str, float]) -> None:
        """Append the step to the history and count it."""
        layers, movement = self.layers.names, self.layers.movement
        self.history.append({"index": self.index, "loss": loss, "terms": terms, "layers": layers, "movement": movement})
        self.index += 1
        self._boundary, self._is_updating = (self.rng.get_state(), self.layers), False

    def validate_if_due(self, validator: Measure | None, student: Generator) -> None:
        """Validate the last step if it is one that is validated and was not yet, as after an interruption."""
        due = self.index % max(self.config.keep_every, 1) == 0 or self.index == self.config.steps
        if validator is not None and self.history and due and "candidate" not in self.history[-1]:
            self.validate(validator, student)

    def validate(self, validator: Measure, student: Generator) -> None:
        """Measure the weights that would be returned now, and keep them when they are the best so far."""
        with self._averaged():
            candidate = broadcast(validator.measure(student, self.index, self.batcher.size))
            self.validation.add(candidate, lambda: self.parameters.copy("cpu"))
        self.history[-1]["candidate"] = asdict(candidate)

    def snapshot_if_due(self, writer: SnapshotWriter | None, source: Generator, student: Generator) -> None:
        """Write the weights that would be returned now without a judge, if the last step is one with a snapshot."""
        if writer is not None and self.history and writer.is_due(self.index, self.is_finished):
            with self._averaged():
                domain = Domain.between(source, student)
            writer.write(domain, self.index, self.history[-1]["loss"])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the generator has the average of the weights, where the run keeps one."""
        latest = self.parameters.copy() if self.average else {}
        self._is_updating = True
        try:
            self.parameters.load(self.average)
            yield
        finally:
            self.parameters.load(latest)
            self._is_updating = False

    @property
    def is_finished(self) -> bool:
        """Whether no step is left, or validation has stopped the run."""
        return self.index >= self.config.steps or self.validation.is_over(self.config.patience)

    def finalize(self) -> None:
        """Load the weights to return: the best validated ones, else the average, else the latest."""
        self.parameters.load(self.validation.best_values or self.average)
        self.parameters.zero_grad()

    def save(self) -> SavedRun | None:
        """The state after the last finished step, with live tensors; None while the weights are being updated."""
        if self._is_updating:
            return None
        values = self.parameters.values
        moments = {
            name: {key: value for key, value in self.optimizer.state.get(p, {}).items() if isinstance(value, Tensor)}
            for name, p in values.items()
        }
        weights = {name: value.detach() for name, value in values.items()}
        rng, layers = self._boundary
        best, scaler, threads = self.validation.best_values, self.scaler.state_dict(), torch.get_num_threads()
        return SavedRun(
            self.index, weights, self.average, moments, rng, layers.names, self.history, best, scaler, threads
        )

    def restore(self, saved: SavedRun, student: Generator) -> None:
        """Continue from a saved state of the same run."""
        self.parameters.load({name: saved.weights[name] for name in self.parameters.values})
        for name, value in self.parameters.values.items():
            if name in saved.average:
                self.average[name].copy_(saved.average[name])
            if name in saved.moments:  # Adam counts steps on the CPU and keeps its moments beside the weights
                moments = saved.moments[name].items()
                self.optimizer.state[value] = {k: v.clone() if k == "step" else v.to(value) for k, v in moments}
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.rng.set_state(saved.rng)
        self.index = saved.index
        self.history = [{**r, "layers": tuple(r["layers"]), "movement": tuple(r["movement"])} for r in saved.history]
        self.validation = ValidationHistory.from_records(self.history, saved.best)
        known = {layer.name: layer for layer in student.layers()}
        self.layers = SelectedLayers(tuple(known[name] for name in saved.layers), self.history[-1]["movement"])
        self._boundary = saved.rng, self.layers


def _lr_factor(config: AdaptConfig, index: int) -> float:
    """The schedule's factor at a step: a linear warm-up, because the first edits have no direction yet."""
    warmup = min(1.0, (index + 1) / (config.warmup + 1))
    decay = 0.5 * (1 + math.cos(math.pi * index / config.steps)) if config.schedule == "cosine" else 1.0
    return warmup * decay
