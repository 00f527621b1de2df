"""The built-in world: what is drawn, what is said of it, what is spoiled, and whether the judge's figures mean it."""

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

#: What leaves no trace to speak of; the rest of `HIDDEN` leaves one that is too faint or too ambiguous to be read.
TRACELESS = {
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
def test_pictures(style: str) -> None:
    attributes = contents(5)
    kept = attributes.clone()
    pictures = render(attributes, style)
    assert pictures.shape == (5, 3, RESOLUTION, RESOLUTION) and pictures.dtype == torch.float32
    assert -1 <= pictures.min() < -0.3 and 0.3 < pictures.max() <= 1
    assert torch.equal(pictures, render(attributes, style)) and torch.equal(attributes, kept)
    torch.testing.assert_close(render(attributes[2:3], style), pictures[2:3])  # whatever its neighbours are
    corners = render(torch.tensor([[0.0], [1.0]]).expand(2, len(ATTRIBUTES)), style)
    assert corners.isfinite().all() and corners.abs().max() <= 1


@pytest.mark.parametrize("style", STYLES)
def test_visible_attributes_show_and_traceless_ones_do_not(style: str) -> None:
    attributes = contents(6)
    for name, shown in zip(ATTRIBUTES, visible(style).tolist(), strict=True):
        low, high = (render(with_attribute(attributes, name, value), style) for value in (0.05, 0.95))
        change = (high - low).abs().amax((1, 2, 3))
        if shown:
            assert change.mean() > 0.1, name
        elif name in TRACELESS.get(style, ()):
            assert change.max() < 0.01, name


def test_hidden_attributes_exist() -> None:
    assert set(HIDDEN) < set(STYLES) and all(names < set(ATTRIBUTES) for names in HIDDEN.values())
    assert all(names <= HIDDEN[style] for style, names in TRACELESS.items())
    assert visible("photo").all() and int((~visible("joker")).sum()) == len(HIDDEN["joker"])


def test_every_style_is_its_own() -> None:
    attributes = contents(4)
    pictures = [render(attributes, style) for style in STYLES]
    for index, picture in enumerate(pictures):
        assert all((picture - other).abs().mean() > 0.02 for other in pictures[:index])


def test_a_picture_is_a_continuous_function_of_its_content() -> None:
    path = torch.linspace(0, 1, 201)[:, None] * (contents(1, 1) - contents(1)) + contents(1)
    path[:, ATTRIBUTES.index("glasses")] = torch.linspace(0, 1, 201)
    pictures = render(path)
    assert (pictures[1:] - pictures[:-1]).abs().mean((1, 2, 3)).max() < 0.02
    assert (pictures[-1] - pictures[0]).abs().mean() > 0.1


def test_glasses_are_worn_or_not() -> None:
    column = ATTRIBUTES.index("glasses")
    attributes = with_attribute(contents(5), "glasses", 0.0)
    attributes[:, column] = torch.tensor([0.0, 0.42, 0.5, 0.58, 1.0])
    read = readable(attributes)
    torch.testing.assert_close(read[:, column], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    others = [index for index in range(len(ATTRIBUTES)) if index != column]
    assert torch.equal(read[:, others], attributes[:, others]) and attributes[1, column] == 0.42


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="'oil painting'.*photo, pencil sketch"):
        render(contents(1), "oil painting")
    for wrong in (torch.zeros(1, len(ATTRIBUTES) - 1), torch.zeros(len(ATTRIBUTES))):
        with pytest.raises(ValueError, match=rf"\[N, {len(ATTRIBUTES)}\]"):
            render(wrong)


# ---- spoiled pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_pictures(kind: str) -> None:
    pictures = render(contents(4))
    kept = pictures.clone()
    spoiled = corrupt(pictures, rng(), kind)
    assert spoiled.shape == pictures.shape and spoiled.isfinite().all() and spoiled.abs().max() <= 1
    assert (spoiled - pictures).abs().mean((1, 2, 3)).min() > 0.02
    assert torch.equal(pictures, kept)
    assert torch.equal(spoiled, corrupt(pictures, rng(), kind))
    assert not torch.equal(spoiled, corrupt(pictures, rng(1), kind))


def test_every_picture_is_spoiled_in_its_own_way() -> None:
    pictures = render(contents(1)).expand(12, -1, -1, -1)
    spoiled = corrupt(pictures, rng()).flatten(1)
    assert torch.pdist(spoiled).min() > 1


# ---- captions -----------------------------------------------------------------------------------------------------


def told(count: int = 220) -> tuple[Captions, Tensor, Tensor]:
    classes, attributes = torch.arange(count) % len(CLASSES), contents(count)
    return describe(classes, attributes, random.Random(0)), classes, attributes


def test_captions_fit_their_own_pictures_and_never_another_style() -> None:
    captions, classes, attributes = told()
    fits = captions.fits(classes, attributes)
    assert fits.shape == (220, 220) and fits.diagonal().all()
    assert not fits[classes[:, None] != classes[None]].any()
    detailed = (captions.slices >= 0).any(1)
    same = classes[:, None] == classes[None]
    assert fits[:, ~detailed][same[:, ~detailed]].all()  # a mere style fits everything in it
    assert fits[:, detailed][same[:, detailed]].float().mean() < 0.5


def test_captions_say_what_they_claim_and_nothing_else() -> None:
    captions, classes, attributes = told()
    slices = slices_of(attributes)
    assert 0.25 < (captions.slices >= 0).any(1).float().mean() < 0.6
    for sentence, label, claims, true in zip(captions.sentences, classes, captions.slices, slices, strict=True):
        claimed = (claims >= 0).nonzero().flatten().tolist()
        joints = sentence.replace("black and white", "").count(" and ")  # a template's own
        words = [WORDS[ATTRIBUTES[column]][int(claims[column])] for column in claimed]
        assert CLASSES[label] in sentence and all(word and word in sentence for word in words)
        assert torch.equal(claims[claimed], true[claimed]) and joints == max(0, len(words) - 1)
        if CLASSES[label] == BROKEN:
            assert not claimed
        else:
            assert all(visible(CLASSES[label])[column] for column in claimed)


def test_a_claim_that_is_not_true_does_not_fit() -> None:
    captions, classes, attributes = told()
    row = int((captions.slices >= 0).sum(1).argmax())
    for column in range(len(ATTRIBUTES)):
        other = attributes[row : row + 1].clone()
        other[0, column] = 0.0 if other[0, column] > 0.5 else 1.0
        assert captions.fits(classes[row : row + 1], other)[0, row] == (captions.slices[row, column] < 0)


def test_slices_are_equal_parts() -> None:
    """Five walls: 0..0.2 is the first, 1.0 still the last."""
    column = ATTRIBUTES.index("background_hue")
    values = torch.tensor([0.0, 0.19, 0.21, 0.5, 0.79, 0.81, 1.0])
    attributes = torch.zeros(7, len(ATTRIBUTES))
    attributes[:, column] = values
    assert slices_of(attributes)[:, column].tolist() == [0, 0, 1, 2, 3, 4, 4]


# ---- content ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> Content:
    return Content.measure(mapped(), rng(), samples=4000)


def mapped() -> Any:
    return generator(z_dim=24, w_dim=20)


def test_content_is_uniform_and_its_columns_are_independent(content: Content) -> None:
    attributes = content(mapped().map(torch.randn(2000, 24, generator=rng(1))))
    assert attributes.shape == (2000, len(ATTRIBUTES)) and attributes.min() >= 0 and attributes.max() <= 1
    for column in attributes.T:
        torch.testing.assert_close(
            column.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.05, rtol=0.0
        )
    mutual = torch.corrcoef(attributes.T) - torch.eye(len(ATTRIBUTES))
    assert mutual.abs().max() < 0.2


def test_content_follows_a_latent_along_its_axis_and_stays_in_range(content: Content) -> None:
    steps = torch.linspace(-1e3, 1e3, 4001)[:, None]
    walk = content(content.mean + steps * content.basis[3])
    assert (walk[1:, 3] >= walk[:-1, 3]).all() and walk[0, 3] == 0 and walk[-1, 3] == 1
    rows = mapped().map(torch.randn(3, 24, generator=rng(1)))
    assert torch.equal(content(rows), content(rows[:, 0]))


def test_content_survives_its_file(content: Content, tmp_path: Path) -> None:
    content.save(tmp_path / "content.safetensors")
    ws = mapped().map(torch.randn(3, 24, generator=rng(1)))
    assert torch.equal(Content.load(tmp_path / "content.safetensors")(ws), content(ws))


# ---- the judge ----------------------------------------------------------------------------------------------------


def painter(content: Content, style: str, drawn: Tensor | None = None) -> Any:
    """A generator that draws the truth in one style, or always the same picture."""

    def synthesize(ws: Tensor) -> Tensor:
        return render(content(ws), style) if drawn is None else drawn.expand(len(ws), -1, -1, -1)

    return SimpleNamespace(z_dim=24, map=mapped().map, synthesize=synthesize)


class Oracle:
    """A judge that knows every true picture of the contents in question."""

    def __init__(self, attributes: Tensor) -> None:
        self.attributes = readable(attributes)
        self.truth = torch.stack([render(attributes, style) for style in STYLES])  # [S, N, 3, H, W]

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        distance = (self.truth - pictures).abs().mean((2, 3, 4)).T  # [N, S]
        exact = distance.amin(1, keepdim=True) < 1e-6
        return torch.cat([-distance, (~exact).float()], 1), torch.where(exact, self.attributes, 0.5)


def verdict(content: Content, adapted: Any, style: str, judge: Any = None) -> Verdict:
    with torch.no_grad():
        attributes = content(mapped().map(torch.randn(24, 24, generator=rng(5))))
    return examine(judge or Oracle(attributes), content, painter(content, "photo"), adapted, style, count=24, seed=5)


def test_a_perfect_adaptation_passes(content: Content) -> None:
    found = verdict(content, painter(content, "zombie"), "zombie")
    assert (found.judge, found.distance, found.passed) == (1.0, 0.0, True)
    assert found.kept == pytest.approx(1, abs=1e-3) and found.diversity == pytest.approx(1, abs=1e-3)
    assert found.source_distance > 0.02 and found.as_row()["kept"] == found.kept


def test_no_adaptation_keeps_everything_and_passes_nothing(content: Content) -> None:
    found = verdict(content, painter(content, "photo"), "zombie")
    assert found.judge == 0 and found.kept == pytest.approx(1) and not found.passed
    assert found.distance == found.source_distance


def test_the_same_picture_for_everybody_is_found_out(content: Content) -> None:
    found = verdict(content, painter(content, "zombie", render(contents(1, 9), "zombie")), "zombie")
    assert found.diversity == pytest.approx(0, abs=1e-3) and abs(found.kept) < 0.2 and not found.passed


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
def test_the_bar_is_all_four_figures_together(change: dict[str, float], passed: bool) -> None:
    good = Verdict(judge=0.95, attributes=0.8, source_attributes=0.8, distance=0.1, source_distance=0.2, diversity=1.0)
    assert replace(good, **change).passed == passed


def test_an_untrained_judge_has_the_right_shape() -> None:
    styles, attributes = Judge()(render(contents(2)))
    assert styles.shape == (2, len(CLASSES)) and attributes.shape == (2, len(ATTRIBUTES))


@pytest.mark.parametrize("style", STYLES[1:])
def test_the_judge_tells_the_truth_from_the_source(content: Content, style: str) -> None:
    judge = Judge.load()
    perfect = verdict(content, painter(content, style), style, judge)
    nothing = verdict(content, painter(content, "photo"), style, judge)
    assert perfect.judge >= 0.95 and perfect.kept > 0.75
    assert nothing.judge <= 0.05 and nothing.kept == pytest.approx(1) and not nothing.passed


def test_the_judge_refuses_spoiled_pictures() -> None:
    styles, _ = Judge.load()(corrupt(render(contents(64)), rng()))
    assert (styles.argmax(1) == CLASSES.index(BROKEN)).float().mean() > 0.8
