"""StyleGAN2 in TensorFlow pickles: exact weights, settings that are compared, networks that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia_pickle import dump, foreign_class
from tensorflow_pickle import network, variables, write

from nada_core.io.errors import CheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError
from nada_core.models.checkpoints import load_generator
from nada_core.models.stylegan2 import StyleGAN2


def toy(**changes: Any) -> StyleGAN2:
    settings: dict[str, Any] = {"resolution": 16, "z_dim": 6, "w_dim": 6, "mapping_layers": 2, "widths": [5, 4, 3]}
    generator = StyleGAN2(**(settings | changes), rng=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in (*generator.parameters(), generator.w_avg):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return generator


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"c_dim": 3}, {"label_size": 3}),
        ({"clamp": 2.0}, {"conv_clamp": 2.0, "num_fp16_res": 4}),
        ({"mapping_lr": 0.1}, {"mapping_lrmul": 0.1}),
        ({"widths": [4, 4, 4]}, {"fmap_base": 8 << 10, "resample_kernel": [1, 3, 3, 1], "architecture": "skip"}),
        ({}, {"nonlinearity": "lrelu", "truncation_psi": 0.5, "randomize_noise": False, "normalize_latents": True}),
    ],
)
def test_average_is_read_exactly(tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any]) -> None:
    generator = toy(**changes)
    loaded = load_generator(write(generator, tmp_path / "x.pkl", settings))
    assert loaded.spec() == generator.spec() and loaded.space() == generator.space()
    for name, value in generator.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-6, rtol=0, msg=name)


def test_single_network_is_read(tmp_path: Path) -> None:
    path = dump(network(variables(toy())), tmp_path / "x.pkl")
    assert torch.equal(
        load_generator(path).state_dict()["mapping.fc1.weight"], toy().state_dict()["mapping.fc1.weight"]
    )


def test_network_without_noise_draws_the_same_for_any_noise(tmp_path: Path) -> None:
    values = {name: value for name, value in variables(toy()).items() if "noise" not in name}
    loaded = load_generator(dump(network(values, {"use_noise": False}), tmp_path / "x.pkl"))
    ws = loaded.map(torch.randn(1, 6))
    assert torch.equal(loaded.synthesize(ws, "const"), loaded.synthesize(ws, "none"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonlinearity", "relu"),
        ("mapping_nonlinearity", "linear"),
        ("architecture", "resnet"),
        ("resample_kernel", [1, 2, 1]),
        ("normalize_latents", False),
        ("blur_strength", 3),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=name):
        load_generator(write(toy(), tmp_path / "x.pkl", {name: value}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("synthesis/4x4/Const/StyleMod/weight", "StyleGAN1"),
        ("synthesis/ToRGB_lod0/weight", "configs A to D"),
        ("mapping/LabelConcat/weight", "first StyleGAN2"),
        ("synthesis/8x8/Skip/weight", "residual"),
    ],
)
def test_variants_are_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    values = variables(toy()) | {name: np.zeros((2, 2), np.float32)}
    with pytest.raises(UnsupportedCheckpointError, match=words):
        load_generator(dump(network(values), tmp_path / "x.pkl"))


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("dnnlib.tflib.network", "synthesis/4x4/Const/StyleMod/weight", "StyleGAN1"),
        ("tfutil", "4x4/Dense/weight", "Progressive GAN"),
        ("dnnlib.tflib.network", "64x64/FromRGB/weight", "discriminator"),
        ("dnnlib.tflib.network", "conv1/weight", "1 tensors begin with"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, module: str, name: str, words: str) -> None:
    path = dump(network({name: np.zeros((2, 2), np.float32)}, module=module), tmp_path / "x.pkl")
    with pytest.raises(UnsupportedCheckpointError, match=words):
        load_generator(path)


def test_images_other_than_square_rgb_are_refused(tmp_path: Path) -> None:
    wide, grey = variables(toy()), variables(toy())
    wide["synthesis/4x4/Const/const"] = np.zeros((1, 5, 4, 8), np.float32)
    grey["synthesis/16x16/ToRGB/weight"] = np.zeros((1, 1, 3, 1), np.float32)
    for values, words in ((wide, "4 x 8"), (grey, "has 1 output")):
        with pytest.raises(UnsupportedCheckpointError, match=words):
            load_generator(dump(network(values, {"min_h": 1}), tmp_path / "x.pkl"))


def test_missing_variable_is_named(tmp_path: Path) -> None:
    values = variables(toy())
    del values["synthesis/8x8/Conv1/bias"]
    with pytest.raises(CheckpointError, match="synthesis/8x8/Conv1/bias"):
        load_generator(dump(network(values), tmp_path / "x.pkl"))


def test_arrays_of_other_types(tmp_path: Path) -> None:
    """Half precision and doubles are numbers; objects and big-endian numbers are refused."""
    for dtype in (np.float16, np.float64):
        values = variables(toy()) | {"dlatent_avg": np.arange(6).astype(dtype)}
        loaded = load_generator(dump(network(values), tmp_path / "x.pkl"))
        assert torch.equal(loaded.w_avg, torch.arange(6.0))
    for array, kind in (
        (np.array([foreign_class("os", "system")()] * 6, dtype=object), UnsafeCheckpointError),
        (np.arange(6).astype(">f4"), UnsupportedCheckpointError),
    ):
        with pytest.raises(kind, match="objects|big-endian"):
            load_generator(dump(network(variables(toy()) | {"dlatent_avg": array}), tmp_path / "x.pkl"))
