"""The shipped weights keep what the README says of them, and an adaptation on them goes the right way."""

from dataclasses import replace

import pytest
import torch

from nada_core import TextShift, adapt, load_generator, load_guide
from nada_core.models.arcface import load_identity
from nada_core.portraits import RECIPE, SOURCE, Judge, examine
from nada_core.portraits.check import generator_psnr, guide_accuracy, identity_figures, judge_figures
from nada_core.portraits.content import Content


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


def test_the_generator_draws_its_photos() -> None:
    assert generator_psnr(count=64) >= 30


def test_the_guide_knows_the_styles_even_under_attack() -> None:
    clean, attacked = guide_accuracy(load_guide("portraits"), count=6)
    assert clean >= 0.95 and attacked >= 0.75


def test_the_judge_knows_styles_attributes_and_none_of_these() -> None:
    style, error, none = judge_figures(Judge.load(), count=60)
    assert style >= 0.98 and error <= 0.06
    assert all(none[kind] >= 0.95 for kind in ("noise", "blur", "speckle"))


def test_the_recogniser_knows_people_in_other_styles_too() -> None:
    identity = load_identity("portraits")
    same, found = identity_figures(identity, count=60)
    assert same >= 0.95 and found >= 0.8
    assert identity_figures(identity, count=60, style="elf")[0] >= 0.95


def test_a_short_run_moves_every_picture_towards_its_own_truth() -> None:
    source, guide = load_generator("portraits"), load_guide("portraits")
    config = replace(RECIPE, steps=60, warmup=5)
    result = adapt(source, guide, TextShift(SOURCE, "zombie"), config)
    verdict = examine(Judge.load(), Content.load(), source, result.generator, "zombie", count=48)
    assert verdict.distance < 0.8 * verdict.source_distance
    assert verdict.kept > 0.75 and 0.8 < verdict.diversity < 1.25
