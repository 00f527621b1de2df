"""CLIP losses: direction and global (StyleGAN-NADA, arXiv:2108.00946), and regularizers that keep diversity
(HyperDomainNet, arXiv:2210.08884; SVL, arXiv:2308.10554). Each term is a pure function of embeddings.

Letters: N images, D embedding, V augmented views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .targets import ClipTarget

#: Shortest edit that is divided by its own length. At step 0 both generators are equal and the edit is zero: its
#: direction would be noise with a gradient of norm 1 / |edit|.
MIN_EDIT_NORM = 1e-2


@dataclass(frozen=True)
class Views:
    """Unit embeddings by one CLIP model of the same latents before and after, and the target of the training."""

    before: Tensor  # [N, D], constant
    after: Tensor  # [N, D]
    direction: Tensor  # [1, D]
    target: Tensor  # [1, D]


def direction_loss(views: Views) -> Tensor:
    """1 - cosine between the change of each image and the text's (StyleGAN-NADA, arXiv:2108.00946, eq. 3); 0..2."""
    edit = views.after - views.before
    length = edit.norm(dim=-1).clamp(min=MIN_EDIT_NORM)
    return (1 - (edit * views.direction).sum(-1) / length).mean()


def global_loss(views: Views) -> Tensor:
    """1 - cosine between the images and the target (section 4.1): the naive baseline, which collapses; 0..2."""
    return (1 - views.after @ views.target.mT).mean()


def angle_loss(views: Views) -> Tensor:
    """In-domain angle consistency (HyperDomainNet, arXiv:2210.08884, eq. 5): squared change of the cosines between
    images; 0..4. 0 for a single image."""
    count = len(views.after)
    if count < 2:
        return views.after.sum() * 0.0
    change = views.after @ views.after.mT - views.before @ views.before.mT
    return change.triu(1).square().sum() * (2 / (count * (count - 1)))


def relation_loss(views: Views) -> Tensor:
    """Batch relations (SVL, arXiv:2308.10554, from Ojha et al., arXiv:2104.06820, eq. 1): KL divergence between the
    similarities of an image to the batch, before and after; 0 and up. The paper weighs it 100. 0 for a single image."""
    before, after = ((e @ e.mT).log_softmax(-1) for e in (views.before, views.after))
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


def covariance_loss(views: Views) -> Tensor:
    """Frobenius norm of the covariance of the changes (SVL, arXiv:2308.10554, second part of L_dm); 0 and up.

    The paper subtracts the covariance of learned variations of the text, zero for one text, and weighs it 1000.
    """
    edit = views.after - views.before
    centered = edit - edit.mean(0)
    return (centered @ centered.mT).norm() / len(edit)  # the N x N product has the norm of the D x D one


#: Name to term; the names are the keys of `AdaptConfig.terms`.
TERMS: dict[str, Callable[[Views], Tensor]] = {
    "direction": direction_loss,
    "global": global_loss,
    "angle": angle_loss,
    "relation": relation_loss,
    "covariance": covariance_loss,
}

#: Terms that compare the images of a batch with each other: 0 for a single image.
RELATIVE_TERMS = ("angle", "relation", "covariance")


def embed(targets: Sequence[ClipTarget], images: Tensor) -> tuple[Tensor, ...]:
    """Embed images [N, 3, H, W] in -1..1 with every guide: unit vectors [N, D], one tensor a guide."""
    return tuple(target.guide.encode_images(images) for target in targets)


#: Weights and values of the parts of a term, whose sum it is. They stay on the device until a step reads all at once.
Parts = list[tuple[float, Tensor]]


def objective(
    targets: Sequence[ClipTarget], terms: dict[str, float], before: Sequence[Tensor], after: Sequence[Tensor]
) -> tuple[Tensor, dict[str, Parts]]:
    """Return the weighted loss of one step and the parts of every term, one a guide.

    Args:
        terms: name to weight.
        before, after: embeddings [V N, D], one tensor a guide, of the same latents and augmentation in the same order.
            Gradients flow into `after` only.
    """
    loss = after[0].new_zeros(())
    values: dict[str, Parts] = {name: [] for name in terms}
    for target, source, edited in zip(targets, before, after, strict=True):
        views = Views(source.detach(), edited, target.direction, target.target_embedding)
        for name, weight in terms.items():
            value = TERMS[name](views)
            loss = loss + target.weight * weight * value
            values[name].append((target.weight, value.detach()))
    return loss, values
