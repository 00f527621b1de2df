"""Pooled text embeddings of the text encoders of Stable Diffusion as shifts.

SDXL and SD 2.x pool the text and project it into the space of the CLIP model that their text encoder belongs to
(arXiv:2307.01952, section 2.1), so an image tower of the same CLIP model can follow a direction between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models.clip import ClipGuide
from .shifts import EmbeddingShift


@dataclass(frozen=True)
class _TextEncoder:
    name: str
    model: str  # the CLIP model of the same space
    width: int  # of the image tower of that model
    layers: int


#: Text encoders by the length of their pooled embedding.
_PROJECTED = {
    1280: _TextEncoder("clip_g of SDXL", "OpenCLIP ViT-bigG/14", 1664, 48),
    1024: _TextEncoder("the text encoder of SD 2.x", "OpenCLIP ViT-H/14", 1280, 32),
}
_UNPROJECTED = {
    768: "clip_l of SD 1.x, Flux or SD3, which has no text projection",
    2048: "clip_l and clip_g of SD3 in a row",
}


def shift_from_pooled_text(guide: ClipGuide, source: Tensor, target: Tensor) -> EmbeddingShift:
    """Make a shift of the pooled embeddings [K, D] of a text encoder of Stable Diffusion.

    The sizes are checked. That the image tower has the weights of the same CLIP model is not seen from them.

    Raises:
        ValueError: the embeddings are not projected, or the guide is another CLIP model.
    """
    for name, pooled in (("source", source), ("target", target)):
        length = pooled.shape[-1]
        if length not in _PROJECTED:
            what = f", {_UNPROJECTED[length]}" if length in _UNPROJECTED else ""
            raise ValueError(
                f"Got a pooled embedding of {length} numbers as {name}{what}; expected 1280 (SDXL) or 1024 (SD 2.x). "
                "Encode the texts with such a checkpoint, or use a guide with a text tower."
            )
    if source.shape != target.shape:
        raise ValueError(
            f"Got pooled embeddings of shapes {list(source.shape)} and {list(target.shape)} as source and target, "
            "expected equal ones. Encode both texts with the same text encoder."
        )
    encoder = _PROJECTED[source.shape[-1]]
    if (guide.dim, *_tower_size(guide)) != (source.shape[-1], encoder.width, encoder.layers):
        raise ValueError(
            f"Got {encoder.name}, which is in the space of {encoder.model}, but the guide {guide.name} is another CLIP "
            f"model with {guide.dim} numbers. Use the image tower of {encoder.model} as guide."
        )
    return EmbeddingShift(source.float(), target.float(), encoder.name)


def _tower_size(guide: ClipGuide) -> tuple[int, int]:
    """Return the width and the number of layers of a Vision Transformer, (0, 0) for another image tower."""
    visual: Any = guide.model.visual
    transformer = getattr(visual, "transformer", None)
    return (getattr(transformer, "width", 0), getattr(transformer, "layers", 0))
