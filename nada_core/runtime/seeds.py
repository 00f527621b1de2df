"""Seeds of random generators."""

from __future__ import annotations

import torch

MAX_SEED = 2**32 - 1


def seeded(seed: int) -> torch.Generator:
    """A CPU generator with this seed.

    Raises:
        ValueError: for a seed outside 0..2**32 - 1. torch's CPU generator uses the low 32 bits only, so a larger seed
            would repeat the numbers of a smaller one.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"Got the seed {seed!r}, expected a whole number from 0 to {MAX_SEED}.")
    return torch.Generator().manual_seed(seed)


def generator_on(device: torch.device, rng: torch.Generator) -> torch.Generator:
    """A generator for large draws on a device, seeded by the next number of `rng`; on the CPU, `rng` itself."""
    if device.type == rng.device.type:
        return rng
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=rng)))
