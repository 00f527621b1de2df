"""The built-in world: renderer, corrupted pictures, captions, content and judge."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import generator, rng
from torch import Tensor

from nada_core.portraits.content import Content
from nada_core.portraits.fitting.captions import WORDS, Captions, describe, slices_of
from nada_core.portraits.fitting.corrupt import KINDS, corrupt
from nada_core.portraits.judge import BROKEN, CLASSES, Judge, Verdict, examine
from nada_core.portraits.render import ATTRIBUTES, HIDDEN, RESOLUTION, STYLES, readable, render, visible

#: Attributes that do not change the picture at all. The others in `HIDDEN` change it too little to be read.
INVISIBLE = {
    "pencil sketch": {"background_hue", "background_light"},
    "joker": {"skin", "shirt_hue", "mouth_curve", "mouth_width"},
    "marble statue": {"skin", "hair_colour", "shirt_hue"},
}


def contents(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, len(ATTRIBUTES), generator=rng(seed))


def with_attribute(attributes: Tensor, name: str, value: float) -> Tensor:
    out = attributes.clone()
    out[:, ATTRIBUTES.index(name)] = value
    return out


# ---- the renderer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_render_is_deterministic_and_in_range(style: str) -> None:
    attributes = contents(5)
    original = attributes.clone()
    pictures = render(attributes, style)
    assert pictures.shape == (5, 3, RESOLUTION, RESOLUTION) and pictures.dtype == torch.float32
    assert -1 <= pictures.min() < -0.3 and 0.3 < pictures.max() <= 1
    assert torch.equal(pictures, render(attributes, style)) and torch.equal(attributes, original)
    torch.testing.assert_close(render(attributes[2:3], style), pictures[2:3])  # independent of the batch
    corners = render(torch.tensor([[0.0], [1.0]]).expand(2, len(ATTRIBUTES)), style)
    assert corners.isfinite().all() and corners.abs().max() <= 1


@pytest.mark.parametrize("style", STYLES)
def test_visible_attributes_change_the_picture_and_invisible_ones_do_not(style: str) -> None:
    attributes = contents(6)
    for name, shown in zip(ATTRIBUTES, visible(style).tolist(), strict=True):
        low, high = (render(with_attribute(attributes, name, value), style) for value in (0.05, 0.95))
        change = (high - low).abs().amax((1, 2, 3))
        if shown:
            assert change.mean() > 0.1, name
        elif name in INVISIBLE.get(style, ()):
            assert change.max() < 0.01, name


def test_hidden_attributes_exist() -> None:
    assert set(HIDDEN) < set(STYLES) and all(names < set(ATTRIBUTES) for names in HIDDEN.values())
    assert all(names <= HIDDEN[style] for style, names in INVISIBLE.items())
    assert visible("photo").all() and int((~visible("joker")).sum()) == len(HIDDEN["joker"])


def test_styles_differ() -> None:
    attributes = contents(4)
    pictures = [render(attributes, style) for style in STYLES]
    for index, picture in enumerate(pictures):
        assert all((picture - other).abs().mean() > 0.02 for other in pictures[:index])


def test_picture_is_a_continuous_function_of_its_content() -> None:
    path = torch.linspace(0, 1, 201)[:, None] * (contents(1, 1) - contents(1)) + contents(1)
    path[:, ATTRIBUTES.index("glasses")] = torch.linspace(0, 1, 201)
    pictures = render(path)
    assert (pictures[1:] - pictures[:-1]).abs().mean((1, 2, 3)).max() < 0.02
    assert (pictures[-1] - pictures[0]).abs().mean() > 0.1


def test_readable_glasses_are_on_or_off() -> None:
    column = ATTRIBUTES.index("glasses")
    attributes = with_attribute(contents(5), "glasses", 0.0)
    attributes[:, column] = torch.tensor([0.0, 0.42, 0.5, 0.58, 1.0])
    read = readable(attributes)
    torch.testing.assert_close(read[:, column], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    others = [index for index in range(len(ATTRIBUTES)) if index != column]
    assert torch.equal(read[:, others], attributes[:, others]) and attributes[1, column] == 0.42


def test_render_rejects_unknown_styles_and_shapes() -> None:
    with pytest.raises(ValueError, match="'oil painting'.*photo, pencil sketch"):
        render(contents(1), "oil painting")
    for wrong in (torch.zeros(1, len(ATTRIBUTES) - 1), torch.zeros(len(ATTRIBUTES))):
        with pytest.raises(ValueError, match=rf"\[N, {len(ATTRIBUTES)}\]"):
            render(wrong)


# ---- corrupted pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_changes_pictures_reproducibly(kind: str) -> None:
    pictures = render(contents(4))
    original = pictures.clone()
    corrupted = corrupt(pictures, rng(), kind)
    assert corrupted.shape == pictures.shape and corrupted.isfinite().all() and corrupted.abs().max() <= 1
    assert (corrupted - pictures).abs().mean((1, 2, 3)).min() > 0.02
    assert torch.equal(pictures, original)
    assert torch.equal(corrupted, corrupt(pictures, rng(), kind))
    assert not torch.equal(corrupted, corrupt(pictures, rng(1), kind))


def test_corrupt_treats_every_picture_differently() -> None:
    pictures = render(contents(1)).expand(12, -1, -1, -1)
    corrupted = corrupt(pictures, rng()).flatten(1)
    assert torch.pdist(corrupted).min() > 1


# ---- captions -----------------------------------------------------------------------------------------------------


def captioned(count: int = 220) -> tuple[Captions, Tensor, Tensor]:
    classes, attributes = torch.arange(count) % len(CLASSES), contents(count)
    return describe(classes, attributes, random.Random(0)), classes, attributes


def test_captions_fit_their_own_pictures_and_no_other_style() -> None:
    captions, classes, attributes = captioned()
    fits = captions.fits(classes, attributes)
    assert fits.shape == (220, 220) and fits.diagonal().all()
    assert not fits[classes[:, None] != classes[None]].any()
    detailed = (captions.slices >= 0).any(1)
    same = classes[:, None] == classes[None]
    assert fits[:, ~detailed][same[:, ~detailed]].all()  # a caption without attributes fits all pictures in its style
    assert fits[:, detailed][same[:, detailed]].float().mean() < 0.5


def test_captions_contain_exactly_their_claims() -> None:
    captions, classes, attributes = captioned()
    slices = slices_of(attributes)
    assert 0.25 < (captions.slices >= 0).any(1).float().mean() < 0.6
    for sentence, label, claims, true in zip(captions.sentences, classes, captions.slices, slices, strict=True):
        claimed = (claims >= 0).nonzero().flatten().tolist()
        joints = sentence.replace("black and white", "").count(" and ")  # that of a template
        words = [WORDS[ATTRIBUTES[column]][int(claims[column])] for column in claimed]
        assert CLASSES[label] in sentence and all(word and word in sentence for word in words)
        assert torch.equal(claims[claimed], true[claimed]) and joints == max(0, len(words) - 1)
        if CLASSES[label] == BROKEN:
            assert not claimed
        else:
            assert all(visible(CLASSES[label])[column] for column in claimed)


def test_captions_with_a_false_claim_do_not_fit() -> None:
    captions, classes, attributes = captioned()
    row = int((captions.slices >= 0).sum(1).argmax())
    for column in range(len(ATTRIBUTES)):
        other = attributes[row : row + 1].clone()
        other[0, column] = 0.0 if other[0, column] > 0.5 else 1.0
        assert captions.fits(classes[row : row + 1], other)[0, row] == (captions.slices[row, column] < 0)


def test_slices_are_equal_parts() -> None:
    """Five words: 0..0.2 is the first, and 1.0 belongs to the last."""
    column = ATTRIBUTES.index("background_hue")
    values = torch.tensor([0.0, 0.19, 0.21, 0.5, 0.79, 0.81, 1.0])
    attributes = torch.zeros(7, len(ATTRIBUTES))
    attributes[:, column] = values
    assert slices_of(attributes)[:, column].tolist() == [0, 0, 1, 2, 3, 4, 4]


# ---- content ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> Content:
    return Content.measure(mapping_generator(), rng(), samples=4000)


def mapping_generator() -> Any:
    return generator(z_dim=24, w_dim=20)


def test_content_is_uniform_and_its_columns_are_independent(content: Content) -> None:
    attributes = content(mapping_generator().map(torch.randn(2000, 24, generator=rng(1))))
    assert attributes.shape == (2000, len(ATTRIBUTES)) and attributes.min() >= 0 and attributes.max() <= 1
    for column in attributes.T:
        torch.testing.assert_close(
            column.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.05, rtol=0.0
        )
    mutual = torch.corrcoef(attributes.T) - torch.eye(len(ATTRIBUTES))
    assert mutual.abs().max() < 0.2


def test_content_is_monotonic_along_its_axis_and_in_range(content: Content) -> None:
    steps = torch.linspace(-1e3, 1e3, 4001)[:, None]
    walk = content(content.mean + steps * content.basis[3])
    assert (walk[1:, 3] >= walk[:-1, 3]).all() and walk[0, 3] == 0 and walk[-1, 3] == 1
    rows = mapping_generator().map(torch.randn(3, 24, generator=rng(1)))
    assert torch.equal(content(rows), content(rows[:, 0]))


def test_content_is_unchanged_by_saving_and_loading(content: Content, tmp_path: Path) -> None:
    content.save(tmp_path / "content.safetensors")
    ws = mapping_generator().map(torch.randn(3, 24, generator=rng(1)))
    assert torch.equal(Content.load(tmp_path / "content.safetensors")(ws), content(ws))


# ---- the judge ----------------------------------------------------------------------------------------------------


def true_generator(content: Content, style: str, constant: Tensor | None = None) -> Any:
    """A generator of the true pictures in one style, or of one constant picture."""

    def synthesize(ws: Tensor) -> Tensor:
        return render(content(ws), style) if constant is None else constant.expand(len(ws), -1, -1, -1)

    return SimpleNamespace(z_dim=24, map=mapping_generator().map, synthesize=synthesize)


class Oracle:
    """A judge that compares with the true pictures of given contents."""

    def __init__(self, attributes: Tensor) -> None:
        self.attributes = readable(attributes)
        self.truth = torch.stack([render(attributes, style) for style in STYLES])  # [S, N, 3, H, W]

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        distance = (self.truth - pictures).abs().mean((2, 3, 4)).T  # [N, S]
        exact = distance.amin(1, keepdim=True) < 1e-6
        return torch.cat([-distance, (~exact).float()], 1), torch.where(exact, self.attributes, 0.5)


def verdict(content: Content, adapted: Any, style: str, judge: Any = None) -> Verdict:
    with torch.no_grad():
        attributes = content(mapping_generator().map(torch.randn(24, 24, generator=rng(5))))
    return examine(
        judge or Oracle(attributes), content, true_generator(content, "photo"), adapted, style, count=24, seed=5
    )


def test_verdict_of_a_perfect_adaptation_passes(content: Content) -> None:
    result = verdict(content, true_generator(content, "zombie"), "zombie")
    assert (result.judge, result.distance, result.passed) == (1.0, 0.0, True)
    assert result.kept == pytest.approx(1, abs=1e-3) and result.diversity == pytest.approx(1, abs=1e-3)
    assert result.source_distance > 0.02 and result.as_row()["kept"] == result.kept


def test_verdict_of_no_adaptation_fails(content: Content) -> None:
    result = verdict(content, true_generator(content, "photo"), "zombie")
    assert result.judge == 0 and result.kept == pytest.approx(1) and not result.passed
    assert result.distance == result.source_distance


def test_verdict_of_a_collapsed_generator_fails(content: Content) -> None:
    result = verdict(content, true_generator(content, "zombie", render(contents(1, 9), "zombie")), "zombie")
    assert result.diversity == pytest.approx(0, abs=1e-3) and abs(result.kept) < 0.2 and not result.passed


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"judge": 0.89}, False),
        ({"attributes": 0.59}, False),
        ({"distance": 0.18}, False),
        ({"diversity": 0.79}, False),
        ({"diversity": 1.26}, False),
        ({"attributes": 0.61, "judge": 0.9}, True),
    ],
)
def test_verdict_passes_only_if_all_four_figures_do(change: dict[str, float], passed: bool) -> None:
    good = Verdict(judge=0.95, attributes=0.8, source_attributes=0.8, distance=0.1, source_distance=0.2, diversity=1.0)
    assert replace(good, **change).passed == passed


def test_judge_output_shapes() -> None:
    styles, attributes = Judge()(render(contents(2)))
    assert styles.shape == (2, len(CLASSES)) and attributes.shape == (2, len(ATTRIBUTES))


@pytest.mark.parametrize("style", STYLES[1:])
def test_judge_separates_true_pictures_from_the_source(content: Content, style: str) -> None:
    judge = Judge.load()
    perfect = verdict(content, true_generator(content, style), style, judge)
    nothing = verdict(content, true_generator(content, "photo"), style, judge)
    assert perfect.judge >= 0.95 and perfect.kept > 0.75
    assert nothing.judge <= 0.05 and nothing.kept == pytest.approx(1) and not nothing.passed


def test_judge_detects_corrupted_pictures() -> None:
    styles, _ = Judge.load()(corrupt(render(contents(64)), rng()))
    assert (styles.argmax(1) == CLASSES.index(BROKEN)).float().mean() > 0.8
