"""Which layers a step trains: the candidates, the measurement behind the adaptive choice, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import Encoder, changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.config import LayerChoice
from nada_core.adaptation.layer_selection import (
    count_trained,
    inspect_layers,
    only_trainable,
    row_movement,
    select_layers,
    selectable_layers,
    trained_names,
)
from nada_core.guidance.shifts import ImageShift, TextShift
from nada_core.guidance.targets import ClipTarget, clip_targets, source_images
from nada_core.models.generator import Generator
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.runtime.batching import MicroBatcher

CONVS = ("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1")
RGBS = ("b4.torgb", "b8.torgb", "b16.torgb")


def targets(*seeds: int) -> tuple[ClipTarget, ...]:
    return clip_targets(
        [guide(seed) for seed in seeds or (0,)], TextShift("photo", "sketch"), torch.zeros(1, 3, 16, 16)
    )


def adaptive(**changes: object) -> LayerChoice:
    return LayerChoice(**({"mode": "adaptive", "count": 1, "batch": 4} | changes))  # type: ignore[arg-type]


def steered_by(row: int) -> Generator:
    """A generator whose images depend on one row of W+ only: all other styles are constant."""
    made = generator()
    with torch.no_grad():
        for layer in made.layers():
            if layer.kind != "const" and layer.w_index != row:
                made.get_parameter(f"synthesis.{layer.name}.affine.weight").zero_()
    return made


def names(layers: Sequence[object]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (LayerChoice(), ("b4.const", *CONVS)),
        (LayerChoice(rgb=True), ("b4.const", *CONVS, *RGBS)),
        (adaptive(), CONVS),
        (adaptive(rgb=True), (*CONVS, *RGBS)),
        (LayerChoice(mode="named", names=("b16.torgb", "b4.const")), ("b16.torgb", "b4.const")),
    ],
)
def test_selectable_layers(choice: LayerChoice, expected: tuple[str, ...]) -> None:
    assert names(selectable_layers(choice, generator())) == expected


@pytest.mark.parametrize("row", range(5))
def test_selection_finds_the_layer_that_matters(row: int) -> None:
    """It is the convolution this row feeds."""
    made = steered_by(row)
    chosen = select_layers(adaptive(), made, targets(), rng())
    assert chosen.names == (CONVS[row],)
    assert [j for j, moved in enumerate(chosen.movement) if moved > 0] == [row]


def test_last_row_is_never_selected() -> None:
    made = steered_by(5)
    chosen = select_layers(adaptive(), made, targets(), rng())
    assert chosen.movement[5] > 0 == sum(chosen.movement[:5])
    assert chosen.names == ("b4.conv1",)  # a tie of nothings, settled by order


@pytest.mark.parametrize("count", [1, 2, 4])
def test_selection_takes_the_rows_that_move_most(count: int) -> None:
    chosen = select_layers(adaptive(count=count), generator(), targets(), rng())
    ranked = sorted(range(5), key=lambda row: -chosen.movement[row])[:count]
    assert len(chosen.movement) == 6 and set(chosen.names) == {CONVS[row] for row in ranked}
    assert list(chosen.names) == [name for name in CONVS if name in chosen.names]  # in the order they run


def test_rgb_layers_join_the_selection() -> None:
    chosen = select_layers(adaptive(rgb=True), generator(), targets(), rng())
    assert len(chosen.names) == 4 and set(RGBS) < set(chosen.names)


def test_movement_is_the_mean_ascent_distance() -> None:
    made, choice, (target,) = generator(), adaptive(rate=0.01), targets()
    z = torch.randn(3, 6, generator=rng(1))
    ws = made.map(z).detach().requires_grad_()
    (target.guide.encode_images(made.synthesize(ws)) @ target.target_embedding.mT).mean().backward()
    assert ws.grad is not None
    torch.testing.assert_close(row_movement(choice, made, (target,), z), 0.01 * ws.grad.abs().mean(dim=(0, 2)))


def test_movement_grows_with_steps() -> None:
    z = torch.randn(3, 6, generator=rng(1))
    once, often = (row_movement(adaptive(steps=steps), generator(), targets(), z) for steps in (1, 5))
    assert (often.sum() / once.sum()).item() == pytest.approx(5, rel=0.2)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_do_not_change_the_movement(chunk: int) -> None:
    z = torch.randn(7, 6, generator=rng(1))
    whole = row_movement(adaptive(chunk=7), generator(), targets(), z)
    torch.testing.assert_close(
        row_movement(adaptive(chunk=chunk), generator(), targets(), z), whole, rtol=1e-4, atol=1e-9
    )


def test_movement_uses_guide_weights() -> None:
    made, z = generator(), torch.randn(3, 6, generator=rng(1))
    (target,) = targets()
    shares = tuple(
        ClipTarget(target.guide, weight, target.direction, target.target_embedding) for weight in (0.25, 0.75)
    )
    one, other = row_movement(adaptive(), made, targets(0), z), row_movement(adaptive(), made, targets(5), z)
    torch.testing.assert_close(row_movement(adaptive(), made, shares, z), one)
    both = row_movement(adaptive(), made, targets(0, 5), z)
    assert ((both - one).abs() > 1e-7).any() and ((both - other).abs() > 1e-7).any()


def test_selection_leaves_the_generator_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (target,) = generator(), targets()
    encode = target.guide.encode_images
    for number, parameter in enumerate(made.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    flags = [parameter.requires_grad for parameter in made.parameters()]

    def watch(images: Tensor) -> Tensor:
        assert images.requires_grad and not any(parameter.requires_grad for parameter in made.parameters())
        return encode(images)

    monkeypatch.setattr(target.guide, "encode_images", watch)
    select_layers(adaptive(), made, (target,), rng())
    assert [parameter.requires_grad for parameter in made.parameters()] == flags
    assert all(parameter.grad is None for parameter in made.parameters())


def test_selection_restores_flags_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (target,) = generator(), targets()

    def fail(images: Tensor) -> Tensor:
        raise KeyError

    monkeypatch.setattr(target.guide, "encode_images", fail)
    with pytest.raises(KeyError):
        select_layers(adaptive(), made, (target,), rng())
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_selection_works_under_no_grad() -> None:
    with torch.no_grad():
        inside = select_layers(adaptive(count=2), generator(), targets(), rng())
    assert inside == select_layers(adaptive(count=2), generator(), targets(), rng())


def test_selection_draws_the_same_numbers_for_any_count() -> None:
    measured, not_measured, fresh = rng(), rng(), rng()
    assert select_layers(adaptive(count=4), generator(), targets(), measured).movement
    chosen = select_layers(adaptive(count=5), generator(), targets(), not_measured)
    assert chosen.names == CONVS and chosen.movement == ()
    assert torch.equal(measured.get_state(), not_measured.get_state())
    assert not torch.equal(measured.get_state(), fresh.get_state())


@pytest.mark.parametrize("choice", [LayerChoice(), LayerChoice(mode="named", names=("b8.conv0",))])
def test_fixed_modes_draw_no_numbers(choice: LayerChoice) -> None:
    numbers = rng()
    assert select_layers(choice, generator(), (), numbers).layers == selectable_layers(choice, generator())
    assert torch.equal(numbers.get_state(), rng().get_state())


def test_only_trainable() -> None:
    made = generator()
    wanted = frozenset({"synthesis.b8.conv0.weight", "synthesis.b4.const"})
    with pytest.raises(KeyError), only_trainable(made, wanted):
        assert {name for name, parameter in made.named_parameters() if parameter.requires_grad} == wanted
        raise KeyError
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_noise_strengths_are_trained_on_request_only() -> None:
    made = generator()
    every = selectable_layers(LayerChoice(), made)
    without = trained_names(LayerChoice(), every)
    assert trained_names(LayerChoice(noise=True), every) - without == {
        f"synthesis.{name}.noise_strength" for name in CONVS
    }
    assert {"synthesis.b4.const", "synthesis.b8.conv0.affine.weight", "synthesis.b8.conv0.bias"} < without


def test_selection_needs_the_class_of_a_conditional_generator() -> None:
    made = generator(c_dim=3)
    first, second = (select_layers(adaptive(), made, targets(), rng(), label) for label in (0, 1))
    assert first.movement != second.movement
    with pytest.raises(ValueError, match=r"label None.*from 0 to 2"):
        select_layers(adaptive(), made, targets(), rng())
    with pytest.raises(ValueError, match="has no classes"):
        select_layers(adaptive(), generator(), targets(), rng(), 1)


def test_unknown_layers_are_refused_with_the_known_ones() -> None:
    choice = LayerChoice(mode="named", names=("b8.conv0", "b9.conv", "convs.1"))
    with pytest.raises(ValueError, match=r"Got layers b9\.conv, convs\.1; this generator has b4\.const, b4\.conv1"):
        selectable_layers(choice, generator())


def test_count_above_the_number_of_layers_is_refused() -> None:
    assert len(selectable_layers(adaptive(count=5), generator())) == 5
    with pytest.raises(ValueError, match="count is 6.*at most 5"):
        selectable_layers(adaptive(count=6), generator())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "adaptiv"}, "did you mean adaptive"),
        ({"mode": "named"}, "at least one of"),
        ({"count": 0}, "count"),
        ({"count": 19}, "count"),
        ({"every": 0}, "every"),
        ({"rate": float("nan")}, "rate"),
        ({"train": "x"}, "train"),
    ],
)
def test_bad_choices_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LayerChoice(**settings)  # type: ignore[arg-type]


# ---- memory -------------------------------------------------------------------------------------------------------


class Narrow(Encoder):
    """Has memory for so many images at once."""

    def __init__(self, seed: int, room: int) -> None:
        super().__init__(seed)
        self.room, self.seen = room, list[int]()

    def encode_image(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError(f"no room for {len(x)}\nand much more")
        return super().encode_image(x)


def test_measurement_is_retried_in_smaller_chunks() -> None:
    z, narrow, choice, batcher = torch.randn(7, 6, generator=rng(1)), Narrow(0, 2), adaptive(chunk=7), MicroBatcher(7)
    squeezed = clip_targets(guide(model=narrow), TextShift("photo", "sketch"))
    moved = row_movement(choice, generator(), squeezed, z, None, batcher)
    torch.testing.assert_close(moved, row_movement(choice, generator(), targets(), z), rtol=1e-4, atol=1e-9)
    assert narrow.seen == [7, 4, 2, 2, 2, 1] and batcher.size == 2


# ---- the measurement on its own -----------------------------------------------------------------------------------

SHIFT = TextShift("photo", "sketch")


@pytest.mark.parametrize("mode", ["all", "adaptive", "named"])
def test_inspection_ignores_the_mode(mode: str) -> None:
    made, choice = generator(), adaptive(mode=mode, names=("b4.const",), count=1)
    found = inspect_layers(made, guide(), SHIFT, choice)
    z = torch.randn(4, 6, generator=rng(0))
    assert names([layer for layer, _ in found]) == CONVS
    assert [moved for _, moved in found] == row_movement(choice, made, targets(), z).tolist()[: len(CONVS)]


def test_inspection_finds_the_layer_that_matters() -> None:
    made = steered_by(3)
    before, flags = copied(made.state_dict()), [parameter.requires_grad for parameter in made.parameters()]
    with torch.no_grad():
        found = inspect_layers(made, [guide(0), (guide(5), 2.0)], SHIFT)
    assert [layer.name for layer, moved in found if moved > 0] == [CONVS[3]]
    assert not changed(before, made.state_dict())
    assert [parameter.requires_grad for parameter in made.parameters()] == flags
    assert inspect_layers(made, guide(), SHIFT) == inspect_layers(made, guide(), SHIFT)
    assert inspect_layers(made, guide(), SHIFT, seed=1) != inspect_layers(made, guide(), SHIFT)


def test_inspection_with_images_uses_source_images() -> None:
    made, style = generator(), ImageShift(torch.full((1, 3, 16, 16), 0.4))
    look = source_images(made, 7)
    assert look.shape == (16, 3, 16, 16) and torch.equal(look, source_images(made, 7))
    assert not torch.equal(look, source_images(made, 8))
    with torch.no_grad():
        torch.testing.assert_close(look, made.synthesize(made.map(torch.randn(16, 6, generator=rng(7)))))
    assert inspect_layers(made, guide(), style) != inspect_layers(made, guide(), SHIFT)


def test_inspection_refuses_what_adapt_refuses() -> None:
    with pytest.raises(ValueError, match="generator is on cpu, the guide tiny-0 on meta"):
        inspect_layers(generator(), guide().to("meta"), SHIFT)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        inspect_layers(generator(), guide(), SHIFT)
    with pytest.raises(ValueError, match="label None.*from 0 to 2"):
        inspect_layers(generator(c_dim=3), guide(), SHIFT)
    with pytest.raises(ValueError, match="no guides"):
        inspect_layers(generator(), [], SHIFT)
    assert inspect_layers(generator(c_dim=3), guide(), SHIFT, label=2)


def test_source_images_are_rendered_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator()
    whole, draw = source_images(made, 3), made.synthesize

    def cramped(ws: Tensor) -> Tensor:
        if len(ws) > 1:
            raise torch.cuda.OutOfMemoryError
        return draw(ws)

    monkeypatch.setattr(made, "synthesize", cramped)
    torch.testing.assert_close(source_images(made, 3), whole)


# ---- how much is trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "rgb", "wanted"),
    [
        ("convolutions", False, 23_583_744 + 5_568),
        ("affines", False, 3_102_624),
        ("offsets", False, 6_048),
        ("affines", True, 3_102_624 + 1_559_520),
        ("offsets", True, 9_088),
        ("low-rank", False, 0),
    ],
)
def test_count_trained_at_1024_pixels(train: str, rgb: bool, wanted: int) -> None:
    """StyleDomain (arXiv:2212.10229), table of section 3: 23.6M, 4.6M, 6.0K."""
    with torch.device("meta"):
        made = StyleGAN2(1024)
    choice = LayerChoice(rgb=rgb, train=train, rank=1)
    if train == "low-rank":
        convs = [made.get_parameter(f"synthesis.{n.name}.weight") for n in made.layers() if n.kind == "conv"]
        wanted = sum(len(kernel) + kernel[0].numel() for kernel in convs)
    assert count_trained(choice, made) == wanted


def test_movement_in_fp16_does_not_vanish() -> None:
    """Gradients of single pixels are below the smallest number of float16."""
    made = generator(resolution=256, widths=[6] * 7)
    weak = [replace(target, weight=2e-3) for target in targets()]
    z = torch.randn(4, 6, generator=rng(3))
    exact, half = (row_movement(adaptive(chunk=2), made, weak, z, precision=name) for name in ("fp32", "fp16"))
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.0)
