"""Domains: computed, applied, combined, written, read, and refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import changed, copied, generator, guide, rng
from torch import Tensor

from nada_core.adaptation.adapt import adapt
from nada_core.adaptation.config import AdaptConfig, LayerChoice
from nada_core.adaptation.layer_selection import count_trained
from nada_core.guidance.shifts import TextShift
from nada_core.io.errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import read_metadata, write_safetensors, write_torch
from nada_core.models.checkpoints import load_generator, save_generator
from nada_core.models.domain import Domain, load_domain, read_domain, save_domain
from nada_core.models.generator import Generator

MOVED = ("synthesis.b8.conv0.weight", "synthesis.b8.conv0.bias", "synthesis.b4.const")


def adapted(seed: int = 3, names: tuple[str, ...] = MOVED) -> Generator:
    made = generator()
    with torch.no_grad():
        for number, name in enumerate(names):
            weight = made.get_parameter(name)
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng(seed + number)))
    return made


def domain(seed: int = 3, **changes: Any) -> Domain:
    return replace(Domain.between(generator(), adapted(seed), {"target": "sketch"}), **changes)


def bits(made: Generator) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in made.state_dict().items()}


# ---- between and apply --------------------------------------------------------------------------------------------


def test_domain_holds_changed_parameters_only() -> None:
    result = domain()
    assert result.changes.keys() == set(MOVED) and result.space == generator().space()
    assert result.provenance == {"target": "sketch"}
    for name, change in result.changes.items():
        assert change.dtype == torch.float32 and not change.requires_grad
        assert torch.equal(change, adapted().state_dict()[name] - generator().state_dict()[name])
    assert Domain.between(generator(), generator()).changes == {}


def test_domain_between_unrelated_generators_is_refused() -> None:
    with pytest.raises(ValueError, match="different architecture"):
        Domain.between(generator(), generator(widths=[8, 7, 5]))
    with pytest.raises(ValueError, match="different mapping networks"):
        Domain.between(generator(), generator(rng=rng(8)))


def test_applied_domain_gives_the_adapted_generator() -> None:
    source, before = generator(), copied(generator().state_dict())
    source.source = "0" * 64
    source.train()
    made = domain().apply(source)
    for name, value in adapted().state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert made.source is None and not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert source.source == "0" * 64 and source.training and not changed(before, source.state_dict())
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_strength_zero_is_bit_exact() -> None:
    source = generator()
    with torch.no_grad():
        source.get_parameter(MOVED[0]).view(-1)[0] = -0.0  # adding zero would lose the sign
    made = domain().apply(source, 0)
    assert bits(made) == bits(source)
    assert made.get_parameter(MOVED[0]).data_ptr() != source.get_parameter(MOVED[0]).data_ptr()


@pytest.mark.parametrize("strength", [0.5, 1, 1.7, -1.0])
def test_strength_interpolates_and_extrapolates(strength: float) -> None:
    result, source = domain(), generator().state_dict()
    made = result.apply(generator(), strength).state_dict()
    assert changed(source, made) == set(MOVED)
    for name in MOVED:
        torch.testing.assert_close(made[name], source[name] + strength * result.changes[name])


def test_domains_combine_in_any_order() -> None:
    first, second = domain(3), domain(20)
    made = second.apply(first.apply(generator(), 0.5), 0.25).state_dict()
    turned = first.apply(second.apply(generator(), 0.25), 0.5).state_dict()
    for name in MOVED:
        mixed = generator().state_dict()[name] + 0.5 * first.changes[name] + 0.25 * second.changes[name]
        torch.testing.assert_close(made[name], mixed)
        torch.testing.assert_close(turned[name], mixed)


def test_domain_applied_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        made = domain().apply(generator())
    made.requires_grad_(True).synthesize(torch.zeros(1, 6, 5)).sum().backward()
    assert not any(parameter.is_inference() for parameter in made.parameters())


@pytest.mark.parametrize("strength", [math.nan, math.inf, "1", None, True])
def test_strength_must_be_finite(strength: Any) -> None:
    with pytest.raises(ValueError, match=repr(strength)):
        domain().apply(generator(), strength)


def test_strength_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes synthesis\.\S+ beyond what torch.float32 holds"):
        domain().apply(generator(), 1e39)


def test_domain_of_another_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=domain().space[:12]):
        domain().apply(generator(rng=rng(8)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"synthesis.b32.conv0.weight": torch.zeros(1), "x": torch.zeros(1)}, r"b32\.conv0\.weight"),
        ({"mapping.w_avg": torch.zeros(5)}, r"w_avg of shape \[5\]"),  # a buffer
        ({"synthesis.b4.const": torch.zeros(8, 4, 5)}, r"b4\.const of shape \[8, 4, 5\], expected \[8, 4, 4\]"),
        ({"synthesis.b4.const": torch.tensor(0.0)}, r"b4\.const of shape \[\]"),  # which would broadcast
    ],
)
def test_changes_of_other_names_or_shapes_are_refused(changes: dict[str, Tensor], words: str) -> None:
    source = generator()
    before = copied(source.state_dict())
    with pytest.raises(ValueError, match=words):
        domain(changes=changes).apply(source)
    assert not changed(before, source.state_dict())


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [domain(), SimpleNamespace(domain=domain())], ids=["Domain", "Adaptation"])
def test_domain_survives_the_file(tmp_path: Path, given: Any) -> None:
    path = tmp_path / "new" / "sketch.safetensors"
    save_domain(given, path, provenance={"steps": 300})
    result = read_domain(path)
    assert not changed(domain().changes, result.changes) and result.space == domain().space
    assert result.provenance == {"target": "sketch", "steps": 300}
    assert read_metadata(path)["kind"] == "nada_domain"
    assert sorted(load_file(path)) == sorted(MOVED)
    loaded, at_once = load_domain(generator(), path, 0.5), domain().apply(generator(), 0.5)
    assert bits(loaded) == bits(at_once)
    assert bits(load_domain(generator(), path)) == bits(domain().apply(generator()))


def test_half_precision_file_is_smaller(tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_domain(domain(), whole)
    save_domain(domain(), half, half=True)
    assert all(value.dtype == torch.float16 for value in load_file(half).values())
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    for name, change in read_domain(half).changes.items():
        assert change.dtype == torch.float32
        torch.testing.assert_close(change, domain().changes[name], rtol=1e-3, atol=1e-6)


def test_empty_domain_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    save_domain(Domain.between(generator(), generator()), path)
    assert bits(load_domain(generator(), path)) == bits(generator())


@pytest.mark.parametrize(
    ("value", "half", "words"), [(1e5, True, "in float16; .*or without half"), (math.nan, False, "NaN")]
)
def test_nan_and_overflow_are_not_written(tmp_path: Path, value: float, half: bool, words: str) -> None:
    path = tmp_path / "sketch.safetensors"
    path.write_bytes(b"earlier file")
    with pytest.raises(ValueError, match=words):
        save_domain(domain(changes={MOVED[2]: torch.full((8, 4, 4), value)}), path, half)
    assert path.read_bytes() == b"earlier file" and list(tmp_path.iterdir()) == [path]


def test_save_domain_refuses_a_generator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="StyleGAN2"):
        save_domain(adapted(), tmp_path / "x.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_other_files_are_named(tmp_path: Path) -> None:
    save_generator(generator(), tmp_path / "g.safetensors", {})
    write_safetensors(tmp_path / "run.safetensors", {"rng": torch.zeros(1)}, {"kind": "nada_run"})
    save_file({"visual.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    write_torch(tmp_path / "g.pt", {"g_ema": {"x": torch.zeros(1)}})
    for name, words in (
        ("g.safetensors", "a generator saved by this package; load it as a generator"),
        ("run.safetensors", "the autosave of a run"),
        ("clip.safetensors", "a CLIP model"),
        ("g.pt", r"begin with \['g_ema\.x"),
    ):
        with pytest.raises(UnsupportedCheckpointError, match=words):
            read_domain(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        load_domain(generator(), tmp_path / "missing.safetensors")
    save_domain(domain(), tmp_path / "sketch.safetensors")
    with pytest.raises(UnsupportedCheckpointError):  # nor is a domain a generator
        load_generator(tmp_path / "sketch.safetensors")


@pytest.mark.parametrize(
    ("metadata", "fault", "words"),
    [
        ({"version": "4"}, UnsupportedCheckpointError, "format version 4, known is 3"),
        ({"version": '"new"'}, UnsupportedCheckpointError, "format version new"),
        ({"version": "{"}, DamagedCheckpointError, "description cannot be read"),
        ({"version": None}, DamagedCheckpointError, "KeyError: 'version'"),
        ({"space": None}, DamagedCheckpointError, "KeyError: 'space'"),
        ({"provenance": "[1]"}, DamagedCheckpointError, "provenance cannot be read"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, metadata: dict[str, Any], fault: type, words: str) -> None:
    path = tmp_path / "sketch.safetensors"
    save_domain(domain(), path)
    metadata = {name: value for name, value in (read_metadata(path) | metadata).items() if value is not None}
    save_file(copied(load_file(path)), path, metadata)
    with pytest.raises(fault, match=words):
        read_domain(path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sketch.safetensors"
    save_domain(domain(), path)
    tensors, metadata = copied(load_file(path)), read_metadata(path)
    for value, words in ((torch.tensor([math.nan]), "NaN"), (torch.tensor([1]), "torch.int64")):
        save_file(tensors | {MOVED[1]: value}, path, metadata)
        with pytest.raises(DamagedCheckpointError, match=words):
            read_domain(path)
    save_domain(domain(), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpointError):
        read_domain(path)


def test_provenance_is_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_domain(domain(), tmp_path / "x.safetensors", provenance={"a": object()})
    assert not list(tmp_path.iterdir())
    assert json.dumps(domain().provenance)


# ---- compact files ------------------------------------------------------------------------------------------------


def test_low_rank_changes_are_stored_as_factors(tmp_path: Path) -> None:
    config = AdaptConfig(steps=3, lr=0.05, layers=LayerChoice(train="low-rank", rank=1, rgb=True))
    result = adapt(generator(), guide(), TextShift("photo", "sketch"), config)
    for compact in (False, True):
        save_domain(result, tmp_path / f"{compact}.safetensors", compact=compact)
    whole, thin = (load_file(tmp_path / f"{compact}.safetensors") for compact in (False, True))
    assert sum(v.numel() for v in thin.values()) == count_trained(config.layers, generator())
    assert sum(v.numel() for v in thin.values()) < sum(v.numel() for v in whole.values()) / 3
    restored = read_domain(tmp_path / "True.safetensors")
    assert restored.changes.keys() == result.domain.changes.keys()
    for name, change in result.domain.changes.items():
        torch.testing.assert_close(restored.changes[name], change, rtol=1e-4, atol=1e-6)
    assert read_metadata(tmp_path / "True.safetensors")["version"] == "2"
    assert read_metadata(tmp_path / "False.safetensors")["version"] == "1"  # which old readers know


def test_gains_of_version_3_files_scale_with_strength() -> None:
    """Files that hold one factor an input channel: HyperDomainNet's domain modulation (arXiv:2210.08884, 4.1)."""
    path = Path(__file__).parent / "fixtures" / "v0.1" / "domain-gains.safetensors"
    source = load_generator(path.with_name("generator.safetensors"))
    result, stored = read_domain(path), load_file(path)
    assert read_metadata(path)["version"] == "3" and result.gains
    assert {f"{name}.gain" for name in result.gains} <= stored.keys()
    for strength in (0.0, 0.5, 1.0):
        applied = result.apply(source, strength)
        for name, gain in result.gains.items():
            wanted = source.get_parameter(name) * (1 + strength * gain)[:, None, None]
            torch.testing.assert_close(applied.get_parameter(name), wanted)


@pytest.mark.parametrize(
    ("name", "gain"), [("synthesis.b8.conv1.weight", 3), ("synthesis.b8.conv1.bias", 4), ("nobody.weight", 4)]
)
def test_gains_of_another_generator_are_refused(name: str, gain: int) -> None:
    made = Domain({}, generator().space(), {}, {name: torch.ones(gain)})
    with pytest.raises(ValueError, match="Load the generator the adaptation started from"):
        made.apply(generator())


def test_full_rank_changes_are_stored_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_domain(domain(), path, compact=True)
    assert read_metadata(path)["version"] == "1"
    for name, change in domain().changes.items():
        assert torch.equal(read_domain(path).changes[name], change)


def test_factors_of_wrong_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(
        path,
        {"a.left": torch.ones(3, 1), "a.right": torch.ones(1, 4)},
        {"kind": "nada_domain", "version": "2", "space": "x", "shapes": '{"a": [3, 5]}'},
    )
    with pytest.raises(DamagedCheckpointError, match=r"\[3, 5\]"):
        read_domain(path)
