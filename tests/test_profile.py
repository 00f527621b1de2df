"""The profile of a training step, and the plain implementation that benchmarks compare with."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from tiny import Encoder, changed, copied, generator, guide, rng
from torch import Tensor, nn

from benchmarks.naive import NaiveGenerator, NaiveTraining
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.cli.profile import PARTS, measure
from nada_core.guidance.shifts import TextShift
from nada_core.models.clip import ClipGuide

optimizer = importlib.import_module("torch.optim.optimizer")  # the name torch.optim.optimizer is shadowed
SHIFT = TextShift("photo", "sketch", ("the {}",))
ADAPTIVE = LayerChoice(mode="adaptive", count=2, batch=2)


class Tower(nn.Module):
    image_size, image_mean, image_std = 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Towered(Encoder):
    """A CLIP model with an image encoder that accepts hooks."""

    def __init__(self) -> None:
        super().__init__(0)
        self.visual: Any = Tower()

    def encode_image(self, x: Tensor) -> Tensor:
        return torch.tanh(self.visual(x) @ self.pixels)


def towered() -> ClipGuide:
    return guide(model=Towered())


class Ticks:
    """A clock that advances by one with each call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_parts_of_a_step_are_timed_once(layers: LayerChoice) -> None:
    heard: list[dict[str, float]] = []
    config = AdaptConfig(steps=4, layers=layers, chunk=1)
    speed = measure(generator(), [towered(), towered()], SHIFT, config, warm=1, clock=Ticks(), on_step=heard.append)
    # Each mark and each lap takes one tick; there are two guides, each with a mark before and after.
    assert all(step == {part: 5.0 if part == "guide" else 1.0 for part in PARTS} for step in speed.steps[1:])
    assert len(heard) == 4 and len(speed.steps) == 3 and tuple(speed.parts) == PARTS
    assert speed.seconds == pytest.approx(sum(speed.parts.values()))
    assert speed.peak is None if sys.platform == "win32" else speed.peak > 2**20


def test_parts_skipped_by_a_pool_are_not_timed() -> None:
    config = AdaptConfig(steps=4, layers=ADAPTIVE, pool=1)
    speed = measure(generator(), towered(), SHIFT, config, warm=1, clock=Ticks())
    # The pool skips the source embedding of the guide, but not its mark before the student.
    assert all(step == {**dict.fromkeys(PARTS, 1.0), "teacher": 0.0, "guide": 2.0} for step in speed.steps)


def test_measuring_restores_all_state() -> None:
    made, eye = generator(), towered()
    before = copied(made.state_dict())
    measure(made, eye, SHIFT, AdaptConfig(steps=2), warm=0)
    model: Any = eye.model
    assert not changed(before, made.state_dict()) and not model.visual._forward_hooks
    assert not made.synthesis._forward_hooks and not made.synthesis._forward_pre_hooks
    assert not made.mapping._forward_pre_hooks
    assert not optimizer._global_optimizer_pre_hooks and not optimizer._global_optimizer_post_hooks


def test_measuring_needs_a_step_after_the_warm_up() -> None:
    with pytest.raises(ValueError, match="2 steps of which 2"):
        measure(generator(), towered(), SHIFT, AdaptConfig(steps=2))


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_plain_implementation_renders_the_same_images(clamp: float | None) -> None:
    made = generator(clamp=clamp)
    plain = NaiveGenerator(made)
    ws = made.map(torch.randn(3, 6, generator=rng(3)))
    for noise in (made.draw_noise(3, rng(4)), [torch.zeros(1, 1, size, size) for size in (4, 8, 8, 16, 16)]):
        torch.testing.assert_close(plain(ws, noise), made.synthesize(ws, noise), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_plain_implementation_trains(layers: LayerChoice) -> None:
    training = NaiveTraining(generator(), [guide(0), guide(5)], SHIFT, AdaptConfig(layers=layers, lr=0.02))
    marks: list[str] = []
    before = copied(training.trained.state_dict())
    torch.manual_seed(0)
    losses = [training.step(marks.append) for _ in range(2)]
    moved = changed(before, training.trained.state_dict())
    assert all(torch.tensor(losses).isfinite()) and moved and not any(name.startswith("rgbs") for name in moved)
    assert marks[:6] == list(PARTS)
    assert not changed(NaiveGenerator(generator()).state_dict(), training.frozen.state_dict())


def test_off_by_one_table_of_the_first_implementation() -> None:
    """For a selected row of W+, this table trains the layer before the one that the row feeds."""
    true, reference = (
        NaiveTraining(generator(), [guide(0)], SHIFT, AdaptConfig(layers=ADAPTIVE), off_by_one=off)
        for off in (False, True)
    )
    convs, rgbs = list(reference.trained.convs), list(reference.trained.rgbs)
    assert true.rows == list(true.trained.convs)
    assert reference.rows == [convs[0], rgbs[0], *convs[1:]]
    assert set(reference.choose(ADAPTIVE)) <= set(reference.rows)
