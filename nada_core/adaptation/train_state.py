"""How a student is trained: the settings of an adaptation, and what changes in it from step to step.

StyleGAN-NADA (Gal et al., arXiv:2108.00946), section 4 and appendix I; `adapt` has the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..models.generator import Generator
from ..models.low_rank import REPARAMETRIZED, backprop_to_factors, merge_into_weights
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import all_reduce
from ..runtime.precision import gradient_scale
from .config import AdaptConfig
from .layer_selection import Chosen, candidates, parameter_names, trained_parts
from .resume import SavedRun
from .validation import Candidate, best, is_over


class Run:
    """What changes from step to step: weights, their average, the optimiser, the layers in force, the history."""

    def __init__(self, config: AdaptConfig, teacher: Generator, student: Generator, rng: torch.Generator) -> None:
        self.config, self.student, self.rng = config, student, rng
        self.weights = _trainable(student, config)  # of the network
        self.start = {name: teacher.get_parameter(name).detach() for name in self.weights}
        self.folded = config.layers.train in REPARAMETRIZED
        self.trainable = trainable = trained_parts(config.layers, self.weights, config.seed)
        self.optimizer = torch.optim.Adam(trainable.values(), lr=config.lr, betas=(config.beta1, config.beta2))
        self.average = {n: p.detach().clone() for n, p in trainable.items()} if config.ema else {}
        self.gradient_scale = gradient_scale(config.precision, student.resolution)
        self.batcher = MicroBatcher(min(config.chunk or config.batch, config.batch))
        self.selection_batcher = MicroBatcher(min(config.layers.chunk, config.layers.batch))
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
            backprop_to_factors(self.weights, self.trainable)
        slopes = [p.grad for p in self.trainable.values() if p.grad is not None]
        if self.gradient_scale != 1:
            torch._foreach_div_(slopes, self.gradient_scale)
        all_reduce(slopes)
        norm = torch.nn.utils.clip_grad_norm_(self.trainable.values(), self.config.grad_clip).item()
        if not math.isfinite(loss + norm):  # said before the weights take it in
            raise FloatingPointError(
                f"step {index} has loss {loss} and a gradient of norm {norm}; lower the learning "
                "rate or the weights of the terms."
            )
        self.optimizer.step()
        if self.folded:
            merge_into_weights(self.weights, self.start, self.trainable)
        keep = min(self.config.ema, (1 + index) / (10 + index))  # a short memory first, or the source would linger
        for name, mean in self.average.items():
            mean.lerp_(self.trainable[name].detach(), 1 - keep)

    def record(self, index: int, loss: float, terms: dict[str, float]) -> None:
        self.history.append(
            {
                "index": index,
                "loss": loss,
                "terms": terms,
                "layers": self.chosen.names,
                "movement": self.chosen.movement,
            }
        )
        self.index = index + 1

    def last(self) -> dict[str, Any]:
        return {key: value for key, value in self.history[-1].items() if key not in ("index", "candidate")}

    def consider(self, look: Callable[[Generator, int, int], Candidate]) -> None:
        """Let the judge look at what would be returned now, and keep it if there was nothing better."""
        latest = {name: p.detach().clone() for name, p in self.trainable.items()} if self.average else {}
        self._put(self.average)
        self.candidates.append(look(self.student, self.index, min(self.batcher.size, 8)))
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
            merge_into_weights(self.weights, self.start, self.trainable)

    def state(self) -> SavedRun:
        moments = {
            name: {k: v for k, v in self.optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
            for name, p in self.trainable.items()
        }
        weights = {name: p.detach() for name, p in self.trainable.items()}
        rng, names = self.rng.get_state(), self.chosen.names
        return SavedRun(self.index, weights, self.average, moments, rng, names, self.history, self.best)

    def restore(self, state: SavedRun) -> None:
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
        raise ValueError(
            f"LayerChoice.train is {config.layers.train!r}, of which {told} has nothing; name other "
            "layers, or train their weights."
        )
    return {name: p for name, p in student.named_parameters() if name in names}


def _rate(config: AdaptConfig, index: int) -> float:
    """The schedule's factor at a step: a linear rise, because the first edits have no direction yet, then its shape."""
    rise = min(1.0, (index + 1) / (config.warmup + 1))
    if config.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * index / config.steps))
