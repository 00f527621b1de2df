"""Settings and words that work, by kind of target, and a look at whether two phrases say anything to a guide.

What is published: the table of StyleGAN-NADA's notebook (arXiv:2108.00946), the domains of HyperDomainNet
(arXiv:2210.08884), the shipped settings of StyleDomain (arXiv:2212.10229) and SVL's losses (arXiv:2308.10554). On
published generators of faces none of the recipes was measured here.

Letters: K templates, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models.clip import ClipGuide
from .prompts import fill
from .shifts import Shift, TextShift, shift_parts

#: Cosine of the two phrases, averaged over templates, from which a guide hardly tells them apart. In the built-in
#: guides every style they know is at most 0.80 from "photo", while words that mean nothing to them are above 0.97.
MAX_COSINE = 0.97

#: Length of the mean of the templates' unit directions below which the templates disagree: less than half is common.
MIN_AGREEMENT = 0.5


@torch.no_grad()
def check_prompts(guide: ClipGuide, shift: Shift) -> list[str]:
    """What is doubtful about the words of a shift in the eyes of a guide, a sentence each; nothing if all is well."""
    return [doubt for part, _ in shift_parts(shift) if isinstance(part, TextShift) for doubt in _doubts(guide, part)]


def _doubts(guide: ClipGuide, shift: TextShift) -> list[str]:
    start, end = (guide.encode_text(fill(words, shift.templates)) for words in (shift.source, shift.target))  # [K, D]
    near = float(F.cosine_similarity(start.mean(0), end.mean(0), dim=0))
    agreed = float(F.normalize(end - start, dim=-1).mean(0).norm())
    pair = f"{shift.source!r} and {shift.target!r}"
    if near > MAX_COSINE:
        return [f"{guide.name} reads {pair} nearly alike (cosine {near:.3f}); use phrases further apart."]
    if agreed < MIN_AGREEMENT:
        return [
            f"{guide.name} sees no one way between {pair}: its templates agree by {agreed:.2f} of 1; say what is "
            "made, as in Anime Painting."
        ]
    return []
