"""Latents as data, and pictures of them: `sample` draws, `render` shows.

Letters: N latents, L rows, C width of a row, H = W = resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .generators import Generator


@dataclass(frozen=True, eq=False)
class Latents:
    """Points of W+ that fit every generator with the same mapping network.

    ws: [N, L, C] on the CPU. noise: "const" or "none", or maps, one a convolution, each shared by all latents or one
    a latent, as `Generator.draw_noise` gives them. space: the fingerprint of the mapping network they come from, which
    an adaptation does not change. Raises ValueError for anything else.
    """

    ws: Tensor
    noise: str | Sequence[Tensor] = "const"
    space: str = ""

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or not len(self.ws):
            raise ValueError(f"got ws of shape {list(self.ws.shape)}, expected [N, L, C] with at least one latent.")
        if isinstance(self.noise, str):
            if self.noise not in ("const", "none"):
                raise ValueError(f"got noise {self.noise!r}, expected 'const', 'none' or maps: latents give the same "
                                 "picture every time. For random noise pass generator.draw_noise(count, rng).")
            return
        for index, given in enumerate(self.noise):
            if given.ndim != 2 and (given.ndim != 4 or len(given) not in (1, len(self))):
                raise ValueError(f"noise map {index} has shape {list(given.shape)}, expected [R, R], [1, 1, R, R] or "
                                 f"[{len(self)}, 1, R, R]; see Generator.draw_noise.")

    def __len__(self) -> int:
        return len(self.ws)


def sample(generator: Generator, seeds: Sequence[int], psi: float = 0.7, cutoff: int | None = None,
           label: int | None = None) -> Latents:  # fmt: skip
    """One latent a seed; a seed gives the same latent whatever its neighbours are.

    psi: truncation, 1 keeps w, 0 gives the mean. cutoff: truncate only the first rows. label: the class of a
    conditional generator. Raises ValueError for no seeds, a negative seed, or a label that does not fit.
    """
    if not seeds or min(seeds) < 0:
        raise ValueError(f"got seeds {list(seeds)}; expected at least one whole number from 0.")
    z = torch.stack([torch.randn(generator.z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    device = generator.w_avg.device
    with torch.no_grad():
        ws = generator.map(z.to(device), generator.one_hot(label, len(z)), psi, cutoff)
    return Latents(ws.cpu(), "const", generator.space())


@torch.no_grad()
def render(generator: Generator, latents: Latents, batch: int = 4) -> Tensor:
    """Pictures [N, 3, H, W] in about -1..1, on the CPU, `batch` at a time.

    Raises ValueError when the latents belong to another mapping network or have another shape.
    """
    if batch < 1:
        raise ValueError(f"got batch {batch}, expected at least 1.")
    if latents.space and latents.space != generator.space():
        raise ValueError(
            f"these latents come from another generator (space {latents.space[:12]}, this one is "
            f"{generator.space()[:12]}); sample them from this generator or from the one it was adapted from."
        )
    device = generator.w_avg.device
    pictures = []
    for start in range(0, len(latents), batch):
        ws = latents.ws[start : start + batch].to(device)
        if isinstance(latents.noise, str):
            pictures.append(generator.synthesize(ws, latents.noise).cpu())  # type: ignore[arg-type]
        else:
            maps = [m if m.ndim == 2 or len(m) == 1 else m[start : start + batch] for m in latents.noise]
            pictures.append(generator.synthesize(ws, [m.to(device) for m in maps]).cpu())
    return torch.cat(pictures)
