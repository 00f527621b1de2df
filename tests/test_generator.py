"""The generator: published sizes, latents, layers, noise, and refused input."""

import copy
import hashlib
import json
from typing import Any

import pytest
import torch
from tiny import generator as tiny
from tiny import rng
from torch import Tensor

from nada_core.models.checkpoints import FAMILIES, build
from nada_core.models.generator import Generator, same_space
from nada_core.models.stylegan2 import StyleGAN2


def latents(generator: Generator, count: int = 2) -> Tensor:
    return torch.randn(count, generator.num_ws, generator.w_dim, generator=rng(3))


@pytest.mark.parametrize(("resolution", "parameters"), [(1024, 30_370_060), (512, 30_276_583), (256, 30_034_338)])
def test_parameter_counts_of_config_f(resolution: int, parameters: int) -> None:
    with torch.device("meta"):
        generator = StyleGAN2(resolution)
    assert sum(value.numel() for value in generator.parameters()) == parameters
    assert generator.num_ws == {1024: 18, 512: 16, 256: 14}[resolution]
    kinds = [layer.kind for layer in generator.layers()]
    assert (kinds.count("conv"), kinds.count("rgb")) == (generator.num_ws - 1, generator.num_ws // 2)


def test_style_channels_of_config_f() -> None:
    with torch.device("meta"):
        generator = StyleGAN2(1024)
    state = generator.state_dict()
    channels = {
        kind: sum(
            len(state[f"synthesis.{layer.name}.affine.bias"]) for layer in generator.layers() if layer.kind == kind
        )
        for kind in ("conv", "rgb")
    }
    assert channels["conv"] == 6048 and sum(channels.values()) == 9088


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_shapes(resolution: int) -> None:
    generator = StyleGAN2(resolution, z_dim=8, w_dim=8, mapping_layers=1, channel_base=128, channel_max=16, rng=rng())
    ws = generator.map(torch.randn(3, 8, generator=rng()))
    image = generator.synthesize(ws)
    assert ws.shape == (3, generator.num_ws, 8) and image.shape == (3, 3, resolution, resolution)
    assert image.dtype == torch.float32 and image.isfinite().all()
    assert max(layer.resolution for layer in generator.layers()) == resolution


def test_w_index_agrees_with_autograd() -> None:
    """Row k modulates exactly the layers with w_index k: only their affine maps get a gradient from it."""
    generator = tiny()
    layers = [layer for layer in generator.layers() if layer.w_index is not None]
    assert [layer.w_index for layer in layers if layer.kind == "conv"] == list(range(generator.num_ws - 1))
    assert {layer.w_index for layer in layers if layer.kind == "rgb"} == {1, 3, 5}
    for row in range(generator.num_ws):
        ws = torch.zeros(1, generator.num_ws, generator.w_dim)
        ws[:, row] = 1.0  # the weight of an affine map gets a gradient from nonzero rows only
        generator.zero_grad(set_to_none=True)
        generator.synthesize(ws).square().sum().backward()
        modulated = {
            layer.name
            for layer in layers
            if generator.get_parameter(f"synthesis.{layer.name}.affine.weight").grad.abs().sum() > 0
        }  # type: ignore[union-attr]
        assert modulated == {layer.name for layer in layers if layer.w_index == row}


def test_layers_name_every_synthesis_parameter_once() -> None:
    generator = tiny()
    named = [name for layer in generator.layers() for name in layer.parameters]
    assert sorted(named) == sorted(name for name, _ in generator.named_parameters() if name.startswith("synthesis."))
    first, second = generator.layers()[:2]
    assert (first.name, first.kind, first.w_index) == ("b4.const", "const", None)
    assert second.name == "b4.conv1" and "synthesis.b4.conv1.noise_strength" in second.parameters


def test_gradient_reaches_every_parameter() -> None:
    generator = tiny(c_dim=2)
    label = torch.eye(2)
    generator.synthesize(generator.map(torch.randn(2, 6, generator=rng()), label)).square().sum().backward()
    assert [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_initial_values() -> None:
    state = StyleGAN2(16, z_dim=64, w_dim=64, widths=[64, 64, 64], rng=rng()).state_dict()
    assert state["synthesis.b8.conv0.affine.bias"].eq(1).all()
    assert not state["synthesis.b8.conv0.bias"].any() and not state["synthesis.b8.conv0.noise_strength"].any()
    assert 0.97 < state["synthesis.b8.conv0.weight"].std() < 1.03
    assert 95 < state["mapping.fc0.weight"].std() < 105


def test_mapping_normalises_z_and_keeps_scale() -> None:
    generator = StyleGAN2(16, z_dim=512, w_dim=512, widths=[4, 4, 4], rng=rng())
    z = torch.randn(4, 512, generator=rng())
    torch.testing.assert_close(generator.map(z), generator.map(10 * z), rtol=1e-4, atol=1e-5)
    assert 0.5 < generator.map(z).std() < 2.5


def test_truncation() -> None:
    generator = tiny()
    z = torch.randn(2, 6, generator=rng())
    full, half, none = (generator.map(z, psi=psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, generator.w_avg.expand_as(none))
    torch.testing.assert_close(half, (full + none) / 2)
    cut = generator.map(z, psi=0.5, cutoff=2)
    assert torch.equal(cut[:, :2], half[:, :2]) and torch.equal(cut[:, 2:], full[:, 2:])


def test_noise_modes() -> None:
    generator = tiny()
    ws = latents(generator, 1).repeat(2, 1, 1)
    const, none = generator.synthesize(ws), generator.synthesize(ws, "none")
    fresh = generator.synthesize(ws, "random", rng(5))
    torch.testing.assert_close(const[0], const[1])
    assert (fresh[0] - fresh[1]).abs().max() > 0.01  # random noise is per sample
    assert (const - none).abs().max() > 0.01
    assert torch.equal(fresh, generator.synthesize(ws, "random", rng(5)))
    assert torch.equal(fresh, generator.synthesize(ws, generator.draw_noise(2, rng(5))))
    flat = [torch.zeros(layer.resolution, layer.resolution) for layer in generator.layers() if layer.kind == "conv"]
    torch.testing.assert_close(generator.synthesize(ws, flat), none)


def test_one_rng_per_sample_makes_samples_independent_of_their_batch() -> None:
    generator = tiny()
    ws = latents(generator, 3)
    batch = generator.synthesize(ws, "random", [rng(seed) for seed in (7, 8, 9)])
    alone = generator.synthesize(ws[1:2], "random", [rng(8)])
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-5)


def test_clamp_limits_activations_and_rgb() -> None:
    generator = tiny(clamp=0.01)
    image = generator.synthesize(latents(generator))
    assert image.abs().max() <= 0.01 * 3 + 1e-6  # three ToRGB layers add up, and upsampling does not amplify
    assert (image - tiny().synthesize(latents(generator))).abs().max() > 0.1


def test_label_changes_w_of_a_conditional_generator() -> None:
    generator = tiny(c_dim=3)
    z = torch.randn(2, 6, generator=rng())
    first, second = (generator.map(z, torch.eye(3)[index].expand(2, 3)) for index in (0, 1))
    assert (first - second).abs().max() > 0.01


def test_spec_and_seed_reproduce_the_generator() -> None:
    generator = tiny(c_dim=3, clamp=256.0, mapping_lr=0.1)
    spec = json.loads(json.dumps(generator.spec()))
    assert build(spec).spec() == spec and FAMILIES[spec["family"]] is StyleGAN2
    one, two, other = (build(spec | {"rng": rng(seed)}) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert one.space() == two.space() != other.space()


def test_space_depends_on_the_mapping_network_alone() -> None:
    generator = tiny()
    changed = copy.deepcopy(generator)
    with torch.no_grad():
        changed.get_parameter("synthesis.b8.conv0.weight").add_(1)
    assert changed.space() == generator.space() and changed.weights_fingerprint() != generator.weights_fingerprint()
    adapted = changed.weights_fingerprint()
    changed.w_avg.add_(1)
    assert changed.space() == generator.space() and changed.weights_fingerprint() == adapted
    with torch.no_grad():
        changed.get_parameter("mapping.fc0.bias").add_(1)
    assert changed.space() != generator.space()


def test_fingerprints_of_old_files_are_accepted() -> None:
    """Version 0.1.0 hashed w_avg as well; such a fingerprint still tells generators apart."""
    generator, other = tiny(), build(tiny().spec() | {"rng": rng(1)})
    generator.w_avg.add_(1)
    digest = hashlib.sha256()
    for name, value in sorted(generator.mapping.state_dict().items()):
        digest.update(f"{name}{list(value.shape)}".encode() + value.numpy().tobytes())
    old = digest.hexdigest()
    assert generator.accepts(old) and generator.accepts("") and generator.accepts(generator.space())
    assert not other.accepts(old) and not other.accepts(generator.space()) and not generator.accepts("unknown")
    assert same_space(old, generator.space()) and same_space("", old) and not same_space(old, old[::-1])
    assert not same_space(generator.space(), other.space())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 48}, "resolution 48"),
        ({"resolution": 8}, "resolution 8"),
        ({"mapping_layers": 0}, "mapping_layers 0"),
        ({"widths": [8, 8]}, r"widths \[8, 8\]"),
        ({"widths": [8, 8, 0]}, r"widths \[8, 8, 0\]"),
        ({"z_dim": 0}, "z_dim"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)


def test_bad_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="stylegan9"):
        build({"family": "stylegan9"})
    with pytest.raises(ValueError, match="color"):
        build({"family": "stylegan2", "resolution": 16, "color": "red"})


def test_bad_input_is_refused() -> None:
    generator, labelled = tiny(), tiny(c_dim=2)
    z, ws = torch.randn(2, 6, generator=rng()), latents(generator)
    maps = generator.draw_noise(2, rng())
    refused: list[tuple[str, Any]] = [
        (r"z of shape \[2, 5\]", lambda: generator.map(z[:, :5])),
        (r"z of shape \[6\]", lambda: generator.map(z[0])),
        ("a label", lambda: generator.map(z, torch.eye(2))),
        (r"no label, expected \[2, 2\]", lambda: labelled.map(z)),
        (r"label of shape \[2, 3\]", lambda: labelled.map(z, torch.zeros(2, 3))),
        ("psi nan", lambda: generator.map(z, psi=float("nan"))),
        ("cutoff is 7", lambda: generator.map(z, cutoff=7)),
        (r"ws of shape \[2, 5\]", lambda: generator.synthesize(ws[:, 0])),
        (r"ws of shape \[2, 4, 5\]", lambda: generator.synthesize(ws[:, :4])),
        ("'loud'", lambda: generator.synthesize(ws, "loud")),  # type: ignore[arg-type]
        ("4 noise maps, expected 5", lambda: generator.synthesize(ws, maps[:4])),
        ("noise map 0", lambda: generator.synthesize(ws, maps[::-1])),
        ("1 generators in rng, expected 2", lambda: generator.synthesize(ws, "random", [rng()])),
    ]
    for words, act in refused:
        with pytest.raises(ValueError, match=words):
            act()
