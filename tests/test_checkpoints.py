"""Loading and saving generators: every layout gives the same images; refused files name the problem."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia_pickle import dump, network, persistent
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nada_core.io.checkpoint_file import RawCheckpoint, sha256
from nada_core.io.errors import CheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import write_safetensors
from nada_core.latents.sampling import render, sample
from nada_core.models.checkpoints import export_rosinality, load_generator, read_provenance, save_generator
from nada_core.models.domain import Domain
from nada_core.models.layout import find_network
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.models.stylegan2_layouts import LAYOUTS, rosinality_names, to_rosinality
from nada_core.models.summary import describe_generator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(seed: int = 0, **changes: Any) -> StyleGAN2:
    settings: dict[str, Any] = {"resolution": 32, "z_dim": 6, "w_dim": 6, "mapping_layers": 2, "widths": [8, 7, 5, 4]}
    generator = StyleGAN2(**(settings | changes), rng=rng(seed))
    with torch.no_grad():
        for name, value in generator.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                value.add_(0.3 * torch.randn(value.shape, generator=rng(seed + 1)))
        generator.w_avg.normal_(generator=rng(seed + 2))
    return generator


def images(generator: Any) -> Tensor:
    label = torch.eye(generator.c_dim)[[0, 1]] if generator.c_dim else None
    with torch.no_grad():
        return generator.synthesize(generator.map(torch.randn(2, generator.z_dim, generator=rng(9)), label, psi=0.7))


def by_hand(generator: StyleGAN2) -> dict[str, Tensor]:
    """A 32 px network under rosinality's names, written out without the table under test."""
    state = generator.state_dict()
    theirs: dict[str, Tensor] = {"input.input": state["synthesis.b4.const"][None]}
    for index in (0, 1):
        theirs[f"style.{index + 1}.weight"] = state[f"mapping.fc{index}.weight"]
        theirs[f"style.{index + 1}.bias"] = state[f"mapping.fc{index}.bias"]
    convs = (
        ("conv1", "b4.conv1"),
        ("convs.0", "b8.conv0"),
        ("convs.1", "b8.conv1"),
        ("convs.2", "b16.conv0"),
        ("convs.3", "b16.conv1"),
        ("convs.4", "b32.conv0"),
        ("convs.5", "b32.conv1"),
    )
    for index, (name, ours) in enumerate(convs):
        theirs[f"{name}.conv.weight"] = state[f"synthesis.{ours}.weight"][None]
        theirs[f"{name}.conv.modulation.weight"] = state[f"synthesis.{ours}.affine.weight"]
        theirs[f"{name}.conv.modulation.bias"] = state[f"synthesis.{ours}.affine.bias"]
        theirs[f"{name}.noise.weight"] = state[f"synthesis.{ours}.noise_strength"].reshape(1)
        theirs[f"{name}.activate.bias"] = state[f"synthesis.{ours}.bias"]
        theirs[f"noises.noise_{index}"] = state[f"synthesis.{ours}.noise_const"][None, None]
    for name, ours in (("to_rgb1", "b4"), ("to_rgbs.0", "b8"), ("to_rgbs.1", "b16"), ("to_rgbs.2", "b32")):
        theirs[f"{name}.conv.weight"] = state[f"synthesis.{ours}.torgb.weight"][None]
        theirs[f"{name}.conv.modulation.weight"] = state[f"synthesis.{ours}.torgb.affine.weight"]
        theirs[f"{name}.conv.modulation.bias"] = state[f"synthesis.{ours}.torgb.affine.bias"]
        theirs[f"{name}.bias"] = state[f"synthesis.{ours}.torgb.bias"].reshape(1, 3, 1, 1)
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 16
    for block in (0, 1, 2):
        theirs |= {f"convs.{2 * block}.conv.blur.kernel": kernel, f"to_rgbs.{block}.upsample.kernel": kernel}
    return theirs


def rosinality(path: Path, change: Callable[[dict[str, Any]], object] = lambda content: None) -> Path:
    generator = toy()
    content: dict[str, Any] = {"g": by_hand(toy(seed=5)), "g_ema": by_hand(generator), "latent_avg": generator.w_avg}
    change(content)
    torch.save(content, path)
    return path


def test_rosinality_file(tmp_path: Path) -> None:
    loaded = load_generator(rosinality(tmp_path / "x.pt"))
    assert torch.equal(images(loaded), images(toy())) and loaded.spec() == toy().spec()
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert loaded.source == sha256(tmp_path / "x.pt")


def test_rosinality_bare_state_and_training_copy(tmp_path: Path) -> None:
    torch.save(by_hand(toy()) | {"latent_avg": toy().w_avg}, tmp_path / "x.pt")
    assert torch.equal(images(load_generator(tmp_path / "x.pt")), images(toy()))
    trained = load_generator(rosinality(tmp_path / "y.pt", lambda content: content.pop("g_ema")))
    assert torch.equal(trained.state_dict()["synthesis.b4.const"], toy(seed=5).state_dict()["synthesis.b4.const"])


def test_missing_w_avg_is_estimated(tmp_path: Path) -> None:
    first, again = (
        load_generator(rosinality(tmp_path / name, lambda content: content.pop("latent_avg")))
        for name in ("x.pt", "y.pt")
    )
    assert torch.equal(first.w_avg, again.w_avg)
    w = first.mapping(torch.randn(10_000, 6, generator=rng(3)))
    torch.testing.assert_close(first.w_avg, w.mean(dim=0), atol=0.1, rtol=0.1)


def test_adapted_file_without_mean_fits_its_source(tmp_path: Path) -> None:
    """The first implementation's results have no latent_avg: the estimate differs, the mapping weights do not."""

    def adapt(content: dict[str, Any]) -> None:
        content["g_ema"] |= {name: value * 1.1 for name, value in content["g_ema"].items() if "conv.weight" in name}
        del content["latent_avg"]

    source, adapted = (
        load_generator(rosinality(tmp_path / "x.pt")),
        load_generator(rosinality(tmp_path / "y.pt", adapt)),
    )
    assert not torch.equal(source.w_avg, adapted.w_avg) and source.space() == adapted.space()
    assert render(adapted, sample(source, [0, 1])).shape == (2, 3, 32, 32)
    domain = Domain.between(source, adapted)
    assert domain.changes.keys() | domain.gains.keys() >= {"synthesis.b8.conv0.weight"}


def test_missing_noise_maps_are_drawn_with_a_fixed_seed(tmp_path: Path) -> None:
    def strip(content: dict[str, Any]) -> None:
        content["g_ema"] = {name: value for name, value in content["g_ema"].items() if "noises" not in name}

    first, again = (load_generator(rosinality(tmp_path / name, strip)) for name in ("x.pt", "y.pt"))
    assert torch.equal(images(first), images(again))


@pytest.mark.parametrize("changes", [{}, {"c_dim": 3}, {"mapping_lr": 0.1}])
def test_nvidia_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    generator = toy(**changes, clamp=0.5)
    content = {
        "G": network(toy(seed=5, **changes)),
        "D": persistent("Discriminator", {}, ""),
        "G_ema": network(generator, clamp=0.5),
        "augment_pipe": None,
    }
    loaded = load_generator(dump(content, tmp_path / "x.pkl"))
    assert loaded.spec() == generator.spec() and torch.equal(images(loaded), images(generator))
    assert loaded.space() == generator.space()


def test_our_file_is_exact(tmp_path: Path) -> None:
    other: dict[str, Any] = {"c_dim": 2, "clamp": 256.0, "mapping_lr": 0.1, "resolution": 16, "widths": [3, 5, 4]}
    for generator in (toy(), toy(**other)):
        save_generator(generator, tmp_path / "x.safetensors", {"author": "a test", "seeds": [1, 2]})
        loaded = load_generator(tmp_path / "x.safetensors")
        assert loaded.spec() == generator.spec() and loaded.space() == generator.space()
        assert loaded.state_dict().keys() == generator.state_dict().keys()
        assert all(torch.equal(value, generator.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert read_provenance(tmp_path / "x.safetensors") == {"author": "a test", "seeds": [1, 2]}


def test_half_precision_keeps_the_latent_space(tmp_path: Path) -> None:
    save_generator(toy(), tmp_path / "half", {}, half=True)
    save_generator(toy(), tmp_path / "full", {})
    loaded = load_generator(tmp_path / "half")
    assert loaded.space() == toy().space() and all(value.dtype == torch.float32 for value in loaded.parameters())
    torch.testing.assert_close(images(loaded), images(toy()), atol=0.02, rtol=0.02)
    assert (tmp_path / "half").stat().st_size < (tmp_path / "full").stat().st_size


def test_overflow_in_half_precision_is_not_written(tmp_path: Path) -> None:
    generator = toy()
    with torch.no_grad():
        generator.get_parameter("synthesis.b4.const").fill_(1e6)
    with pytest.raises(ValueError, match=r"b4\.const .*float16"):
        save_generator(generator, tmp_path / "x", {}, half=True)
    assert not (tmp_path / "x").exists()


def test_export_to_rosinality(tmp_path: Path) -> None:
    export_rosinality(toy(), tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    expected = by_hand(toy())
    assert content["g_ema"].keys() == expected.keys() and torch.equal(content["latent_avg"], toy().w_avg)
    assert all(torch.equal(value, expected[name]) for name, value in content["g_ema"].items())
    assert torch.equal(images(load_generator(tmp_path / "x.pt")), images(toy()))


def test_export_refuses_settings_the_format_cannot_express() -> None:
    for generator in (toy(c_dim=2), toy(clamp=256.0), toy(z_dim=5), toy(mapping_lr=0.1)):
        with pytest.raises(ValueError, match="Save it as safetensors"):
            to_rosinality(generator)


def test_rosinality_names_are_unique_and_complete() -> None:
    names = rosinality_names(32, 2)
    assert len(set(names.values())) == len(names)
    assert {*names, "mapping.w_avg"} == toy().state_dict().keys()


def edit(name: str, value: Tensor | None) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["g_ema"].pop(name, None)
        if value is not None:
            content["g_ema"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("convs.1.noise.weight", None), r"missing are g_ema\.convs\.1\.noise\.weight"),
        (
            edit("convs.0.conv.weight", torch.zeros(1, 9, 8, 3, 3)),
            r"ill-shaped are g_ema\.convs\.0\.conv\.weight \[9, 8",
        ),
        (edit("to_rgb1.bias", torch.zeros(1, 4, 1, 1)), r"ill-shaped are g_ema\.to_rgb1\.bias \[4\] where \[3\]"),
        (edit("attention.weight", torch.zeros(3)), r"unexpected are attention\.weight"),
        (edit("style.1.weight", None), r"mapping\.fc0|style\.1"),
        (edit("conv1.conv.modulation.weight", torch.zeros(3)), r"conv1\.conv\.modulation\.weight is of shape \[3\]"),
        (edit("convs.0.conv.blur.kernel", torch.ones(4, 4)), "not the filter"),
        (lambda content: content.update(latent_avg=torch.zeros(4, 6)), r"mapping\.w_avg \[24\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_generator(rosinality(tmp_path / "x.pt", change))
    assert str(tmp_path / "x.pt") in str(caught.value) and "rosinality" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state_dict.encoder.input_layer.0.weight", "an encoder"),
        ("G_ema.synthesis.L0_36_512.weight", "StyleGAN3"),
        ("visual.conv1.weight", "CLIP"),
        ("d.final_conv.0.weight", "discriminator"),
        ("D.b4.conv.weight", "a discriminator"),
        ("something", "1 tensors begin with"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, name: str, words: str) -> None:
    write_safetensors(tmp_path / "x", {name: torch.zeros(1)}, {})
    with pytest.raises(UnsupportedCheckpointError, match=words) as caught:
        load_generator(tmp_path / "x")
    assert "Tried: a generator saved by this package; StyleGAN2 of NVlabs" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resolution", 16.0),
        ("resolution", [16]),
        ("family", []),
        ("widths", 5),
        ("widths", [10**18] * 3),
        ("w_dim", 10**15),
        ("z_dim", "6"),
        ("c_dim", 0.5),
        ("mapping_layers", 2.0),
        ("mapping_lr", 0),
        ("clamp", "x"),
        ("mapping_lr", float("nan")),
        ("clamp", -1),
    ],
)
def test_invalid_spec_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    spec = toy().spec() | {name: value}
    write_safetensors(tmp_path / "x", toy().state_dict(), {"spec": json.dumps(spec), "version": "1"})
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'x'}, read as")):
        load_generator(tmp_path / "x")


@pytest.mark.parametrize("hint", ["text", [1], {"attributes": 5}, {"init_kwargs": {"synthesis_kwargs": None}}])
def test_hints_of_another_shape_are_ignored(tmp_path: Path, hint: Any) -> None:
    state = toy().state_dict()
    raw = RawCheckpoint({f"G_ema.{name}": value for name, value in state.items()}, {"G_ema": hint}, "torch", "")
    layout, prefix = find_network(raw, LAYOUTS) or (None, "")
    assert layout is not None
    spec = layout.read(raw, prefix).spec
    assert spec["clamp"] is None and spec["mapping_lr"] == 0.01


def test_half_precision_file_is_read_as_float32(tmp_path: Path) -> None:
    def halve(content: dict[str, Any]) -> None:
        content["g_ema"] = {name: value.half() for name, value in content["g_ema"].items()}

    whole, half = load_generator(rosinality(tmp_path / "a.pt")), load_generator(rosinality(tmp_path / "b.pt", halve))
    assert all(value.dtype == torch.float32 for value in half.state_dict().values())
    torch.testing.assert_close(images(half), images(whole), rtol=0.05, atol=0.05)


def test_provenance_must_be_a_json_object(tmp_path: Path) -> None:
    for told in ("{", "5"):
        write_safetensors(tmp_path / "x", toy().state_dict(), {"provenance": told})
        with pytest.raises(CheckpointError, match="provenance cannot be read"):
            read_provenance(tmp_path / "x")


def test_two_averages_are_refused(tmp_path: Path) -> None:
    both = {f"g_ema.{name}": value for name, value in by_hand(toy()).items()}
    both |= {f"G_ema.{name}": value for name, value in toy().state_dict().items()}
    torch.save(both, tmp_path / "x.pt")
    with pytest.raises(UnsupportedCheckpointError, match=r"2 generators \(G_ema, g_ema\)"):
        load_generator(tmp_path / "x.pt")


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    state = dict(toy().state_dict())
    for metadata, words in (
        ({"spec": "{"}, "cannot be read.*copy it again"),
        ({"spec": "5"}, "got the spec 5"),
        ({"spec": '{"family": "stylegan9"}'}, "known are"),
        ({"spec": "{}", "version": "99"}, "Update this package"),
    ):
        write_safetensors(tmp_path / "x", state, metadata)
        with pytest.raises(CheckpointError, match=words):
            load_generator(tmp_path / "x")


@pytest.mark.parametrize("key", ["license", "modelspec.license"])
def test_license_is_read_from_the_metadata_and_never_guessed(tmp_path: Path, key: str) -> None:
    made, path = toy(), tmp_path / "ffhq.safetensors"
    save_generator(made, path, {}, recommended={"adapt": {"steps": 5}})
    assert load_generator(path).license is None
    tensors, hints = load_file(path), safe_open(path, "pt").metadata()  # the file stays open
    save_file(tensors, tmp_path / "licensed.safetensors", {**hints, key: "CC-BY-4.0"})
    loaded = load_generator(tmp_path / "licensed.safetensors")
    assert loaded.license == "CC-BY-4.0" and "license: CC-BY-4.0" in describe_generator(loaded)
    assert "recommended settings: adapt\n" in describe_generator(loaded)
    export_rosinality(loaded, tmp_path / "ffhq.pt")
    other = load_generator(tmp_path / "ffhq.pt")
    assert other.license is None and "rosinality" in str(other.layout)
    assert load_generator("portraits").license == "MIT"


def test_description_has_the_sizes() -> None:
    lines = describe_generator(toy(c_dim=3)).splitlines()
    assert lines[0] == "stylegan2 generator, 32 x 32 pixels" and "8 rows of W+, 3 classes" in lines[2]
    assert "not loaded from a file" in lines[1] and lines[-1] == "license: not stated in the file"
