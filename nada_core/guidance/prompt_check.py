"""Check whether two phrases give a CLIP model a clear direction (StyleGAN-NADA, arXiv:2108.00946, section 4.1).

Letters: K templates, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models.clip import ClipGuide
from .prompts import fill
from .shifts import Shift, TextShift, shift_parts

#: Cosine between the mean embeddings of two phrases above which the model hardly separates them. The built-in guides
#: give at most 0.80 for "photo" and any style they know, and more than 0.97 for words that mean nothing to them.
MAX_COSINE = 0.97

#: Norm of the mean of the unit directions, one a template, below which the templates disagree.
MIN_AGREEMENT = 0.5


@torch.no_grad()
def check_prompts(guide: ClipGuide, shift: Shift) -> list[str]:
    """Return a warning for every text shift that gives the guide no clear direction; empty if there is none."""
    warnings = [_warning(guide, part) for part, _ in shift_parts(shift) if isinstance(part, TextShift)]
    return [warning for warning in warnings if warning]


def _warning(guide: ClipGuide, shift: TextShift) -> str:
    source = guide.encode_text(fill(shift.source, shift.templates))  # [K, D]
    target = guide.encode_text(fill(shift.target, shift.templates))
    cosine = float(F.cosine_similarity(source.mean(0), target.mean(0), dim=0))
    agreement = float(F.normalize(target - source, dim=-1).mean(0).norm())
    pair = f"{shift.source!r} and {shift.target!r}"
    if cosine > MAX_COSINE:
        return f"{guide.name} reads {pair} nearly alike (cosine {cosine:.3f}); use phrases further apart."
    if agreement < MIN_AGREEMENT:
        return (
            f"{guide.name} finds no consistent direction between {pair}: the templates agree by {agreement:.2f} of 1; "
            "name the medium or style, as in 'anime painting'."
        )
    return ""
