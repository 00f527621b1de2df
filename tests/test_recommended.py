"""Settings that travel with a generator's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import tiny

from nada_core import (
    AdaptConfig,
    CheckpointError,
    InvertConfig,
    LayerChoice,
    TuneConfig,
    load_generator,
    portraits,
    save_generator,
)
from nada_core.models.checkpoints import read_recommended
from nada_core.models.generator import changed_settings


def test_builtin_generator_carries_the_settings_of_the_built_in_world() -> None:
    assert read_recommended("portraits") == json.loads(json.dumps(portraits.RECOMMENDED))
    generator = load_generator("portraits")
    assert generator.recommended_settings("adapt", AdaptConfig) == portraits.RECIPE
    assert generator.recommended_settings("invert", InvertConfig) == portraits.INVERT
    assert generator.recommended_settings("tune", TuneConfig) == portraits.TUNE


def test_generator_without_settings_recommends_the_defaults(tmp_path: Path) -> None:
    save_generator(tiny.generator(), tmp_path / "plain.safetensors", {})
    assert read_recommended(tmp_path / "plain.safetensors") == {}
    assert load_generator(tmp_path / "plain.safetensors").recommended_settings("adapt", AdaptConfig) == AdaptConfig()


def test_saved_settings_survive_a_round_trip(tmp_path: Path) -> None:
    config = AdaptConfig(steps=7, layers=LayerChoice(mode="named", names=("b8.conv0", "b16.conv1")))
    path, copy = tmp_path / "own.safetensors", tmp_path / "copy.safetensors"
    save_generator(tiny.generator(), path, {}, recommended={"adapt": changed_settings(config)})
    loaded = load_generator(path)
    assert loaded.recommended_settings("adapt", AdaptConfig) == config
    save_generator(loaded, copy, {})  # kept unless others are given
    assert read_recommended(copy) == read_recommended(path) != {}


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_generator(tiny.generator(), path, {})
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "recommended": "[1"}
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), metadata=metadata))
    with pytest.raises(CheckpointError, match="recommended"):
        load_generator(path)


def test_unknown_recommended_field_is_refused() -> None:
    generator = tiny.generator()
    generator.recommended = {"adapt": {"stepz": 3}}
    with pytest.raises((TypeError, ValueError), match="stepz"):
        generator.recommended_settings("adapt", AdaptConfig)
