"""Learning rates that rise, stay and fall (StyleGAN2, arXiv:1912.04958, appendix D)."""

from __future__ import annotations

import math


def lr_scale(progress: float, rampup: float, rampdown: float) -> float:
    """The learning rate's factor, 0..1, when `progress` of the steps, 0..1, are done.

    rampup, rampdown: shares of the steps over which it rises linearly and falls along a cosine; 0 disables it.
    """
    up = min(1.0, progress / rampup) if rampup else 1.0
    down = min(1.0, (1 - progress) / rampdown) if rampdown else 1.0
    return up * 0.5 * (1 - math.cos(math.pi * down))
