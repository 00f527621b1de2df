"""Nodes for mixed directions, prompt checks, kinds of target and the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack_world import World


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


def test_kind_of_target_changes_the_config(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class ConfigCaptured(Exception):  # noqa: N818
        pass

    def capture(source: object, guides: object, shift: object, config: object, **_: object) -> None:
        raise ConfigCaptured(config)

    monkeypatch.setattr(world.module("nodes._training"), "adapt", capture)
    monkeypatch.setattr(world.module("nodes._training"), "_preview", lambda *_: None)

    def config(**values: object) -> Any:
        given = {"generator": world.stranger, "guide": world.guide, "shift": world.shift}
        with pytest.raises(ConfigCaptured) as captured:
            world.call("AdaptGenerator", **given, settings="kind of target", **values)
        return captured.value.args[0]

    character = config(kind="character")
    assert (character.steps, character.layers.train, character.layers.mode) == (250, "offsets", "all")
    assert character.lr == pytest.approx(0.05) and character.terms["angle"] == 0.25
    assert config(kind="character", steps=7).steps == 7
    assert config(kind="few images").terms == {"direction": 1.0, "angle": 0.5}
    (layers,) = world.call("ChooseLayers", count=2, train="affines")
    assert config(kind="character", layers=layers).layers.train == "affines"


def test_judge_selects_the_best_step(world: World) -> None:
    (other,) = world.call("LoadGuide", guide="portraits-64")
    given = world.training()
    *_, because, _ = world.call("AdaptGenerator", **given, judge=other)
    assert "the best of 2 checkpoints by portraits-64" in because, "without StyleGAN Training Options, often enough"
    every = world.options(keep_every=2)
    assert "the best of 1 checkpoints" in world.call("AdaptGenerator", **given, **every, judge=other)[3]
    assert world.call("AdaptGenerator", **given)[3] == ""
    (both,) = world.call("CombineGuides", guides=[world.guide, other])
    with pytest.raises(ValueError, match="Got 2 guides as judge"):
        world.call("AdaptGenerator", **given, judge=both)
    with pytest.raises(ValueError, match="keep_every 2 without a judge"):
        world.call("AdaptGenerator", **given, **every)


def test_similarity_terms_reduce_the_change(world: World) -> None:
    (similarity_networks,) = world.call("LoadLikeness", identity="portraits")
    given = world.training(id=1.0)
    training = world.call("AdaptGenerator", **given, similarity_networks=similarity_networks)[2]
    assert len(training["loss"]) == 2
    with pytest.raises(ValueError, match="id term weighs 1.*face recognition network"):
        world.call("AdaptGenerator", **given)
