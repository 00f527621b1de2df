"""The content of a latent of the built-in generator: attributes in 0..1, a fixed function of w.

The mapping network is random and frozen. The attributes are the quantile ranks of w along its principal directions, so
each is uniform in 0..1. The generator was fitted to draw exactly this content, so every latent has a true picture in
every style.

Letters: N batch, A attributes, L rows of W+, C width of w, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..io.checkpoint_file import BUILTIN, read_checkpoint
from ..io.metadata import write_safetensors
from ..models.generator import Generator
from .render import ATTRIBUTES

_QUANTILES = 65


def contents(seeds: Sequence[int]) -> Tensor:
    """Sample attributes [N, A] in 0..1, one row a seed; a row does not depend on the other seeds."""
    # The prime factor separates these random sequences from those of the fits.
    rngs = (torch.Generator().manual_seed(seed * 7919 + 104_729) for seed in seeds)
    return torch.stack([torch.rand(len(ATTRIBUTES), generator=rng) for rng in rngs])


class Content:
    """Reads attributes from latents: `Content.load()(ws) -> [N, A]` in 0..1."""

    def __init__(self, mean: Tensor, basis: Tensor, quantiles: Tensor) -> None:
        self.mean, self.basis, self.quantiles = mean, basis, quantiles  # [C], [A, C], [A, Q]

    @classmethod
    def measure(cls, generator: Generator, rng: torch.Generator, samples: int = 50_000) -> Content:
        """Compute the principal directions of w and the quantiles along them."""
        with torch.no_grad():
            w = generator.map(torch.randn(samples, generator.z_dim, generator=rng))[:, 0]
        mean = w.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((w - mean).T))
        basis = vectors.T.flip(0)[: len(ATTRIBUTES)]
        steps = torch.linspace(0, 1, _QUANTILES)
        return cls(mean, basis, torch.stack([torch.quantile(c, steps) for c in ((w - mean) @ basis.T).T]))

    def __call__(self, ws: Tensor) -> Tensor:
        """Return the attributes [N, A] of ws [N, L, C], whose rows are equal, or of w [N, C]."""
        w = ws[:, 0] if ws.ndim == 3 else ws
        position = (w - self.mean) @ self.basis.T
        columns = []
        for coordinate, table in zip(position.T, self.quantiles, strict=True):
            index = torch.searchsorted(table, coordinate.contiguous()).clamp(1, _QUANTILES - 1)
            low, high = table[index - 1], table[index]
            columns.append((index - 1 + ((coordinate - low) / (high - low)).clamp(0, 1)) / (_QUANTILES - 1))
        return torch.stack(columns, 1)

    def save(self, path: Path) -> None:
        write_safetensors(path, {"mean": self.mean, "basis": self.basis, "quantiles": self.quantiles}, {})

    @classmethod
    def load(cls, path: Path = BUILTIN / "content.safetensors") -> Content:
        tensors = read_checkpoint(path).tensors
        return cls(tensors["mean"], tensors["basis"], tensors["quantiles"])
