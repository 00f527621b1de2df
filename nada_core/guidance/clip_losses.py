"""Losses on embeddings. Each term is a small pure function of `Views`; none of them loads or runs a model.

Letters: N images, D embedding, V augmented views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .targets import ClipTarget

#: The shortest edit that is still divided by its own length. At step 0 both generators are equal and the edit is zero;
#: its direction would be noise with a gradient of norm 1 / |edit|, so below this it is treated as this long.
MIN_EDIT_NORM = 1e-2


@dataclass(frozen=True)
class Views:
    """One guide's view of a step: unit embeddings of the same latents before and after, and where to go."""

    before: Tensor  # [N, D], constant
    after: Tensor  # [N, D]
    direction: Tensor  # [1, D]
    target: Tensor  # [1, D]


def direction_loss(views: Views) -> Tensor:
    """1 - cosine between every image's own edit and the text's (StyleGAN-NADA, arXiv:2108.00946, eq. 3); 0..2."""
    edit = views.after - views.before
    length = edit.norm(dim=-1).clamp(min=MIN_EDIT_NORM)
    return (1 - (edit * views.direction).sum(-1) / length).mean()


def global_loss(views: Views) -> Tensor:
    """1 - cosine between the images and the target (section 4.1): the naive baseline, which collapses; 0..2."""
    return (1 - views.after @ views.target.mT).mean()


def angle_loss(views: Views) -> Tensor:
    """In-domain angle consistency (HyperDomainNet, arXiv:2210.08884, eq. 5): images keep their mutual cosines; 0..4.

    0 for a single image, which has no neighbours to keep.
    """
    count = len(views.after)
    if count < 2:
        return views.after.sum() * 0.0
    change = views.after @ views.after.mT - views.before @ views.before.mT
    return change.triu(1).square().sum() * (2 / (count * (count - 1)))


def relation_loss(views: Views) -> Tensor:
    """Batch relations (SVL, arXiv:2308.10554, from Ojha et al., arXiv:2104.06820, eq. 1): KL divergence of how alike an
    image is to its neighbours, before and after; 0 and up. Small: the paper weighs it 100. 0 for a single image."""
    before, after = ((e @ e.mT).log_softmax(-1) for e in (views.before, views.after))
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


def mean_offset_loss(views: Views) -> Tensor:
    """1 - cosine between the mean edit of all images and the text's (SVL, arXiv:2308.10554, the first part of L_dm):
    unlike direction it leaves every image its own way; 0..2."""
    edit = (views.after - views.before).mean(0)
    return 1 - (edit * views.direction[0]).sum() / edit.norm().clamp(min=MIN_EDIT_NORM)


def covariance_loss(views: Views) -> Tensor:
    """How much the edits of the images differ (SVL, arXiv:2308.10554, the second part of L_dm): the Frobenius norm of
    their covariance; 0 and up. The paper subtracts the covariance of learnt variations of the text; a single text has
    none. Where all edits are equal, images keep their differences. Small: the paper weighs it 1000."""
    edit = views.after - views.before
    centred = edit - edit.mean(0)
    return (centred @ centred.mT).norm() / len(edit)  # the N x N product has the norm of the D x D one


#: Name to term; the names are what `AdaptConfig.terms` weighs.
TERMS: dict[str, Callable[[Views], Tensor]] = {
    "direction": direction_loss,
    "global": global_loss,
    "angle": angle_loss,
    "relation": relation_loss,
    "mean_offset": mean_offset_loss,
    "covariance": covariance_loss,
}


def embed(targets: Sequence[ClipTarget], images: Tensor) -> tuple[Tensor, ...]:
    """What every guide sees in images [N, 3, H, W] in -1..1: unit vectors [N, D], one tensor a guide."""
    return tuple(target.guide.encode_images(images) for target in targets)


def objective(
    targets: Sequence[ClipTarget], terms: dict[str, float], before: Sequence[Tensor], after: Sequence[Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The weighted loss of one step and every term's own value, averaged over the guides by weight.

    before, after: embeddings [V N, D], one tensor a guide, as `embed` gives them, of the same latents and the same
    augmentation in the same order, whichever that is; gradients flow into `after` only.
    """
    loss = after[0].new_zeros(())
    values = dict.fromkeys(terms, 0.0)
    for target, seen_before, seen_after in zip(targets, before, after, strict=True):
        views = Views(seen_before.detach(), seen_after, target.direction, target.target_embedding)
        for name, weight in terms.items():
            value = TERMS[name](views)
            loss = loss + target.weight * weight * value
            values[name] += target.weight * float(value.detach())
    return loss, values
