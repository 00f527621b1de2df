"""Misalignment: its two parts as measured, and shifts with a chosen amount of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core import AdaptConfig, load_generator, load_guide
from nada_core.adaptation.provenance import run_fingerprint
from nada_core.guidance.shifts import TextShift
from nada_core.guidance.targets import clip_targets
from nada_core.models.clip import ClipGuide
from nada_core.portraits import GUIDES, SOURCE, TARGETS
from nada_core.portraits.misalignment import MisalignedShift, Misalignment, PictureSpan, Tilt, misalign

NAMES = tuple(name for name, _ in GUIDES)
SHIFT = TextShift(SOURCE, "joker")


@pytest.fixture(scope="module")
def guides() -> dict[str, ClipGuide]:
    return {name: load_guide(name) for name in NAMES}


@pytest.fixture(scope="module")
def spans(guides: dict[str, ClipGuide]) -> dict[str, PictureSpan]:
    return {guide.fingerprint: PictureSpan.measure(guide, count=64) for guide in guides.values()}


def tilted(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan], tilt: Tilt, target: str) -> MisalignedShift:
    return misalign(TextShift(SOURCE, target), list(guides.values()), tilt, spans)


def measured(shift: MisalignedShift, guide: ClipGuide) -> Misalignment:
    return shift.spans[guide.fingerprint].misalignment(shift.direction(guide), shift.source, shift.target)


def test_parts_of_the_misalignment_in_a_known_space() -> None:
    axes = torch.eye(6)
    span = PictureSpan({"a": torch.zeros(6), "b": axes[0]}, axes[1:4], torch.zeros(0, 6))
    for direction, leak, noise in (
        (axes[0], 0.0, 0.0),
        (axes[0] + axes[2], 1 - 0.5**0.5, 0.0),
        (axes[0] + axes[5], 0.0, 1 - 0.5**0.5),
        (axes[0] + axes[1] + axes[4], 1 - 0.5**0.5, 1 - (2 / 3) ** 0.5),
    ):
        result = span.misalignment(3 * direction[None], "a", "b")
        assert (result.leak, result.noise) == pytest.approx((leak, noise), abs=1e-6)
        assert 1 - result.total == pytest.approx((1 - result.leak) * (1 - result.noise), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_measured_misalignment_is_within_002_of_the_tilt(
    guides: dict[str, ClipGuide], spans: dict[str, PictureSpan], name: str, target: str
) -> None:
    for leak, noise in ((0, 0), (0.03, 0), (0.1, 0), (0.2, 0), (0.4, 0), (0, 0.4), (0.1, 0.4)):
        tilt = Tilt(leak, noise, seed=3)
        result = measured(tilted(guides, spans, tilt, target), guides[name])
        assert result.leak == pytest.approx(leak, abs=0.02) and result.noise == pytest.approx(noise, abs=0.02)
        assert result.total == pytest.approx(1 - (1 - leak) * (1 - noise), abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_leak_and_noise_are_orthogonal(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan], name: str) -> None:
    guide = guides[name]
    plain = SHIFT.direction(guide)[0]

    def change(tilt: Tilt) -> Tensor:
        direction = tilted(guides, spans, tilt, "joker").direction(guide)[0]
        return F.normalize(direction - (direction @ plain) * plain, dim=0)

    leak, noise = change(Tilt(leak=0.2)), change(Tilt(noise=0.4))
    span = spans[guide.fingerprint]
    assert abs(float(leak @ noise)) < 1e-4
    assert float((span.basis @ noise).norm()) < 0.1 and float((span.basis @ leak).norm()) > 0.95
    both = tilted(guides, spans, Tilt(0.2, 0.4), "joker").direction(guide)[0]
    assert float(both.norm()) == pytest.approx(1, abs=1e-5)
    assert float(both @ leak) > 0.2 and float(both @ noise) > 0.7


def test_no_tilt_is_the_text_shift(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan]) -> None:
    shift = tilted(guides, spans, Tilt(), "joker")
    for guide in guides.values():
        torch.testing.assert_close(shift.direction(guide), SHIFT.direction(guide))
        torch.testing.assert_close(shift.target_embedding(guide), SHIFT.target_embedding(guide))


def test_seed_and_target_decide_which_attributes_leak() -> None:
    tilt = Tilt(0.1, seed=1)
    mix = tilt.attribute_mix(SOURCE, "joker")
    assert torch.equal(mix, Tilt(0.2, 0.4, seed=1).attribute_mix(SOURCE, "joker"))
    for other in (replace(tilt, seed=2).attribute_mix(SOURCE, "joker"), tilt.attribute_mix(SOURCE, "zombie")):
        assert abs(float(F.cosine_similarity(mix, other, dim=0))) < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_leak_asks_every_guide_for_the_same_attributes(
    guides: dict[str, ClipGuide], spans: dict[str, PictureSpan], name: str
) -> None:
    guide, tilt = guides[name], Tilt(leak=0.2, seed=5)
    change = tilted(guides, spans, tilt, "joker").direction(guide)[0] - SHIFT.direction(guide)[0]
    mix = tilt.attribute_mix(SOURCE, "joker") @ spans[guide.fingerprint].attributes
    assert float(F.cosine_similarity(change, mix, dim=0)) > 0.6


def test_gap_moves_the_target_embedding_only(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan]) -> None:
    shift, guide = tilted(guides, spans, Tilt(gap=0.8), "joker"), guides[NAMES[0]]
    torch.testing.assert_close(shift.direction(guide), SHIFT.direction(guide))
    assert float(shift.target_embedding(guide) @ SHIFT.target_embedding(guide).mT) < 0.9
    leaked = tilted(guides, spans, Tilt(leak=0.2), "joker").target_embedding(guide)
    assert float(leaked @ SHIFT.target_embedding(guide).mT) < 0.99  # the layer selection sees the leak too


def test_targets_of_weighted_guides_are_tilted(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan]) -> None:
    shift = tilted(guides, spans, Tilt(leak=0.1), "joker")
    targets = clip_targets([(guides[name], weight) for name, weight in GUIDES], shift)
    assert [target.weight for target in targets] == [0.25, 0.75]
    for target in targets:
        result = spans[target.guide.fingerprint].misalignment(target.direction, SOURCE, "joker")
        assert result.leak == pytest.approx(0.1, abs=0.02)


def test_invalid_tilts_and_phrases_are_refused(guides: dict[str, ClipGuide], spans: dict[str, PictureSpan]) -> None:
    for wrong in ({"leak": -0.1}, {"noise": 1.5}, {"gap": -1.0}, {"leak": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Tilt(**wrong)
    with pytest.raises(ValueError, match="'a drawing'"):
        misalign(TextShift(SOURCE, "a drawing"), [], Tilt())
    one = misalign(SHIFT, [guides[NAMES[0]]], Tilt(), spans)
    with pytest.raises(ValueError, match=NAMES[1]):
        one.direction(guides[NAMES[1]])


def test_runs_of_other_tilts_have_other_fingerprints(
    guides: dict[str, ClipGuide], spans: dict[str, PictureSpan]
) -> None:
    source, guide = load_generator("portraits"), guides[NAMES[0]]
    shifts = [SHIFT, *(tilted(guides, spans, tilt, "joker") for tilt in (Tilt(), Tilt(leak=0.1), Tilt(seed=1)))]
    assert len({run_fingerprint(source, guide, shift, AdaptConfig()) for shift in shifts}) == 4
    assert shifts[2].describe()["tilt"]["leak"] == 0.1
    assert shifts[2].describe()["prompts"] == SHIFT.describe()["prompts"]
