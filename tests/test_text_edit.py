"""Text-driven edits of latents: losses, rows, reproducibility and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.guidance.clip_losses import embed, objective
from nada_core.guidance.shifts import TextShift
from nada_core.guidance.targets import clip_targets
from nada_core.latents.sampling import Latents, render, sample
from nada_core.latents.text_edit import EditStep, TextEditConfig, edit_by_text

SHIFT = TextShift("photo", "photo with glasses", ("a {}",))
QUICK = TextEditConfig(steps=12, l2=0.0)


def face(images: Tensor) -> Tensor:
    """A stand-in for a face network."""
    return torch.nn.functional.normalize(torch.nn.functional.avg_pool2d(images, 4).flatten(1), dim=1)


def distance(loss: str, before: Tensor, after: Tensor) -> Tensor:
    """The CLIP loss of every image, [N]."""
    targets = clip_targets(guide(), SHIFT)
    return torch.stack(
        [
            objective(targets, {loss: 1.0}, embed(targets, a[None]), embed(targets, b[None]))[0]
            for a, b in zip(before, after, strict=True)
        ]
    )


@pytest.mark.parametrize("loss", ["global", "direction"])
@pytest.mark.parametrize("space", ["w", "w+"])
def test_images_approach_the_text(loss: str, space: str) -> None:
    made = generator()
    latents = sample(made, range(3))
    moved = edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, objective=loss, space=space))
    before, after = render(made, latents), render(made, moved)
    assert (distance(loss, before, after) < distance(loss, before, before) - 0.02).all()
    offset = moved.ws - latents.ws
    assert (offset - offset[:, :1]).abs().max() < 1e-5 if space == "w" else offset.var(1).min() > 1e-6
    assert moved.space == made.space() and moved.noise == "const" and moved.ws.dtype == torch.float32


def test_edit_is_reproducible_and_keeps_its_inputs() -> None:
    made, clip = generator().requires_grad_(), guide()
    latents = sample(made, range(2))
    state, ws, random = copied(made.state_dict()), latents.ws.clone(), torch.get_rng_state()
    config = replace(QUICK, views=2)
    first, second = (edit_by_text(made, latents, clip, SHIFT, config) for _ in range(2))
    assert torch.equal(first.ws, second.ws) and torch.equal(latents.ws, ws)
    assert not changed(state, copied(made.state_dict())) and torch.equal(torch.get_rng_state(), random)
    assert all(value.requires_grad and value.grad is None for value in made.parameters())
    assert not torch.equal(edit_by_text(made, latents, clip, SHIFT, replace(config, seed=1)).ws, first.ws)


@pytest.mark.parametrize("changes", [{}, {"views": 2}, {"objective": "direction", "l2": 0.01, "id": 0.1}])
def test_edit_is_independent_of_the_batch(changes: dict[str, Any]) -> None:
    made, config = generator(), replace(QUICK, steps=5, **changes)
    latents = replace(sample(made, range(3)), noise=made.draw_noise(3, rng(1)))
    together = edit_by_text(made, latents, guide(), SHIFT, config, face)
    for batch in (1, 2):
        parts = edit_by_text(made, latents, guide(), SHIFT, replace(config, batch=batch), face)
        torch.testing.assert_close(parts.ws, together.ws, rtol=1e-3, atol=1e-4)
    for index in range(3):
        alone = edit_by_text(made, latents[index], guide(), SHIFT, config, face)
        torch.testing.assert_close(alone.ws[0], together.ws[index], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(list(together.noise), list(latents.noise))


def test_only_the_selected_rows_change() -> None:
    made = generator()
    latents = sample(made, [1])
    offset = edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, first_row=2, last_row=4)).ws - latents.ws
    assert offset[:, 2:4].abs().min() > 0 and not offset[:, [0, 1, 4, 5]].any()
    with pytest.raises(ValueError, match="rows 4 to 4.*<= 6"):
        edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, first_row=4, last_row=4))
    with pytest.raises(ValueError, match="rows 0 to 7"):
        edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, last_row=7))


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    made = generator()
    latents = sample(made, range(3))
    config = TextEditConfig(steps=2, lr_rampup=0.0, lr_rampdown=0.0, clip=0.7, l2=0.03, id=0.2, batch=2)
    steps: list[EditStep] = []
    edit_by_text(made, latents, guide(), SHIFT, config, face, steps.append)
    once = edit_by_text(made, latents, guide(), SHIFT, replace(config, steps=1), face)
    before, after = render(made, latents), render(made, once)
    assert [step.index for step in steps] == [0, 1] and steps[0].steps == 2
    assert steps[0].terms["l2"] == 0 and abs(steps[0].terms["id"]) < 1e-5
    wanted = {
        "clip": distance("global", before, after).mean(),
        "id": (1 - (face(before) * face(after)).sum(1)).mean(),
        "l2": (once.ws - latents.ws).square().sum((1, 2)).mean(),
    }
    for name, value in wanted.items():
        assert steps[1].terms[name] == pytest.approx(value.item(), rel=1e-3)
    assert steps[1].loss == pytest.approx(
        sum({"clip": 0.7, "l2": 0.03, "id": 0.2}[n] * v.item() for n, v in wanted.items()), rel=1e-3
    )
    torch.testing.assert_close(steps[1].images(), after, rtol=1e-3, atol=1e-4)


def test_learning_rate_starts_at_zero() -> None:
    made = generator()
    latents = sample(made, [1])
    config = TextEditConfig(steps=1, lr=0.05, lr_rampup=0.0, lr_rampdown=0.0)
    offset = edit_by_text(made, latents, guide(), SHIFT, config).ws - latents.ws
    torch.testing.assert_close(offset.abs(), torch.full_like(offset, 0.05), rtol=1e-2, atol=0)  # Adam's first step
    assert torch.equal(edit_by_text(made, latents, guide(), SHIFT, replace(config, lr_rampup=0.5)).ws, latents.ws)


def test_source_and_edit_get_equal_views() -> None:
    made = generator()
    steps: list[EditStep] = []
    config = replace(QUICK, objective="direction", views=3, steps=1)
    edit_by_text(made, sample(made, [1, 2]), guide(), SHIFT, config, on_step=steps.append)
    assert steps[0].terms["clip"] == pytest.approx(1.0, abs=1e-4)  # nothing has moved, so the edit has no direction


def test_face_network_of_weight_zero_is_not_called() -> None:
    def ask(images: Tensor) -> Tensor:
        raise AssertionError

    made = generator()
    edit_by_text(made, sample(made, [1]), guide(), SHIFT, replace(QUICK, steps=1), ask)


def test_l2_and_identity_terms_limit_the_edit() -> None:
    made = generator()
    latents = sample(made, [1, 2])
    free = edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, steps=30))
    limited = edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, steps=30, l2=0.3))
    assert (limited.ws - latents.ws).norm() < 0.5 * (free.ws - latents.ws).norm()
    same = edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, steps=30, id=3.0), face)
    start, unlike = face(render(made, latents)), face(render(made, free))
    assert ((start * face(render(made, same))).sum(1) > (start * unlike).sum(1) + 0.01).all()


def test_exceptions_of_on_step_propagate() -> None:
    indices = []

    def stop(step: EditStep) -> None:
        indices.append(step.index)
        if step.index == 1:
            raise InterruptedError

    made = generator()
    with pytest.raises(InterruptedError):
        edit_by_text(made, sample(made, [1]), guide(), SHIFT, QUICK, on_step=stop)
    assert indices == [0, 1]


def test_unsuitable_inputs_are_refused() -> None:
    made = generator()
    latents = sample(made, [1])
    for given, message in (
        (sample(generator(rng=rng(5)), [1]), "another generator"),
        (Latents(torch.zeros(1, 3, 5)), r"\[3, 5\] rows and columns"),
    ):
        with pytest.raises(ValueError, match=message):
            edit_by_text(made, given, guide(), SHIFT, QUICK)
    with pytest.raises(ValueError, match="no network to compute it"):
        edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, id=0.1))
    with pytest.raises(FloatingPointError, match="Step 0"):
        edit_by_text(made, latents, guide(), SHIFT, replace(QUICK, id=0.1), lambda images: face(images) * torch.nan)
    with pytest.raises(
        FloatingPointError, match="Step 0 has a loss of 0"
    ):  # the gradient of the square root is infinite at 0
        edit_by_text(
            made,
            latents,
            guide(),
            SHIFT,
            replace(QUICK, id=0.1),
            lambda images: face(images) + (images * 0).sum((2, 3)).sqrt().sum(1, keepdim=True),
        )
    for changes in ({"objective": "sideways"}, {"steps": 0}, {"l2": -1.0}, {"space": "z"}, {"lr": float("nan")}):
        with pytest.raises(ValueError, match="TextEditConfig"):
            TextEditConfig(**changes)  # type: ignore[arg-type]


def test_conditional_generators_are_edited() -> None:
    made = generator(c_dim=3)
    latents = sample(made, [1], label=2)
    assert not torch.equal(edit_by_text(made, latents, guide(), SHIFT, QUICK).ws, latents.ws)
