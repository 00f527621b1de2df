"""Learning-rate schedules (StyleGAN2, arXiv:1912.04958, appendix D)."""

from __future__ import annotations

import math


def lr_scale(progress: float, rampup: float, rampdown: float) -> float:
    """Compute the factor, 0..1, of the learning rate.

    Args:
        progress: share of the steps already taken, 0..1.
        rampup: share of the steps with a linear increase; 0 turns it off.
        rampdown: share of the steps with a cosine decrease; 0 turns it off.
    """
    up = min(1.0, progress / rampup) if rampup else 1.0
    down = min(1.0, (1 - progress) / rampdown) if rampdown else 1.0
    return up * 0.5 * (1 - math.cos(math.pi * down))
