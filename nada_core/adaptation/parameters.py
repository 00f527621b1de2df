"""The parameters a run trains, and the values its optimizer moves to change them.

Usually these are the same tensors. A low-rank change (LoRA, Hu et al., arXiv:2106.09685, section 4.1) is trained
through factors of its own: gradients of the kernels are passed on to the factors, and the kernels are written anew
after every step, so that the generator in training is an ordinary one at any time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.generator import Generator
from ..models.low_rank import backprop_to_factors, merge_into_weights
from .config import LayerChoice
from .layer_selection import selectable_layers, trained_names, trained_values


class TrainedParameters:
    """Attributes:
    weights: every parameter of the generator that may change, by name.
    start: the source's values of `weights`.
    values: what the optimizer moves: `weights` themselves or the factors of their change.
    """

    def __init__(self, source: Generator, student: Generator, choice: LayerChoice, seed: int) -> None:
        """Raises ValueError when the chosen layers hold nothing of the kind `choice.train` names."""
        layers = selectable_layers(choice, student)
        names = trained_names(choice, layers)
        if not names:
            raise ValueError(
                f"LayerChoice.train is {choice.train!r}, but {', '.join(layer.name for layer in layers)} has no such "
                "parameters; name other layers, or train their weights."
            )
        self.weights: dict[str, Tensor] = {name: p for name, p in student.named_parameters() if name in names}
        self.start = {name: source.get_parameter(name).detach() for name in self.weights}
        self.values = trained_values(choice, self.weights, seed)
        self._factored = choice.train == "low-rank"

    def zero_grad(self) -> None:
        """Set gradients to None. Adam then leaves the moments of layers that a step does not train alone."""
        for tensor in (*self.weights.values(), *self.values.values()):
            tensor.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients of `values`, live, after a backward pass through the generator."""
        if self._factored:
            backprop_to_factors(self.weights, self.values)
        return [value.grad for value in self.values.values() if value.grad is not None]

    def merge(self) -> None:
        """Write the generator's weights from `values`, after these have changed."""
        if self._factored:
            merge_into_weights(self.weights, self.start, self.values)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the values named, and the generator's weights with them."""
        for name, value in values.items():
            self.values[name].copy_(value)
        self.merge()

    def copy(self, device: str | None = None) -> dict[str, Tensor]:
        """A copy of `values`, on their own device unless another is named."""
        return {name: value.detach().to(device or value.device, copy=True) for name, value in self.values.items()}
