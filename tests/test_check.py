"""The shipped weights reach the documented figures, and a short adaptation approaches the true pictures."""

from dataclasses import replace

from nada_core import TextShift, adapt, load_generator, load_guide
from nada_core.models.arcface import load_identity
from nada_core.portraits import RECIPE, SOURCE, Judge, examine
from nada_core.portraits.check import generator_psnr, guide_accuracy, identity_figures, judge_figures
from nada_core.portraits.content import Content


def test_generator_reaches_its_psnr() -> None:
    assert generator_psnr(count=64) >= 30


def test_guide_classifies_styles_also_under_attack() -> None:
    clean, attacked = guide_accuracy(load_guide("portraits"), count=6)
    assert clean >= 0.95 and attacked >= 0.75


def test_judge_reads_styles_attributes_and_broken_images() -> None:
    style, error, detected = judge_figures(Judge.load(), count=60)
    assert style >= 0.98 and error <= 0.06
    assert all(detected[kind] >= 0.95 for kind in ("noise", "blur", "speckle"))


def test_face_network_verifies_people_also_in_other_styles() -> None:
    identity = load_identity("portraits")
    verified, identified = identity_figures(identity, count=60)
    assert verified >= 0.95 and identified >= 0.8
    assert identity_figures(identity, count=60, style="elf")[0] >= 0.95


def test_short_adaptation_approaches_the_true_pictures() -> None:
    source, guide = load_generator("portraits"), load_guide("portraits")
    config = replace(RECIPE, steps=60, warmup=5)
    result = adapt(source, guide, TextShift(SOURCE, "zombie"), config)
    verdict = examine(Judge.load(), Content.load(), source, result.generator, "zombie", count=48)
    assert verdict.distance < 0.8 * verdict.source_distance
    assert verdict.kept > 0.75 and 0.8 < verdict.diversity < 1.25
