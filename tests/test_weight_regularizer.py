"""The weight regularizer: its distance, the Fisher information, and its effect on a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.adapt import Adaptation, adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.adaptation.weight_regularizer import WeightRegularizer, fisher
from nada_core.guidance.shifts import TextShift
from nada_core.guidance.targets import clip_targets

SHIFT = TextShift("photo", "sketch")
NAMES = ("synthesis.b8.conv1.weight", "synthesis.b16.torgb.bias")


def run(**changes: Any) -> Adaptation:
    return adapt(generator(), guide(), SHIFT, AdaptConfig(**({"steps": 12, "lr": 0.05, "warmup": 0} | changes)))


def length(result: Adaptation) -> float:
    return float(torch.stack([change.square().sum() for change in result.domain.changes.values()]).sum())


def squared_length(values: dict[str, Tensor]) -> float:
    return sum(float(value.square().sum()) for value in values.values())


def test_distance_is_relative_to_the_squared_length() -> None:
    start = {"a": torch.randn(3, 4, generator=rng()), "b": torch.randn(5, generator=rng(1))}
    whole = squared_length(start)
    scaled = {name: 1.1 * value for name, value in start.items()}
    assert WeightRegularizer(scaled, start, {}, whole)().item() == pytest.approx(0.01)
    assert WeightRegularizer(start, start, {}, whole)().item() == 0.0
    moved = {"a": start["a"], "b": start["b"] + 1.0}
    importance = {"a": torch.full((3, 4), 9.0), "b": torch.arange(5.0)}
    assert WeightRegularizer(moved, start, importance, whole)().item() == pytest.approx(10 / whole)
    assert WeightRegularizer(moved, start, {}, whole)().item() == pytest.approx(5 / whole)


def test_distance_gradient_against_finite_differences() -> None:
    start = {"a": torch.randn(4, generator=rng(), dtype=torch.float64)}
    importance = {"a": torch.rand(4, generator=rng(1), dtype=torch.float64)}
    point = torch.randn(4, generator=rng(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: WeightRegularizer({"a": x}, start, importance, 3.0)(), point)


def test_fisher_is_the_mean_squared_gradient_of_the_embedding() -> None:
    """Against the Jacobian itself, of which the random directions are an estimate."""
    made, eye = generator(), guide()
    made.requires_grad_(False)
    weights, before = {name: made.get_parameter(name) for name in NAMES}, copied(made.state_dict())
    found = fisher(made, clip_targets(eye, SHIFT), weights, 300, 3)
    assert not changed(before, made.state_dict())
    assert all(not p.requires_grad and p.grad is None for p in made.parameters())
    numbers = torch.cat([value.flatten() for value in found.values()])
    assert numbers.min() >= 0 and numbers.mean().item() == pytest.approx(1.0, rel=1e-4)

    weight = weights[NAMES[1]].requires_grad_()
    slopes = torch.zeros(3)
    for z in torch.randn(300, 1, made.z_dim, generator=rng(5)):
        for one in eye.encode_images(made.synthesize(made.map(z)))[0]:
            slopes += torch.autograd.grad(one, weight, retain_graph=True)[0].square()
    assert torch.cosine_similarity(slopes, found[NAMES[1]], dim=0) > 0.98


def test_regularizer_limits_the_distance() -> None:
    free, held, tight = run(), run(weight_reg=3.0), run(weight_reg=100.0)
    assert length(free) > length(held) > length(tight) > 0
    last = held.history[-1]
    assert held.history[0]["terms"]["weight_reg"] == 0.0 < last["terms"]["weight_reg"]
    assert last["loss"] == pytest.approx(last["terms"]["direction"] + 3 * last["terms"]["weight_reg"], rel=1e-5)
    assert "weight_reg" not in free.history[-1]["terms"]


@pytest.mark.parametrize(
    "layers",
    [LayerChoice(mode="adaptive", count=1, batch=2), LayerChoice(train="offsets"), LayerChoice(train="low-rank")],
)
def test_regularizer_works_with_every_parametrization(layers: LayerChoice) -> None:
    assert length(run(layers=layers, weight_reg=100.0)) < length(run(layers=layers))


def test_fisher_changes_the_result_and_is_deterministic() -> None:
    plain, weighed = run(weight_reg=30.0), run(weight_reg=30.0, fisher_samples=4)
    assert changed(plain.generator.state_dict(), weighed.generator.state_dict())
    assert run(weight_reg=30.0, fisher_samples=4).history == weighed.history


def test_regularized_run_resumes_bit_exact(tmp_path: Any) -> None:
    config = AdaptConfig(steps=6, lr=0.05, weight_reg=10.0, fisher_samples=2, autosave_every=2)
    whole = adapt(generator(), guide(), SHIFT, config)

    def kill(step: Any) -> None:
        if step.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(generator(), guide(), SHIFT, config, kill, autosave=tmp_path / "run.safetensors")
    again = adapt(generator(), guide(), SHIFT, config, autosave=tmp_path / "run.safetensors", resume=True)
    assert not changed(whole.generator.state_dict(), again.generator.state_dict())


def test_fisher_without_regularizer_is_refused() -> None:
    with pytest.raises(ValueError, match="fisher_samples"):
        AdaptConfig(fisher_samples=4)
