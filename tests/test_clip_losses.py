"""CLIP losses: values against their formulas and gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import guide, rng
from torch import Tensor

from nada_core.guidance.clip_losses import (
    MIN_EDIT_NORM,
    TERMS,
    Parts,
    Views,
    angle_loss,
    covariance_loss,
    direction_loss,
    embed,
    global_loss,
    objective,
    relation_loss,
)
from nada_core.guidance.shifts import TextShift
from nada_core.guidance.targets import ClipTarget, clip_targets


def unit(count: int, seed: int, dim: int = 12) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=rng(seed), dtype=torch.float64), dim=-1)


def views(after: Tensor, before: Tensor) -> Views:
    return Views(before, after, unit(1, 8), unit(1, 9))


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=rng(seed)) * 2 - 1


def across(direction: Tensor, seed: int) -> Tensor:
    """A unit vector orthogonal to the direction."""
    other = unit(1, seed)
    return F.normalize(other - (other @ direction.mT) * direction, dim=-1)


@pytest.mark.parametrize("length", [MIN_EDIT_NORM, 0.1, 3.0])
def test_direction_loss_depends_on_the_angle_only(length: float) -> None:
    before, direction = unit(3, 0), unit(1, 8)
    for offset, expected in ((direction, 0.0), (across(direction, 1), 1.0), (-direction, 2.0)):
        loss = direction_loss(views(before + length * offset, before))
        assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_direction_loss_is_taken_per_sample_and_then_averaged() -> None:
    """A long edit in the right direction does not outweigh a short one in the wrong direction."""
    before, direction = unit(2, 0), unit(1, 8)
    edit = torch.cat([5 * direction, -0.05 * direction])
    assert direction_loss(views(before + edit, before)).item() == pytest.approx(1.0)
    assert 1 - F.cosine_similarity(edit.mean(0, keepdim=True), direction).item() == pytest.approx(0.0)


def test_direction_loss_weighs_short_edits_less() -> None:
    before, direction = unit(1, 0), unit(1, 8)
    half = direction_loss(views(before + 0.5 * MIN_EDIT_NORM * direction, before))
    assert half.item() == pytest.approx(0.5)


def test_global_loss_depends_on_the_target_only() -> None:
    target = unit(1, 9)
    for embedding, expected in ((target, 0.0), (across(target, 1), 1.0), (-target, 2.0)):
        assert global_loss(views(embedding, unit(1, 0))).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_angle_loss_against_a_double_loop(count: int) -> None:
    before, after = unit(count, 0), unit(count, 1)
    errors = [(after[i] @ after[j] - before[i] @ before[j]) ** 2 for i in range(count) for j in range(i + 1, count)]
    assert angle_loss(views(after, before)).item() == pytest.approx(torch.stack(errors).mean().item())
    turn = torch.linalg.qr(torch.randn(12, 12, generator=rng(2), dtype=torch.float64)).Q
    assert angle_loss(views(before @ turn, before)).item() == pytest.approx(
        0.0, abs=1e-12
    )  # a rotation of all embeddings


def test_relation_loss_against_a_double_loop() -> None:
    before, after = unit(4, 0), unit(4, 1)
    rows = []
    for i in range(4):
        p, q = (torch.stack([e[i] @ e[j] for j in range(4)]).softmax(0) for e in (before, after))
        rows.append(sum(p[j] * (p[j] / q[j]).log() for j in range(4)))
    assert relation_loss(views(after, before)).item() == pytest.approx(sum(rows).item() / 4)  # type: ignore[union-attr]
    turn = torch.linalg.qr(torch.randn(12, 12, generator=rng(2), dtype=torch.float64)).Q
    assert relation_loss(views(before @ turn, before)).item() == pytest.approx(0.0, abs=1e-12)


def test_covariance_loss_is_the_norm_of_the_covariance_of_the_edits() -> None:
    before, edit = unit(6, 0), 0.3 * unit(6, 1)
    wanted = torch.cov(edit.T, correction=0).norm()
    assert covariance_loss(views(before + edit, before)).item() == pytest.approx(wanted.item())
    alike = edit[:1].expand(6, -1)  # equal edits
    assert covariance_loss(views(before + alike, before)).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("term", TERMS)
def test_gradients_against_finite_differences(term: str) -> None:
    before = unit(4, 0)
    edit = torch.tensor([0.5, 0.1, 2 * MIN_EDIT_NORM, 0.5 * MIN_EDIT_NORM])[:, None] * unit(4, 1)
    after = (before + edit).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[term](views(x, before)), after, eps=1e-6, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("term", TERMS)
def test_losses_of_a_zero_edit_are_finite(term: str, count: int) -> None:
    before = unit(count, 0)
    after = before.clone().requires_grad_()
    loss = TERMS[term](views(after, before))
    loss.backward()
    assert loss.isfinite() and after.grad is not None and after.grad.isfinite().all()
    assert after.grad.norm(dim=-1).max() <= 1 / MIN_EDIT_NORM + 1e-9
    if term == "direction":
        assert loss.item() == 1.0 and after.grad.norm() > 0  # the gradient is not zero


def totals(values: dict[str, Parts]) -> dict[str, float]:
    return {name: sum(weight * value.item() for weight, value in parts) for name, parts in values.items()}


def test_guides_are_averaged_by_weight() -> None:
    shift, weights = TextShift("photo", "sketch"), {"direction": 1.0, "angle": 2.0, "global": 0.5}
    before, after = pictures(3, 0), pictures(3, 1)
    pair = clip_targets([(guide(0), 3.0), (guide(5), 1.0)], shift, before)
    assert [target.weight for target in pair] == [0.75, 0.25]
    loss, values = objective(pair, weights, embed(pair, before), embed(pair, after))
    single = [clip_targets(target.guide, shift, before) for target in pair]
    alone = [objective(targets, weights, embed(targets, before), embed(targets, after)) for targets in single]
    assert loss.item() == pytest.approx(0.75 * alone[0][0].item() + 0.25 * alone[1][0].item(), rel=1e-5)
    both, first, second = map(totals, (values, alone[0][1], alone[1][1]))
    for name in weights:
        assert both[name] == pytest.approx(0.75 * first[name] + 0.25 * second[name], rel=1e-5)
    assert loss.item() == pytest.approx(sum(weights[name] * both[name] for name in weights), rel=1e-5)
    assert first != second


@pytest.mark.parametrize("count", [2, 3])
def test_term_weights_are_independent_of_the_number_of_guides(count: int) -> None:
    """The losses of the guides are averaged, so the balance with other losses does not change."""
    shift, weights = TextShift("photo", "sketch"), {name: 0.5 for name in TERMS}
    before, after = pictures(3, 0), pictures(3, 1)
    alone, often = (clip_targets([guide(0)] * times, shift, before) for times in (1, count))
    (one, values_once), (many, values_often) = (
        objective(targets, weights, embed(targets, before), embed(targets, after)) for targets in (alone, often)
    )
    assert many.item() == pytest.approx(one.item(), rel=1e-5)
    assert totals(values_often) == pytest.approx(totals(values_once), rel=1e-5)


def test_objective_sums_the_terms_and_has_gradients_for_the_adapted_images_only() -> None:
    clip = guide()
    targets = (ClipTarget(clip, 1.0, unit(1, 8, clip.dim).float(), unit(1, 9, clip.dim).float()),)
    before, after = pictures(2, 0).requires_grad_(), pictures(2, 1).requires_grad_()
    loss, values = objective(targets, {"global": 1.0}, embed(targets, before), embed(targets, after))
    embedded = Views(
        clip.encode_images(before), clip.encode_images(after), targets[0].direction, targets[0].target_embedding
    )
    assert totals(values)["global"] == pytest.approx(global_loss(embedded).item())
    loss.backward()
    assert before.grad is None and after.grad is not None and after.grad.abs().sum() > 0


def test_guides_get_all_images() -> None:
    targets, images = clip_targets([guide(0), guide(5)], TextShift("photo", "sketch")), pictures(3, 0)
    embedded = embed(targets, images)
    assert [list(one.shape) for one in embedded] == [[3, guide().dim]] * 2
    assert all(
        torch.equal(one, target.guide.encode_images(images)) for one, target in zip(embedded, targets, strict=True)
    )
    with pytest.raises(ValueError):  # the number of embeddings must equal that of the guides
        objective(targets, {"direction": 1.0}, embedded, embedded[:1])


@pytest.mark.parametrize("term", TERMS)
def test_terms_are_independent_of_the_order_of_the_images(term: str) -> None:
    """Chunks have their own views, so the order of the images varies."""
    before, after, order = unit(6, 0), unit(6, 1), [4, 0, 5, 2, 1, 3]
    shuffled = TERMS[term](views(after[order], before[order]))
    torch.testing.assert_close(shuffled, TERMS[term](views(after, before)))
