"""Nodes for mixed directions, prompt checks, recipes and the judge."""

from __future__ import annotations

import pytest
import torch
from pack_world import QUICK, World


def test_mix_shifts_weights(either: World) -> None:
    (words,) = either.call("ShiftFromText", target="zombie", wording="bare")
    (style,) = either.call("ShiftFromImages", images=torch.rand(2, 64, 64, 3))
    (mixed,) = either.call("MixShifts", first=words, second=style, share=0.25)
    assert [weight for _, weight in mixed.parts] == [0.75, 0.25]
    generator, _, _ = either.adapt(shift=mixed)
    assert generator.space() == either.generator.space()
    with pytest.raises(ValueError, match="TextShift"):
        either.call("MixShifts", first=mixed, second=style)


def test_check_prompts_warns_about_similar_texts(world: World) -> None:
    (clear,) = world.call("ShiftFromText", source="photo", target="zombie")
    assert world.call("CheckPrompts", guide=world.guide, shift=clear) == (
        "No warnings: the guide can tell source and target apart.",
    )
    (odd,) = world.call("ShiftFromText", source="photo", target="photo with")
    assert "portraits" in world.call("CheckPrompts", guide=world.guide, shift=odd)[0]


def test_recipe_changes_the_config(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class ConfigCaptured(Exception):  # noqa: N818
        pass

    def capture(source: object, guides: object, shift: object, config: object, **_: object) -> None:
        raise ConfigCaptured(config)

    recipe, advice = world.call("ChooseRecipe", recipe="character")
    assert "The Joker" in advice and "Guides: ViT-B-32:openai" in advice
    monkeypatch.setattr(world.module("nodes.adapt"), "adapt", capture)
    monkeypatch.setattr(world.module("nodes.adapt"), "_preview", lambda *_: None)
    with pytest.raises(ConfigCaptured) as captured:
        world.adapt(recipe=recipe, steps=60, lr=0.002)
    config = captured.value.args[0]
    assert (config.steps, config.layers.train, config.layers.mode) == (50, "offsets", "all")
    assert config.lr == pytest.approx(0.05) and config.terms["angle"] == 0.25


def test_judge_selects_the_best_step(world: World) -> None:
    (other,) = world.call("LoadGuide", guide="portraits-64")
    given = {"generator": world.generator, "guide": world.guide, "shift": world.shift, **QUICK}
    *_, because = world.call("AdaptGenerator", **given, judge=other, keep_every=1)
    assert "the best of 2 checkpoints by portraits-64" in because
    assert world.call("AdaptGenerator", **given)[-1] == ""
    (both,) = world.call("CombineGuides", first=world.guide, second=other)
    with pytest.raises(ValueError, match="Got 2 guides as judge"):
        world.call("AdaptGenerator", **given, judge=both, keep_every=1)
    with pytest.raises(ValueError, match="keep_every"):
        world.call("AdaptGenerator", **given, keep_every=1)


def test_likeness_terms_reduce_the_change(world: World) -> None:
    (likeness,) = world.call("LoadLikeness", identity="portraits")
    given = {"generator": world.generator, "guide": world.guide, "shift": world.shift, **QUICK}
    training = world.call("AdaptGenerator", **given, likeness=likeness, id=1.0)[2]
    assert len(training["loss"]) == 2
    with pytest.raises(ValueError, match="id"):
        world.call("AdaptGenerator", **given, id=1.0)
