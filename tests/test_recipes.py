"""Recipes: complete, valid for large and small generators; prompts: what is doubtful about them is said."""

from __future__ import annotations

import pytest
import torch
from tiny import generator, guide, rng

from nada_core.adaptation.adapt import adapt
from nada_core.adaptation.config import AdaptConfig
from nada_core.adaptation.recipes import RECIPES
from nada_core.guidance.prompt_check import MAX_COSINE, MIN_AGREEMENT, check_prompts
from nada_core.guidance.shifts import ImageShift, MixedShift, TextShift
from nada_core.models.clip import ClipGuide
from nada_core.models.clip_loading import load_guide
from nada_core.portraits import RECIPE, SOURCE, TARGETS


def test_recipe_names() -> None:
    assert set(RECIPES) == {"style", "creature", "character", "animal", "few-images"}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("base", [AdaptConfig(), RECIPE])
def test_recipe_changes_only_what_it_names(name: str, base: AdaptConfig) -> None:
    recipe = RECIPES[name]
    config = recipe.config(base)
    assert config.steps == round(base.steps * recipe.steps_factor)
    named = {"steps", "layers", *recipe.settings}
    kept = set(vars(base)) - named
    assert {key: getattr(config, key) for key in kept} == {key: getattr(base, key) for key in kept}
    assert all(getattr(config.layers, key) == value for key, value in recipe.layers.items())
    assert recipe.about and recipe.advice and recipe.guides
    for target in recipe.targets:
        TextShift(recipe.source, target)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(name: str) -> None:
    base = AdaptConfig(steps=3, lr=0.01)
    result = adapt(generator(), guide(), TextShift("photo", "sketch"), RECIPES[name].config(base))
    assert len(result.history) == round(3 * RECIPES[name].steps_factor) and result.domain.changes


# ---- prompts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["portraits", "portraits-64", "portraits-vit"])
def eye(request: pytest.FixtureRequest) -> ClipGuide:
    return load_guide(request.param)


def test_check_prompts_accepts_known_styles(eye: ClipGuide) -> None:
    for target in TARGETS:
        assert check_prompts(eye, TextShift(SOURCE, target)) == []


@pytest.mark.parametrize("target", ["cartoon", "good photo", "the photo"])
def test_check_prompts_names_equal_phrases(eye: ClipGuide, target: str) -> None:
    shift = TextShift(SOURCE, target)
    (told,) = check_prompts(eye, shift)
    assert eye.name in told and repr(target) in told and "use phrases further apart" in told
    assert check_prompts(eye, MixedShift((shift, TextShift(SOURCE, "zombie")))) == [told]


def test_check_prompts_ignores_images(eye: ClipGuide) -> None:
    assert check_prompts(eye, ImageShift(torch.zeros(1, 3, 16, 16))) == []


def test_check_prompts_names_disagreeing_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    eye, shift = guide(), TextShift("photo", "sketch")
    there = torch.nn.functional.normalize(torch.randn(79, 8, generator=rng()), dim=-1)

    def encode_text(phrases: list[str]) -> torch.Tensor:
        return there if "sketch" in phrases[0] else torch.zeros(79, 8)

    monkeypatch.setattr(eye, "encode_text", encode_text)
    (told,) = check_prompts(eye, shift)
    assert "between 'photo' and 'sketch'" in told and 0 < MIN_AGREEMENT < MAX_COSINE < 1
