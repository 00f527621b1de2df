"""Find pairs that an image model got wrong: unchanged images, other styles and other subjects.

DATID-3D (arXiv:2211.16374, section 3.3) filters its pairs by CLIP similarity and by pose. Here a pair is compared with
the other pairs only, so that no text is needed: its change should be parallel to theirs in CLIP space, and its image
should resemble its own latent more than the other latents in CLIP space, to a face recognizer, and in coarse colors.

Letters: N pairs, D embedding, R pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.clip import ClipGuide
from .metrics import embed
from .reconstruction import FaceRecognizer

#: Fewer pairs cannot be compared with each other.
MIN_PAIRS = 4
_COARSE = 8  # pixels a side, to compare colors
_OTHER_ORDER = 0.3  # mean rank above which images do not follow their latents; 0.5 for a random order


@torch.no_grad()
def wrong_pairs(
    before: Tensor,
    after: Tensor,
    guides: Sequence[tuple[ClipGuide, float]] = (),
    identity: FaceRecognizer | None = None,
    min_direction: float = 0.8,
    max_rank: float = 0.1,
) -> dict[int, str]:
    """Return the indices of wrong pairs with the reasons; none of fewer than 4 pairs.

    Args:
        before, after: [N, 3, R, R] in -1..1, on any device.
        guides: CLIP models with weights; without one, directions are not compared.
        identity: a face recognizer.
        min_direction: least cosine of a pair's change and the median change, as a share of the median cosine.
        max_rank: greatest share of the other latents that the image may resemble more than its own; one is allowed.

    Raises:
        ValueError: when most images resemble other latents more than their own.
    """
    if len(before) < MIN_PAIRS:
        return {}
    embeddings = [(embed(guide, before), embed(guide, after), weight) for guide, weight in guides]
    reasons: dict[int, str] = {}
    if embeddings and min_direction:
        agreement = _agreement(embeddings)
        for index in (agreement < min_direction).nonzero().flatten().tolist():
            reasons[index] = (
                f"its change differs from that of the other pairs (agreement {agreement[index]:.2f}, expected at "
                f"least {min_direction:.2f})"
            )
    if max_rank >= 1:
        return reasons
    spaces = [(one, other) for one, other, _ in embeddings]
    spaces += [(_colors(before), _colors(after))]
    if identity is not None:
        spaces += [(_identify(identity, before), _identify(identity, after))]
    rank = _rank([_match(one, other) for one, other in spaces])
    usual = rank[[index for index in range(len(rank)) if index not in reasons]]
    if len(usual) >= MIN_PAIRS and usual.mean() > _OTHER_ORDER:
        raise ValueError(
            f"Got images that resemble other latents as much as their own (mean rank {usual.mean():.2f}, 0.5 is "
            "chance), expected one image per latent in the same order. Sort them; if they are in order, edit them "
            "less, such as with a lower denoise, or set max_rank to 1."
        )
    others = len(rank) - 1
    limit = max(1, int(max_rank * others))
    for index, better in enumerate((rank * others).round().int().tolist()):
        if better > limit:
            reasons.setdefault(
                index,
                f"it resembles {better} of the {others} other latents more than its own, expected at most {limit}",
            )
    return dict(sorted(reasons.items()))


def _agreement(embeddings: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Cosine of each change and the median change, relative to the median cosine, [N]; averaged over the guides."""
    total = sum(weight for _, _, weight in embeddings)
    result = torch.zeros(len(embeddings[0][0]))
    for before, after, weight in embeddings:
        changes = F.normalize(after - before, dim=-1, eps=1e-6)
        cosines = changes @ F.normalize(changes.median(0).values, dim=-1)
        result += weight / total * cosines / cosines.median().clamp(min=1e-6)
    return result


def _match(before: Tensor, after: Tensor) -> Tensor:
    """How much more than usual image i after resembles image j before, in standard deviations, [N, N].

    The median of either side is subtracted, which is the style that all its images share.
    """
    one, other = (F.normalize(x - x.median(0).values, dim=-1, eps=1e-6) for x in (before, after))
    cosines = other @ one.mT
    count = len(cosines)
    others = cosines[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)
    return (cosines - others.mean(1, keepdim=True)) / others.std(1, keepdim=True).clamp(min=1e-6)


def _rank(matches: Sequence[Tensor]) -> Tensor:
    """Share of the other latents that each image resembles more than its own, [N].

    Feature spaces in which pairs are recognized better count more.
    """
    match = torch.stack([match.diagonal().median().clamp(min=0.1) * match for match in matches]).sum(0)
    return (match > match.diagonal()[:, None]).float().sum(1) / (len(match) - 1)


def _colors(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, _COARSE).flatten(1).cpu()


def _identify(identity: FaceRecognizer, images: Tensor) -> Tensor:
    return torch.cat([identity(part).cpu() for part in images.split(8)])
