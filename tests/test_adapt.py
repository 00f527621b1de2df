"""The adaptation loop: what it changes, its schedule, memory, precision, and what is refused."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Encoder, changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.adapt import Adaptation, Step, adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.guidance.prompts import TEMPLATES
from nada_core.guidance.shifts import ImageShift, MixedShift, TextShift
from nada_core.io.errors import CheckpointError
from nada_core.models.generator import Generator
from nada_core.models.low_rank import low_rank_factors
from nada_core.models.stylegan2 import Block, StyleGAN2

SHIFT = TextShift("photo", "sketch", ("a {} of a face", "the {}"))
ADAPTIVE = LayerChoice(mode="adaptive", count=1, batch=2, every=3)


def settings(**changes: Any) -> AdaptConfig:
    return AdaptConfig(**({"steps": 4, "lr": 0.02, "warmup": 2} | changes))


def weights(made: Generator) -> dict[str, Tensor]:
    return copied(made.state_dict())


def kill_at(step: int) -> Any:
    def on_step(done: Step) -> None:
        if done.index == step:
            raise KeyboardInterrupt

    return on_step


def saved_each_step(path: Path, config: AdaptConfig, made: Generator | None = None) -> list[dict[str, Tensor]]:
    """The autosave's tensors after every step of a run; a file that is mapped cannot be replaced on Windows."""
    states: list[dict[str, Tensor]] = []
    config = replace(config, autosave_every=1)
    adapt(made or generator(), guide(), SHIFT, config, lambda _: states.append(copied(load_file(path))), autosave=path)
    return states


def of(state: dict[str, Tensor], role: str) -> dict[str, Tensor]:
    """The tensors of one role, by parameter name."""
    return {name.removeprefix(role + "."): value for name, value in state.items() if name.startswith(role + ".")}


# ---- what changes and what does not -------------------------------------------------------------------------------


def test_inputs_are_bit_identical_afterwards() -> None:
    made, eye = generator(), guide()
    made.train()
    flags = [number % 2 == 0 for number, _ in enumerate(made.parameters())]
    for parameter, flag in zip(made.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    before, seen, style = weights(made), weights(eye), torch.zeros(1, 3, 16, 16)
    adapt(made, eye, SHIFT, settings(layers=ADAPTIVE, ema=0.9))
    adapt(made, eye, ImageShift(style), settings())
    assert not changed(before, made.state_dict()) and not changed(seen, eye.state_dict()) and not style.any()
    assert [parameter.requires_grad for parameter in made.parameters()] == flags and made.training
    assert all(parameter.grad is None for parameter in [*made.parameters(), *eye.parameters()])


def test_result_is_frozen() -> None:
    result = adapt(generator(), guide(), SHIFT, settings()).generator
    assert not result.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in result.parameters())


def test_result_has_no_source_file() -> None:
    made = generator()
    made.source = "0" * 64
    assert adapt(made, guide(), SHIFT, settings()).generator.source is None and made.source == "0" * 64


def test_text_shift_renders_no_source_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen pictures of a large generator take longer than many steps."""
    drawn: list[int] = []
    synthesize = StyleGAN2.synthesize

    def counted(self: StyleGAN2, ws: Tensor, *rest: Any) -> Tensor:
        drawn.append(len(ws))
        return synthesize(self, ws, *rest)

    monkeypatch.setattr(StyleGAN2, "synthesize", counted)
    adapt(generator(), guide(), SHIFT, settings(steps=1, batch=2))
    assert drawn == [2, 2]


def test_global_random_state_is_unchanged() -> None:
    before = torch.get_rng_state()
    adapt(generator(), guide(), SHIFT, settings(layers=ADAPTIVE, views=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_seed_determines_the_run(layers: LayerChoice) -> None:
    config = settings(layers=layers, views=1)
    one, same = (adapt(generator(), guide(), SHIFT, config) for _ in range(2))
    assert not changed(one.generator.state_dict(), same.generator.state_dict()) and one.history == same.history
    other = adapt(generator(), guide(), SHIFT, replace(config, seed=1))
    assert changed(one.generator.state_dict(), other.generator.state_dict())


@pytest.mark.parametrize(("rgb", "noise"), [(False, False), (True, False), (False, True), (True, True)])
def test_mode_all_trains_the_synthesis_network(rgb: bool, noise: bool) -> None:
    made = generator()
    result = adapt(made, guide(), SHIFT, settings(layers=LayerChoice(rgb=rgb, noise=noise)))
    moved = changed(made.state_dict(), result.generator.state_dict())
    assert moved == {
        name
        for name, _ in made.named_parameters()
        if name.startswith("synthesis.")
        and (rgb or "torgb" not in name)
        and (noise or not name.endswith("noise_strength"))
    }


ENDS = {
    "weights": ("weight", "bias", "const"),
    "convolutions": (".weight", ".bias"),
    "affines": (".affine.weight", ".affine.bias"),
    "offsets": (".affine.bias",),
    "low-rank": (".weight",),
}


@pytest.mark.parametrize("layers", [LayerChoice(rgb=True), replace(ADAPTIVE, every=1, rgb=True)])
@pytest.mark.parametrize("train", ENDS)
def test_parametrization_trains_its_parameters_only(layers: LayerChoice, train: str) -> None:
    made = generator()
    result = adapt(made, guide(), SHIFT, settings(steps=8, lr=0.1, layers=replace(layers, train=train)))
    moved = changed(made.state_dict(), result.generator.state_dict())
    may = {
        name
        for layer in made.layers()
        for name in layer.parameters
        if name.endswith(ENDS[train]) and (train in ("weights", "affines", "offsets") or "affine" not in name)
    }
    assert moved and moved <= may and (layers.mode == "adaptive" or moved == may)
    assert moved == {*result.domain.changes, *result.domain.gains}


@pytest.mark.parametrize("train", ENDS)
def test_parametrization_without_change_is_bit_exact(train: str) -> None:
    made = generator()
    result = adapt(
        made,
        guide(),
        SHIFT,
        settings(steps=1, warmup=10_000, lr=1e-7, beta2=0.9, layers=LayerChoice(train=train), terms={"angle": 1.0}),
    )
    assert not changed(made.state_dict(), result.generator.state_dict())  # angles of equal images have no slope


def test_style_offset_equals_affine_bias_offset() -> None:
    """Why training the biases of the affines is training in StyleSpace, exactly."""
    made = generator()
    conv = made.get_submodule("synthesis.b8.conv1")
    offset, w = torch.randn(conv.affine.bias.shape, generator=rng()), torch.randn(3, 5, generator=rng(1))
    wanted = conv.affine(w) + offset
    with torch.no_grad():
        conv.affine.bias.add_(offset)
    torch.testing.assert_close(conv.affine(w), wanted)


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_change_has_that_rank(rank: int) -> None:
    result = adapt(generator(), guide(), SHIFT, settings(layers=LayerChoice(train="low-rank", rank=rank), ema=0.5))
    assert len(result.domain.changes) == 5
    for change in result.domain.changes.values():
        assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4) == min(rank, len(change))


def test_low_rank_step_follows_the_chain_rule() -> None:
    made, seen = generator(), []
    layers = LayerChoice(mode="named", names=("b8.conv1",), train="low-rank", rank=2)
    config = settings(steps=1, lr=0.05, warmup=0, beta1=0.0, beta2=0.0, grad_clip=1e6, layers=layers)
    adapt(made, guide(), SHIFT, config, lambda step: seen.append(step.generator))
    name = "synthesis.b8.conv1.weight"
    change = seen[0].get_parameter(name) - made.get_parameter(name)
    right = low_rank_factors({name: made.get_parameter(name)}, 2, config.seed)[f"{name}.right"]
    left = torch.linalg.lstsq(right.T, change.flatten(1).detach().T).solution.T
    torch.testing.assert_close(left @ right, change.flatten(1).detach(), atol=1e-6, rtol=1e-4)
    # Without memory Adam moves every number by the learning rate, in the direction its gradient says.
    torch.testing.assert_close(left.abs(), torch.full_like(left, 0.05), atol=1e-4, rtol=1e-3)


def test_layers_without_parameters_are_refused() -> None:
    layers = LayerChoice(mode="named", names=("b4.const",), train="offsets")
    with pytest.raises(ValueError, match=r"'offsets', but b4.const"):
        adapt(generator(), guide(), SHIFT, settings(layers=layers))


def test_mode_named_trains_these_layers() -> None:
    made = generator()
    result = adapt(made, guide(), SHIFT, settings(layers=LayerChoice(mode="named", names=("b8.conv1", "b4.torgb"))))
    moved = changed(made.state_dict(), result.generator.state_dict())
    assert {".".join(name.split(".")[1:3]) for name in moved} == {"b8.conv1", "b4.torgb"}


def test_unselected_layers_and_moments_stay_bit_identical(tmp_path: Path) -> None:
    """A gradient of zero instead of none would let Adam's second moment decay and the next real step overshoot."""
    made = generator()
    config = settings(steps=12, layers=replace(ADAPTIVE, every=1), lr=0.3, beta1=0.9)
    path = tmp_path / "run.safetensors"
    states: list[tuple[tuple[str, ...], dict[str, Tensor]]] = []
    adapt(
        made,
        guide(),
        SHIFT,
        replace(config, autosave_every=1),
        lambda step: states.append((step.layers, copied(load_file(path)))),
        autosave=path,
    )
    moments: dict[str, Tensor] = {}
    before = {name: made.state_dict()[name] for name in of(states[0][1], "weights")}
    for layers, state in states:
        moved = changed(before, of(state, "weights"))
        assert moved and all(any(f".{layer}." in name for layer in layers) for name in moved)
        after = of(state, "optimizer.exp_avg_sq")
        touched = {name for name in after if name not in moments or not torch.equal(moments[name], after[name])}
        assert touched == moved
        before, moments = of(state, "weights"), after
    assert len({layers for layers, _ in states}) > 1  # otherwise nothing was ever left out and taken up again


def test_layers_are_reselected_every_n_steps() -> None:
    steps: list[Step] = []
    adapt(generator(), guide(), SHIFT, settings(steps=7, lr=0.3, layers=ADAPTIVE), steps.append)
    for index, step in enumerate(steps):
        assert len(step.layers) == 1 and len(step.movement) == 6
        assert (step.movement == steps[index - 1].movement) == (index % 3 != 0 and index > 0)


# ---- the steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["random", "const", "none"])
def test_first_steps_are_finite_with_batch_one(noise: str) -> None:
    config = settings(steps=20, batch=1, noise=noise, terms={"direction": 1.0, "global": 0.3})
    result = adapt(generator(), guide(), SHIFT, config)
    assert all(math.isfinite(record["loss"]) for record in result.history)
    assert all(value.isfinite().all() for value in result.generator.state_dict().values())
    # The pair shares its noise, so the first edit is exactly nothing.
    assert result.history[0]["terms"]["direction"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("train", ENDS)
def test_loss_decreases(train: str) -> None:
    config = settings(steps=60, layers=LayerChoice(train=train), lr=0.1 if train == "offsets" else 0.02)
    losses = [record["loss"] for record in adapt(generator(), guide(), SHIFT, config).history]
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]


def test_steps_match_the_history() -> None:
    steps: list[Step] = []
    config = settings(batch=3, views=2, layers=ADAPTIVE, terms={"direction": 1.0, "angle": 0.5})
    result = adapt(generator(), guide(), SHIFT, config, steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3] and {step.steps for step in steps} == {4}
    for step, record in zip(steps, result.history, strict=True):
        assert (step.loss, step.terms, step.layers, step.movement) == (
            record["loss"],
            record["terms"],
            record["layers"],
            record["movement"],
        )
        assert step.loss == pytest.approx(step.terms["direction"] + 0.5 * step.terms["angle"], rel=1e-5)
        assert step.images().shape == (3, 3, 16, 16) and not step.images().requires_grad
    assert not torch.equal(steps[0].images(), steps[1].images())
    assert result.config is config and all(step.generator is result.generator for step in steps)
    record = json.loads(json.dumps(result.history))
    assert record[2]["layers"] == list(steps[2].layers) and record[2]["loss"] == steps[2].loss


@pytest.mark.parametrize(("schedule", "warmup"), [("constant", 0), ("constant", 3), ("cosine", 0), ("cosine", 3)])
def test_schedule(tmp_path: Path, schedule: str, warmup: int) -> None:
    """Without memory Adam moves every weight by the learning rate, so the rate can be read off the weights."""
    made = generator()
    config = settings(steps=6, schedule=schedule, warmup=warmup, beta1=0.0, beta2=0.0, grad_clip=1e6)
    states = [of(state, "weights") for state in saved_each_step(tmp_path / "run.safetensors", config, made)]
    before = made.state_dict()
    for index, after in enumerate(states):
        rise = min(1.0, (index + 1) / (warmup + 1))
        fall = 1.0 if schedule == "constant" else (1 + math.cos(math.pi * index / 6)) / 2
        longest = max((after[name] - before[name]).abs().max().item() for name in after)
        assert longest == pytest.approx(0.02 * rise * fall, rel=1e-3)
        before = after


def test_gradients_are_clipped_to_a_norm(tmp_path: Path) -> None:
    def norm(clip: float) -> float:
        config = settings(steps=1, grad_clip=clip, beta1=0.0)
        (state,) = saved_each_step(tmp_path / f"{clip}.safetensors", config)
        return math.sqrt(sum(value.square().sum().item() for value in of(state, "optimizer.exp_avg").values()))

    free = norm(1e6)
    assert norm(2 * free) == pytest.approx(free, rel=1e-4)
    assert norm(free / 2) == pytest.approx(free / 2, rel=1e-4)


def test_average_is_returned_with_a_short_memory_at_first(tmp_path: Path) -> None:
    made, config = generator(), settings(steps=8, ema=0.4)
    states = saved_each_step(tmp_path / "run.safetensors", config, made)
    mean = {name: made.state_dict()[name] for name in of(states[0], "weights")}
    for index, state in enumerate(states):
        keep = min(0.4, (1 + index) / (10 + index))
        mean = {name: keep * mean[name] + (1 - keep) * value for name, value in of(state, "weights").items()}
    result = adapt(made, guide(), SHIFT, config).generator.state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(result[name], value)
    assert changed({name: result[name] for name in mean}, of(states[-1], "weights"))


@pytest.mark.parametrize(
    "change",
    [
        {"views": 2},
        {"terms": {"direction": 1.0, "global": 1.0}},
        {"psi": 0.5},
        {"noise": "none"},
        {"batch": 3},
        {"lr": 0.01},
        {"beta1": 0.5},
        {"beta2": 0.9},
        {"schedule": "cosine"},
        {"warmup": 0},
        {"ema": 0.5},
        {"pool": 2},
    ],
)
def test_every_setting_changes_the_weights(change: dict[str, Any]) -> None:
    plain, other = (adapt(generator(), guide(), SHIFT, settings(**given)).generator for given in ({}, change))
    assert changed(plain.state_dict(), other.state_dict())
    assert all(value.isfinite().all() for value in other.state_dict().values())


def test_mirror_changes_the_views() -> None:
    plain, other = (adapt(generator(), guide(), SHIFT, settings(views=2, mirror=m)).generator for m in (False, True))
    assert changed(plain.state_dict(), other.state_dict())


def test_guide_weights_are_relative() -> None:
    def run(*guides: Any) -> dict[str, Tensor]:
        return adapt(generator(), list(guides), SHIFT, settings()).generator.state_dict()

    both = run(guide(0), guide(5))
    assert not changed(both, run((guide(0), 2.0), (guide(5), 2.0)))  # only the proportion counts
    assert changed(both, run((guide(0), 3.0), guide(5))) and changed(both, run(guide(0)))


def test_style_images_attract_the_embedding() -> None:
    made, eye = generator(), guide()
    with torch.no_grad():
        style = generator(rng=rng(9)).synthesize(made.map(torch.randn(3, 6, generator=rng(4)))).clamp(-1, 1)
    shift = ImageShift(style)
    config = settings(steps=60, terms={"direction": 1.0, "global": 1.0})
    adapted = adapt(made, eye, shift, config).generator
    with torch.no_grad():
        ws = made.map(torch.randn(16, 6, generator=rng(5)))
        near = [
            (eye.encode_images(g.synthesize(ws)) @ shift.target_embedding(eye).mT).mean().item()
            for g in (made, adapted)
        ]
    assert near[1] > near[0] + 0.2


# ---- what pictures keep -------------------------------------------------------------------------------------------


class Small:
    """What LPIPS is asked for: rows of features whose squared distance means something."""

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def recognise(images: Tensor) -> Tensor:
    return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("kept", [{"lpips": 5.0}, {"id": 5.0}, {"lpips": 1.0, "id": 5.0}])
def test_similarity_terms_reduce_the_change(kept: dict[str, float], chunk: int) -> None:
    config, made = settings(steps=20, batch=3, chunk=chunk), generator()
    networks: dict[str, Any] = {"perceptual": Small(), "identity": recognise}
    free, held = adapt(made, guide(), SHIFT, config), adapt(made, guide(), SHIFT, replace(config, **kept), **networks)
    ws = made.map(torch.randn(16, 6, generator=rng(5)))
    for name, see in (("lpips", Small().features), ("id", recognise)):
        if name in kept:
            before, without, with_ = (see(g.synthesize(ws)) for g in (made, free.generator, held.generator))
            assert (with_ - before).square().sum() < 0.7 * (without - before).square().sum()
    first, last = held.history[0]["terms"], held.history[-1]
    assert all(first[name] == pytest.approx(0.0, abs=1e-6) for name in kept)
    assert last["loss"] == pytest.approx(
        last["terms"]["direction"] + sum(weight * last["terms"][name] for name, weight in kept.items()), rel=1e-5
    )


def test_similarity_networks_never_see_more_than_a_chunk() -> None:
    sizes: list[int] = []

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return recognise(images)

    adapt(generator(), guide(), SHIFT, settings(steps=2, batch=4, chunk=1, id=0.5), identity=watched)
    assert set(sizes) == {1}


def test_similarity_term_without_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"id term weighs 1, .*face recognition network"):
        adapt(generator(), guide(), SHIFT, settings(id=1.0), perceptual=Small())


# ---- the domain ---------------------------------------------------------------------------------------------------


def test_domain_is_the_change_of_the_run() -> None:
    made = generator()
    made.source = "0" * 64
    config = settings(ema=0.5, layers=LayerChoice(mode="named", names=("b8.conv1",)))
    result = adapt(made, [guide(0), (guide(5), 2.0)], SHIFT, config)
    assert result.domain.changes.keys() == changed(made.state_dict(), result.generator.state_dict())
    for name, change in result.domain.changes.items():
        assert torch.equal(change, result.generator.state_dict()[name] - made.state_dict()[name])
    record = json.loads(json.dumps(result.domain.provenance))
    own = {} if SHIFT.templates == TEMPLATES else {"templates": list(SHIFT.templates)}
    assert record["prompts"] == {"source": "photo", "target": "sketch", **own}
    assert record["guides"] == [
        {"name": f"tiny-{seed}", "fingerprint": guide(seed).fingerprint, "weight": weight}
        for seed, weight in ((0, 1.0), (5, 2.0))
    ]
    assert record["config"]["lr"] == 0.02 and record["config"]["layers"]["names"] == ["b8.conv1"]
    assert record["source"] == {"sha256": "0" * 64}
    again = result.domain.apply(made).state_dict()
    for name, value in result.generator.state_dict().items():
        torch.testing.assert_close(again[name], value)


def test_domain_provenance_counts_style_images() -> None:
    style = torch.rand(2, 3, 16, 16, generator=rng())
    assert adapt(generator(), guide(), ImageShift(style), settings()).domain.provenance["images"] == 2


def test_mixed_shift_lies_between_text_and_images(tmp_path: Path) -> None:
    style = torch.rand(2, 3, 16, 16, generator=rng())
    mixed, path = MixedShift((SHIFT, ImageShift(style)), (3.0, 1.0)), tmp_path / "run.safetensors"
    result = adapt(generator(), guide(), mixed, settings(), autosave=path)
    record = json.loads(json.dumps(result.domain.provenance))["mixed"]
    assert record[0]["prompts"]["target"] == "sketch" and record[1] == {"images": 2, "weight": 0.25}
    for shift in (SHIFT, ImageShift(style)):
        assert changed(
            adapt(generator(), guide(), shift, settings()).generator.state_dict(), result.generator.state_dict()
        )
    with pytest.raises(CheckpointError, match="belongs to another run"):
        adapt(generator(), guide(), replace(mixed, weights=(1.0, 1.0)), settings(), autosave=path, resume=True)
    assert adapt(generator(), guide(), replace(mixed, weights=(6.0, 2.0)), settings(), autosave=path, resume=True)


def test_domain_provenance_lists_custom_templates() -> None:
    for templates, record in ((TEMPLATES, None), (("a {}",), ("a {}",))):
        found = adapt(generator(), guide(), TextShift("photo", "sketch", templates), settings(steps=1)).domain
        assert found.provenance["prompts"].get("templates") == record


# ---- memory -------------------------------------------------------------------------------------------------------

WHOLE = {"batch": 5, "views": 2, "steps": 4, "terms": {"direction": 1.0, "angle": 0.5}}


def assert_alike(one: Adaptation, other: Adaptation) -> None:
    for name, value in one.generator.state_dict().items():
        torch.testing.assert_close(other.generator.state_dict()[name], value, rtol=1e-4, atol=2e-5)
    for left, right in zip(one.history, other.history, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4, abs=1e-6) and left["layers"] == right["layers"]


@pytest.mark.parametrize(
    "change",
    [
        {"chunk": 1},
        {"chunk": 2},
        {"chunk": 4},
        {"chunk": 2, "noise": "const"},
        {"chunk": 2, "noise": "none", "ema": 0.9},
        {"chunk": 2, "views": 0},
        {"chunk": 3, "layers": ADAPTIVE},
    ],
)
def test_chunks_give_the_same_run(change: dict[str, Any]) -> None:
    config, guides = settings(**(WHOLE | change)), [guide(0), (guide(5), 2.0)]
    whole = adapt(generator(), guides, SHIFT, replace(config, chunk=0))
    images: list[Tensor] = []
    chunked = adapt(generator(), guides, SHIFT, config, lambda step: images.append(step.images()))
    assert_alike(whole, chunked)
    assert all(image.shape == (5, 3, 16, 16) and not image.requires_grad for image in images)


@pytest.mark.parametrize("chunk", [5, 256])
def test_chunk_of_the_batch_size_is_bit_exact(chunk: int) -> None:
    whole, same = (adapt(generator(), guide(), SHIFT, settings(**WHOLE, chunk=size)) for size in (0, chunk))
    assert not changed(whole.generator.state_dict(), same.generator.state_dict()) and whole.history == same.history


def test_loss_sees_the_images_of_all_chunks() -> None:
    """The angle between two images is nothing that either chunk could know."""
    result = adapt(generator(), guide(), SHIFT, settings(**WHOLE, chunk=1))
    assert result.history[-1]["terms"]["angle"] > 0


class Watch(Encoder):
    """Counts how many of the batches it saw earlier are still kept when it sees the next one."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seen: list[weakref.ref[Tensor]] = []
        self.kept: list[int] = []

    def encode_image(self, x: Tensor) -> Tensor:
        self.kept.append(sum(image() is not None for image in self.seen))
        self.seen.append(weakref.ref(x))
        return super().encode_image(x)


def test_chunks_bound_the_live_activations() -> None:
    watch = Watch(0)
    adapt(generator(), guide(model=watch), SHIFT, settings(**(WHOLE | {"steps": 2}), chunk=1))
    assert len(watch.kept) == 2 * 3 * 5 and max(watch.kept) == 0  # each latent before, after, and once more going back


class Narrow(Encoder):
    """Has memory for so many images at once, counted on the way in or on the way back."""

    def __init__(self, seed: int, room: int, back: bool = False) -> None:
        super().__init__(seed)
        self.room, self.back = room, back
        self.seen: list[tuple[int, weakref.ref[Tensor]]] = []
        self.alive: list[int] = []

    def encode_image(self, x: Tensor) -> Tensor:
        self.alive.append(sum(count > self.room and image() is not None for count, image in self.seen))
        self.seen.append((len(x), weakref.ref(x)))
        if len(x) > self.room and not self.back:
            raise torch.cuda.OutOfMemoryError("no room")
        if x.requires_grad:
            x.register_hook(self.fail)
        return super().encode_image(x)

    def fail(self, slope: Tensor) -> None:
        if len(slope) > self.room:
            raise torch.cuda.OutOfMemoryError("no room on the way back")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("views", [0, 2])
def test_out_of_memory_step_is_retried_in_smaller_chunks(back: bool, views: int) -> None:
    config = settings(**(WHOLE | {"views": views, "beta1": 0.5}))
    narrow = Narrow(0, 2 * max(views, 1), back)  # two latents fit, of five
    squeezed = adapt(generator(), [guide(model=narrow), guide(5)], SHIFT, config)
    assert_alike(adapt(generator(), [guide(0), guide(5)], SHIFT, config), squeezed)
    counts = [count // max(views, 1) for count, _ in narrow.seen]
    # Five and three are tried once, in the first step; later steps remember. A step: before, after, and back again.
    assert counts.count(5) == (2 if back else 1) and 0 < counts.count(3) <= (4 if back else 1)
    assert counts[-9:] == [2, 2, 1] * 2 + [1, 2, 2] and max(counts[-36:]) == 2
    for size in (3, 2):  # as a smaller try begins, nothing of the failed one is left
        assert narrow.alive[counts.index(size)] == 0


def test_out_of_memory_selection_is_retried_in_smaller_chunks() -> None:
    config = settings(layers=replace(ADAPTIVE, batch=8, chunk=8, every=1), steps=3)
    narrow = Narrow(0, 2)
    squeezed = adapt(generator(), guide(model=narrow), SHIFT, config)
    assert_alike(adapt(generator(), guide(), SHIFT, config), squeezed)
    assert [count for count, _ in narrow.seen].count(8) == [count for count, _ in narrow.seen].count(4) == 1


@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_out_of_memory_for_one_latent_is_reported(layers: LayerChoice) -> None:
    made = generator()
    before = weights(made)
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"one latent at a time \(no room\)\. Use a smaller CLIP model"
    ):
        adapt(made, guide(model=Narrow(0, 0)), SHIFT, settings(batch=4, layers=layers))
    assert not changed(before, made.state_dict())


# ---- a pool of latents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["random", "const"])
def test_pool_embeds_each_source_batch_once(monkeypatch: pytest.MonkeyPatch, noise: str) -> None:
    made, ran = generator(), []
    monkeypatch.setattr(Block, "forward", counted(ran, Block.forward))
    adapt(made, guide(), SHIFT, settings(steps=8, pool=3, noise=noise))
    assert ran.count(16) == 3 + 8


def test_pool_cache_equals_recomputation() -> None:
    """A term that wants the pictures themselves has the source drawn every time. Here it finds all faces alike."""
    config = settings(steps=7, pool=2, views=2, mirror=True, noise="random")
    known = adapt(generator(), guide(), SHIFT, config)
    again = adapt(generator(), guide(), SHIFT, replace(config, id=1.0), identity=lambda x: x.flatten(1) * 0 + 1)
    assert not changed(known.generator.state_dict(), again.generator.state_dict())


def test_pool_batches_differ_and_repeat() -> None:
    shown: list[Tensor] = []
    adapt(generator(), guide(), SHIFT, settings(steps=6, pool=3, lr=1e-7), lambda step: shown.append(step.images()))
    assert all(float((shown[i] - shown[i + 3]).abs().max()) < 1e-3 for i in range(3))
    assert all(float((shown[i] - shown[i + 1]).abs().max()) > 0.1 for i in range(5))


def test_pool_works_with_smaller_chunks() -> None:
    config = settings(**WHOLE, pool=2)
    assert_alike(*(adapt(generator(), guide(), SHIFT, replace(config, chunk=size)) for size in (0, 2)))


@pytest.mark.parametrize(
    "change", [{}, {"checkpointing": 8}, {"checkpointing": 4, "chunk": 2}, {"checkpointing": 16, "layers": ADAPTIVE}]
)
def test_recomputation_does_not_change_the_run(change: dict[str, Any]) -> None:
    config = settings(**(WHOLE | change))
    again, whole = (adapt(generator(), guide(), SHIFT, one) for one in (config, replace(config, checkpointing=0)))
    assert_alike(whole, again)
    assert again.generator.recompute == 0


def test_recomputed_blocks_store_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = generator(), []
    monkeypatch.setattr(Block, "forward", counted(ran, Block.forward))
    adapt(made, guide(), SHIFT, settings(steps=1, checkpointing=8))
    assert ran.count(4) == 2 and ran.count(8) == ran.count(16) == 3  # before, after, and once more going back


def counted(ran: list[int], forward: Any) -> Any:
    def run(block: Any, *given: Any) -> Any:
        ran.append(block.size)
        return forward(block, *given)

    return run


# ---- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_low_precision_follows_fp32(precision: str, layers: LayerChoice) -> None:
    config = settings(steps=3, layers=layers, beta2=0.9)
    exact, rough = (adapt(generator(), guide(), SHIFT, replace(config, precision=one)) for one in ("fp32", precision))
    for one, other in zip(exact.history, rough.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=0.05)
    assert all(value.dtype == torch.float32 for value in rough.generator.state_dict().values())
    ws = exact.generator.map(torch.randn(4, 6, generator=rng(1)))
    torch.testing.assert_close(*(one.generator.synthesize(ws) for one in (exact, rough)), atol=0.3, rtol=0.1)
    same = not changed(exact.generator.state_dict(), rough.generator.state_dict())
    assert same == (precision == "tf32")  # which a CPU does not have


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_gradients_are_proportional(tmp_path: Path, precision: str) -> None:
    def slope(given: str) -> Tensor:
        config = settings(steps=1, beta1=0.0, grad_clip=1e6, precision=given)
        (state,) = saved_each_step(tmp_path / f"{given}.safetensors", config)
        return torch.cat([value.flatten() for value in of(state, "optimizer.exp_avg").values()])

    exact, rough = slope("fp32"), slope(precision)
    assert torch.cosine_similarity(exact, rough, 0) > 0.98
    assert rough.norm() == pytest.approx(exact.norm().item(), rel=0.1)


def test_overflowing_fp16_gradient_skips_the_step_and_lowers_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, Tensor]] = []
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *given, **more: scaler(*given, **{**more, "init_scale": 2.0**60})
    )
    config = settings(steps=60, precision="fp16", lr=0.05)
    result = adapt(generator(), guide(), SHIFT, config, lambda step: states.append(weights(step.generator)))
    assert not changed(weights(generator()), states[0])  # skipped
    assert changed(states[0], states[-1]) and result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(value.isfinite().all() for value in states[-1].values())


def test_last_block_and_image_are_float32() -> None:
    made, seen = generator(), []
    for name in ("b4", "b8", "b16"):
        made.synthesis.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append([x.dtype for x in out]))
    with torch.autocast("cpu", torch.bfloat16):
        image = made.synthesize(made.map(torch.randn(2, 6, generator=rng())))
    assert seen == [[torch.bfloat16, torch.float32]] * 2 + [[torch.float32] * 2] and image.dtype == torch.float32


# ---- classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [LayerChoice(), ADAPTIVE])
def test_class_of_a_conditional_generator_is_adapted(layers: LayerChoice) -> None:
    made = generator(c_dim=3)
    first, second = (adapt(made, guide(), SHIFT, settings(label=label, layers=layers)) for label in (0, 2))
    assert changed(made.state_dict(), first.generator.state_dict())
    assert changed(first.generator.state_dict(), second.generator.state_dict())
    if layers.mode == "adaptive":  # latents of the class vote, not of another one
        assert first.history[0]["movement"] != second.history[0]["movement"]


@pytest.mark.parametrize(
    ("c_dim", "label", "words"),
    [(3, None, "needs a class from 0 to 2"), (3, 3, "needs a class from 0 to 2"), (0, 0, "has no classes")],
)
def test_unfit_labels_are_refused(c_dim: int, label: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adapt(generator(c_dim=c_dim), guide(), SHIFT, settings(label=label))


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"terms": {}}, "terms"),
        ({"terms": {"direction": 0.0}}, "terms"),
        ({"terms": {"directoin": 1.0}}, "did you mean direction"),
        ({"steps": 0}, "steps"),
        ({"lr": math.nan}, "lr"),
        ({"noise": "loud"}, "noise"),
        ({"psi": 1.5}, "psi"),
        ({"seed": -1}, "seed"),
        ({"label": -1}, "label"),
        ({"layers": "all"}, "LayerChoice"),
        ({"chunk": -1}, "chunk"),
        ({"batch": 1, "terms": {"direction": 1.0, "angle": 0.3}}, "batch is 1.*angle"),
        ({"batch": 1, "terms": {"direction": 1.0, "relation": 1.0, "covariance": 1.0}}, "relation, covariance"),
        ({"mirror": True}, "mirror"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**change)


def test_unknown_layers_and_missing_guides_are_refused() -> None:
    with pytest.raises(ValueError, match="this generator has b4.const"):
        adapt(generator(), guide(), SHIFT, settings(layers=LayerChoice(mode="named", names=("conv9",))))
    with pytest.raises(ValueError, match="no guides"):
        adapt(generator(), [], SHIFT, settings())


class Steep(Encoder):
    """Finite embeddings with a gradient that is not a number."""

    def encode_image(self, x: Tensor) -> Tensor:
        return super().encode_image(x) + (x * 0).sum().sqrt()


def test_non_finite_step_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(FloatingPointError, match="Step 0 has loss"):
        adapt(generator(), guide(model=Steep(0)), SHIFT, settings(autosave_every=1), autosave=path)
    assert not path.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weights_are_refused_before_the_first_step(value: float) -> None:
    made = generator()
    with torch.no_grad():
        made.get_parameter("synthesis.b16.torgb.bias").fill_(value)
    with pytest.raises(ValueError, match=r"1 tensors .* the first is synthesis\.b16\.torgb\.bias"):
        adapt(made, guide(), SHIFT, settings())


def test_other_devices_are_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="generator is on cpu, the guide tiny-0 on meta"):
        adapt(generator(), [guide(1), guide().to("meta")], SHIFT, settings())
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        adapt(generator(), guide(), SHIFT, settings())


def test_unwritable_autosave_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, fault in ((tmp_path / "file" / "x", NotADirectoryError), (tmp_path, FileExistsError)):
        with pytest.raises(fault):
            adapt(generator(), guide(), SHIFT, settings(), kill_at(0), autosave=path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        adapt(generator(), guide(), SHIFT, settings(), kill_at(0), autosave=tmp_path, resume=True)
    with pytest.raises(ValueError, match="without an autosave"):
        adapt(generator(), guide(), SHIFT, settings(), kill_at(0), resume=True)
    made = tmp_path / "new" / "folder" / "run.safetensors"
    adapt(generator(), guide(), SHIFT, settings(), autosave=made)
    assert made.exists()
