"""A generator and a CLIP model that are small enough for hundreds of steps in a test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from nada_core.models.clip import ClipGuide
from nada_core.models.stylegan2 import StyleGAN2

DIM, SIZE, READS = 8, 16, 128


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator(**changes: Any) -> StyleGAN2:
    """A generator of 16 pixels with five convolutions, three ToRGB layers, six rows and no zero biases or noise."""
    settings: dict[str, Any] = {
        "resolution": 16,
        "z_dim": 6,
        "w_dim": 5,
        "mapping_layers": 2,
        "widths": [8, 7, 4],
        "rng": rng(),
    }
    result = StyleGAN2(**(settings | changes))
    with torch.no_grad():
        for name, value in result.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                value.add_(0.3 * torch.randn(value.shape, generator=rng(1)))
        result.w_avg.normal_(generator=rng(2))
    return result


class Encoder(nn.Module):
    """The parts of an open_clip model that `ClipGuide` uses: random projections of pixels and of characters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.visual = SimpleNamespace(image_size=SIZE, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
        self.pixels = nn.Parameter(torch.randn(3 * SIZE * SIZE, DIM, generator=rng(seed)) / SIZE)
        self.characters = nn.Parameter(torch.randn(READS, DIM, generator=rng(seed + 1)))

    def encode_image(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.pixels) + 0.1

    def encode_text(self, tokens: Tensor) -> Tensor:
        return tokens @ self.characters


def tokenize(phrases: list[str]) -> Tensor:
    return torch.tensor([[float(byte) for byte in phrase.encode().ljust(READS)] for phrase in phrases]) / 100


def guide(seed: int = 0, model: nn.Module | None = None) -> ClipGuide:
    return ClipGuide(f"tiny-{seed}", model or Encoder(seed), tokenize, DIM)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names whose tensors are not bit-identical."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
