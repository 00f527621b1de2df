"""Which network a file holds: wrappings, candidates, the mean of w, whole models, settings that change pictures."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia_pickle import dump, foreign_class, network, persistent
from torch import Tensor, nn

from nada_core.io.errors import CheckpointError, UnsupportedCheckpointError
from nada_core.models.checkpoints import load_generator
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.models.stylegan2_layouts import to_rosinality


def toy(seed: int = 0, **changes: Any) -> StyleGAN2:
    settings: dict[str, Any] = {"resolution": 16, "z_dim": 6, "w_dim": 6, "mapping_layers": 2, "widths": [5, 4, 3]}
    generator = StyleGAN2(**(settings | changes), rng=torch.Generator().manual_seed(seed))
    generator.w_avg.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return generator


def nest(state: dict[str, Tensor], keys: list[str]) -> dict[str, Any]:
    """Wrap a state dict in dicts, one per key; a key that ends with a dot is a prefix of the tensors' names."""
    content: dict[str, Any] = state
    for key in reversed(keys):
        content = {f"{key}{name}": value for name, value in content.items()} if key.endswith(".") else {key: content}
    return content


def assert_same(loaded: Any, generator: StyleGAN2) -> None:
    assert loaded.spec() == generator.spec()
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


WRAPPINGS = [
    [],
    ["module."],
    ["state_dict"],
    ["generator"],
    ["params_ema"],
    ["model", "netG."],
    ["state_dict", "module.generator."],
    ["net_g_ema", "module."],
    ["state_dict", "decoder."],
]


@pytest.mark.parametrize("keys", WRAPPINGS, ids=str)
@pytest.mark.parametrize("layout", ["NVIDIA", "rosinality"])
def test_wrapping_is_found(tmp_path: Path, keys: list[str], layout: str) -> None:
    state = dict(toy().state_dict()) if layout == "NVIDIA" else to_rosinality(toy())
    beside: dict[str, Any] = {"step": 5, "d": {"convs.0.weight": torch.zeros(2)}} if keys else {}
    if layout == "rosinality":
        beside["latent_avg"] = toy().w_avg
    torch.save(nest(state, keys) | beside, tmp_path / "x.pt")
    assert_same(load_generator(tmp_path / "x.pt"), toy())


@pytest.mark.parametrize(
    ("keys", "best"),
    [
        (["G", "G_ema"], "G_ema"),
        (["generator", "generator_ema"], "generator_ema"),
        (["params", "params_ema"], "params_ema"),
        (["netG", "EMA"], "EMA"),
        (["model.", "ema_model."], "ema_model."),
    ],
)
def test_average_is_preferred(tmp_path: Path, keys: list[str], best: str) -> None:
    content: dict[str, Any] = {}
    for key in keys:
        content |= nest(dict(toy(0 if key == best else 3).state_dict()), [key])
    torch.save(content, tmp_path / "x.pt")
    assert_same(load_generator(tmp_path / "x.pt"), toy())


@pytest.mark.parametrize("keys", [["first", "second"], ["a_ema", "b_ema"], ["a", "b", "c_ema", "d_ema"]])
def test_several_candidates_are_refused_by_name(tmp_path: Path, keys: list[str]) -> None:
    torch.save({key: dict(toy().state_dict()) for key in keys}, tmp_path / "x.pt")
    named = [key for key in keys if "ema" in key] or keys
    with pytest.raises(UnsupportedCheckpointError, match=r", ".join(named)) as caught:
        load_generator(tmp_path / "x.pt")
    assert all(key not in str(caught.value) for key in ("(a, b",)) and "2 generators" in str(caught.value)


@pytest.mark.parametrize("rows", [None, 1, 6])
@pytest.mark.parametrize("keys", [["g_ema"], ["state_dict", "decoder."]])
def test_mean_of_w_once_or_once_per_row(tmp_path: Path, rows: int | None, keys: list[str]) -> None:
    mean = toy().w_avg if rows is None else toy().w_avg.expand(rows, -1).clone()
    torch.save(nest(to_rosinality(toy()), keys) | {"latent_avg": mean}, tmp_path / "x.pt")
    assert torch.equal(load_generator(tmp_path / "x.pt").w_avg, toy().w_avg)


def test_mean_of_w_that_differs_by_row_is_estimated_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"g_ema": to_rosinality(toy()), "latent_avg": torch.randn(6, 6)}, tmp_path / "x.pt")
    torch.save({"g_ema": to_rosinality(toy())}, tmp_path / "y.pt")
    loaded = load_generator(tmp_path / "x.pt")
    assert "latent_avg" in caplog.text and torch.equal(loaded.w_avg, load_generator(tmp_path / "y.pt").w_avg)
    torch.save({"g_ema": to_rosinality(toy()), "latent_avg": torch.randn(4, 6)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"mapping\.w_avg \[24\]"):
        load_generator(tmp_path / "x.pt")


class Bare(nn.Module):
    """A module tree with the names of a state dict, as a program's own class would have it."""

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> nn.Module:
        root = cls()
        for name, value in state.items():
            node: nn.Module = root
            *path, last = name.split(".")
            for part in path:
                if part not in dict(node.named_children()):
                    node.add_module(part, cls())
                node = dict(node.named_children())[part]
            node.register_buffer(last, value)
        return root


@pytest.mark.parametrize("name", ["bare.pkl", "dict.pkl", "tuple.pkl", "beside.pkl", "model.pt", "dict.pt", "tuple.pt"])
def test_whole_models_of_nvidia(tmp_path: Path, name: str) -> None:
    average, training = network(toy(clamp=4.0), clamp=4.0), network(toy(3))
    other = foreign_class("somebody.networks", "Discriminator")()
    content = {
        "bare": average,
        "model": average,
        "dict": {"G_ema": average, "G": training, "opts": None},
        "tuple": (training, persistent("Discriminator", {}, ""), average),
        "beside": {"G_ema": average, "D": other, "augment_pipe": other},
    }[name.partition(".")[0]]
    if name.endswith(".pt"):
        _save(content, tmp_path / name)
    else:
        dump(content, tmp_path / name)
    assert_same(load_generator(tmp_path / name), toy(clamp=4.0))


def _save(content: object, path: Path) -> None:
    """torch.save with the pickler of the tests, which writes references to classes that do not exist."""
    import io
    import pickle
    import types

    import nvidia_pickle

    module = types.ModuleType("pickle")
    module.__dict__.update(pickle.__dict__, Pickler=nvidia_pickle._Pickler)
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=module)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("wrapped", [False, True])
def test_whole_models_of_rosinality(tmp_path: Path, wrapped: bool) -> None:
    module = Bare.of(to_rosinality(toy()))
    module = nn.DataParallel(module) if wrapped else module
    torch.save({"g_ema": module, "latent_avg": toy().w_avg}, tmp_path / "x.pt")
    assert_same(load_generator(tmp_path / "x.pt"), toy())


def changed_layer(layer: str, **attributes: Any) -> Any:
    """Our toy, pickled as NVIDIA's, with other attributes in one of its modules."""
    whole = network(toy())
    node = whole.reduced[1][0]["state"]
    for part in layer.split(".") if layer else ():
        node = node["_modules"][part].reduced[1][0]["state"]
    node.update(attributes)
    return whole


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        ("synthesis.b8.conv0", "activation", "relu"),
        ("synthesis.b16.conv1", "activation", "linear"),
        ("synthesis.b8.conv0", "act_gain", 1.0),
        ("mapping.fc1", "activation", "sigmoid"),
        ("mapping.fc1", "bias_gain", 1.0),
        ("synthesis.b8.conv0.affine", "bias_gain", 0.01),
        ("synthesis.b8.torgb", "conv_clamp", 7),
        ("synthesis.b8", "architecture", "resnet"),
    ],
)
@pytest.mark.parametrize("write", [dump, _save])
def test_settings_that_change_pictures_are_refused(
    tmp_path: Path, layer: str, name: str, value: Any, write: Callable[[object, Path], object]
) -> None:
    write({"G_ema": changed_layer(layer, **{name: value})}, tmp_path / "x")
    with pytest.raises(UnsupportedCheckpointError, match=f"{layer}.{name} is {value!r}"):
        load_generator(tmp_path / "x")


@pytest.mark.parametrize("taps", [[1.0, 2.0, 2.0, 1.0], [1.0, 3.0, 3.0, 2.0], [1.0, 1.0]])
def test_other_filters_are_refused(tmp_path: Path, taps: list[float]) -> None:
    kernel = torch.outer(torch.tensor(taps), torch.tensor(taps))
    state = dict(toy().state_dict()) | {"synthesis.b8.conv0.resample_filter": kernel / kernel.sum()}
    torch.save({"G_ema": state}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedCheckpointError, match=r"b8\.conv0\.resample_filter"):
        load_generator(tmp_path / "x.pt")


def test_usual_settings_are_accepted(tmp_path: Path) -> None:
    content = changed_layer("synthesis.b8.conv0", activation="lrelu", act_gain=2**0.5, use_noise=True, up=2)
    assert_same(load_generator(dump(content, tmp_path / "x.pkl")), toy())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mapping_kwargs": {"activation": "relu"}}, "mapping.fc0.activation is 'relu'"),
        ({"synthesis_kwargs": {"architecture": "orig"}}, "synthesis.architecture is 'orig'"),
    ],
)
def test_constructor_arguments_are_compared(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    content = changed_layer("", _init_kwargs=arguments)
    with pytest.raises(UnsupportedCheckpointError, match=words):
        load_generator(dump({"G_ema": content}, tmp_path / "x.pkl"))


def test_layer_without_noise_gets_noise_of_strength_zero(tmp_path: Path) -> None:
    content = changed_layer("synthesis.b8.conv0", use_noise=False)
    state = content.reduced[1][0]["state"]
    for part in ("synthesis", "b8", "conv0"):
        state = state["_modules"][part].reduced[1][0]["state"]
    del state["_parameters"]["noise_strength"], state["_buffers"]["noise_const"]
    loaded = load_generator(dump(content, tmp_path / "x.pkl"))
    assert loaded.get_parameter("synthesis.b8.conv0.noise_strength") == 0


def test_bare_state_dict_says_what_it_assumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(toy().state_dict(), tmp_path / "x.pt")
    dump({"G_ema": network(toy())}, tmp_path / "x.pkl")
    with caplog.at_level(logging.WARNING):
        load_generator(tmp_path / "x.pkl")
        assert not caplog.records
        load_generator(tmp_path / "x.pt")
        (record,) = caplog.records
    assert "clamp" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("torgb.weight", (1, 5, 1, 1), "has 1 output.*gray"),
        ("torgb.weight", (4, 5, 1, 1), "has 4 output.*RGBA"),
        ("torgb.weight", (96, 5, 1, 1), "has 96 output"),
        ("const", (5, 4, 8), "4 x 8.*not square"),
        ("conv1.noise_const", (4, 7), "4 x 7.*not square"),
    ],
)
def test_images_other_than_square_rgb_are_refused(tmp_path: Path, name: str, size: tuple[int, ...], words: str) -> None:
    torch.save(dict(toy().state_dict()) | {f"synthesis.b4.{name}": torch.zeros(size)}, tmp_path / "x.pt")
    with pytest.raises(UnsupportedCheckpointError, match=words):
        load_generator(tmp_path / "x.pt")
