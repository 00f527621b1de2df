"""The training objective: the directional CLIP loss of StyleGAN-NADA (Gal et al., arXiv:2108.00946, equation 3), terms
that preserve similarity (LPIPS, identity), and a penalty on the distance of the weights from their start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..guidance.clip_losses import Parts, objective
from ..guidance.reconstruction import FaceRecognizer, Features, ReconstructionLoss
from ..guidance.targets import ClipTarget
from ..models.generator import Generator
from ..runtime.distributed import all_gather, world_size
from ..runtime.transfer import fetch
from .batch import Batch, ImageLoss, run_batch
from .config import AdaptConfig
from .layer_selection import only_trainable
from .weight_regularizer import WeightRegularizer


@dataclass(frozen=True)
class StepResult:
    """The outputs of a step, all on the device.

    Attributes:
        images: the student's [N, 3, R, R], detached.
        loss: the weighted loss, a scalar. terms: the parts of every term.
    """

    images: Tensor
    loss: Tensor
    terms: dict[str, Parts]

    def numbers(self, norm: Tensor) -> tuple[float, float, dict[str, float]]:
        """Return the loss, the norm of the gradient and the terms, by one copy from the device."""
        values = [value for parts in self.terms.values() for _, value in parts]
        ((loss,), (length,), *rest) = fetch(self.loss, norm, *values)
        numbers = iter(rest)
        terms = {name: sum((w * next(numbers)[0] for w, _ in parts), 0.0) for name, parts in self.terms.items()}
        return loss, length, terms


@dataclass(frozen=True)
class Objective:
    """Compute the loss of a batch and leave its gradients in the student's parameters.

    Attributes:
        regularizer: the penalty on the weights, None without one.
        scaler: scales the loss before the backward pass, in fp16 only.
        source_embeddings: embeddings of the source's images, by key of a pooled batch; they never change.
    """

    config: AdaptConfig
    source: Generator
    student: Generator
    targets: Sequence[ClipTarget]
    perceptual: Features | None
    identity: FaceRecognizer | None
    regularizer: WeightRegularizer | None
    scaler: torch.amp.GradScaler
    source_embeddings: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def uses_source(self) -> bool:
        """Whether images are compared with the source's."""
        return bool(self.targets or self.config.similarity_weights)

    def backward(self, batch: Batch, names: frozenset[str], zero_grad: Callable[[], None], chunk: int) -> StepResult:
        """Args:
        names: the student's parameters that receive gradients.
        chunk: latents that pass through the networks at once. All memory of a step is used in here, so this is
            what is retried with a smaller chunk; `zero_grad` therefore comes first.
        """
        zero_grad()
        before, similarity = self._source(batch, chunk)
        losses = (*batch.losses, *similarity)
        weights = {name: weight for loss in losses for name, weight in loss.weights.items()}
        with only_trainable(self.student, names), torch.enable_grad():
            student = run_batch(self.student, self.targets, batch, chunk, self.config.precision, losses)
            loss, terms = student.images.new_zeros(()), dict[str, Parts]()
            if self.targets:
                embeddings = all_gather(before), all_gather(student.embeddings)
                loss, terms = objective(self.targets, self.config.terms, *embeddings)
            for name, values in student.terms.items():
                (values,) = all_gather([values])
                loss = loss + weights[name] * values.mean()
                terms[name] = [(1.0, values.detach().mean())]
            if self.regularizer is not None:
                penalty = self.regularizer()
                share = penalty / world_size()  # gradients are summed over the processes
                loss = loss + self.config.weight_reg * (share + (penalty - share).detach())
                terms["weight_reg"] = [(1.0, penalty.detach())]
            self.scaler.scale(loss).backward()
        return StepResult(student.images, loss.detach(), terms)

    @torch.no_grad()
    def _source(self, batch: Batch, chunk: int) -> tuple[tuple[Tensor, ...], tuple[ImageLoss, ...]]:
        """The embeddings of the source's images, and the losses that compare images with them."""
        weights = self.config.similarity_weights
        if batch.key in self.source_embeddings:
            return self.source_embeddings[batch.key], ()
        if not self.uses_source:
            return (), ()
        source = run_batch(self.source, self.targets, batch, chunk, self.config.precision)
        if weights:
            loss = ReconstructionLoss(source.images, weights, self.perceptual, self.identity, chunk)
            return source.embeddings, (loss,)
        if self.config.pool:
            self.source_embeddings[batch.key] = source.embeddings
        return source.embeddings, ()
