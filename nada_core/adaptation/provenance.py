"""StyleGAN-NADA (Gal et al., arXiv:2108.00946): move a generator into a new domain along the direction of a text.

Two generators start equal. The teacher stays; the student is trained so that every image moves, in the space of the
guides, parallel to the text's own move, and keeps what makes it itself.

A batch that is too large for the memory passes in chunks: activations of one chunk live at a time and are computed
again on the way back (Chen et al., arXiv:1604.06174), while the embeddings of the whole batch meet in one loss.

Letters: N latents a step, L rows of W+, C width of a row, V views, D embedding, R a layer's resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..guidance.prompts import TEMPLATES
from ..guidance.shifts import ImageShift, Shift, TextShift, shift_parts
from ..guidance.targets import weighted_guides
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .config import AdaptConfig
from .resume import fingerprint


def _provenance(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig,
    because: str,
) -> dict[str, Any]:
    """What it takes to make the same weights again, JSON-ready. Templates are told where they are not the usual."""
    mixed = [{**_told(part), "weight": weight} for part, weight in shift_parts(shift)]
    told = {"mixed": mixed} if len(mixed) > 1 else _told(shift_parts(shift)[0][0])
    named = [{"name": g.name, "fingerprint": g.fingerprint, "weight": weight} for g, weight in weighted_guides(guides)]
    chosen = {"chosen_because": because} if because else {}
    return {"source": {"sha256": teacher.source}, **told, "guides": named, "config": asdict(config), **chosen}


def _told(shift: TextShift | ImageShift) -> dict[str, Any]:
    if isinstance(shift, ImageShift):
        return {"images": len(shift.images)}
    own = {} if shift.templates == TEMPLATES else {"templates": shift.templates}
    return {"prompts": {"source": shift.source, "target": shift.target, **own}}


def _identity(
    teacher: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig,
    judge: ClipGuide | None,
) -> str:
    parts = shift_parts(shift)
    told = {
        "generator": teacher.spec(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("autosave_every", "chunk", "checkpointing")},
        "guides": [(guide.fingerprint, weight) for guide, weight in weighted_guides(guides)],
        "judge": judge.fingerprint if judge else None,
        "shift": [(asdict(part) if isinstance(part, TextShift) else "images", weight) for part, weight in parts],
    }
    images = {f"shift.{i}": part.images for i, (part, _) in enumerate(parts) if isinstance(part, ImageShift)}
    return fingerprint({**teacher.state_dict(), **images}, told)
