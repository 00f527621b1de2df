"""Files written by version 0.1.0 (tests/fixtures/v0.1) load and give the same pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import guide

from nada_core import (
    CheckpointError,
    Generator,
    TextShift,
    adapt,
    edit,
    load_directions,
    load_domain,
    load_generator,
    load_latents,
    read_domain,
    read_provenance,
    render,
    sample,
    save_directions,
    save_domain,
    save_generator,
    save_latents,
)
from nada_core.io.metadata import read_metadata

FOLDER = Path(__file__).parent / "fixtures" / "v0.1"
PICTURES = load_file(FOLDER / "pictures.safetensors")
DOMAINS = ("plain", "lowrank", "gains")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_generator(FOLDER / "generator.safetensors")


def assert_renders(generator: Generator, name: str) -> None:
    """Compare with the stored pictures; convolutions may differ in the last bits between processors."""
    pictures = render(generator, load_latents(FOLDER / "latents.safetensors", generator))
    torch.testing.assert_close(pictures, PICTURES[name], rtol=0, atol=1e-5)


def test_old_generators_load(generator: Generator) -> None:
    for name in ("generator", "generator-half"):
        assert_renders(load_generator(FOLDER / f"{name}.safetensors"), name)
        assert read_provenance(FOLDER / f"{name}.safetensors") == {"target": "fixture"}
    stored = load_file(FOLDER / "generator.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in generator.state_dict().items())


def test_old_latents_load(generator: Generator) -> None:
    latents, sampled = load_latents(FOLDER / "latents.safetensors", generator), sample(generator, [0, 1])
    torch.testing.assert_close(latents.ws, sampled.ws, rtol=0, atol=1e-5)
    assert latents.noise == sampled.noise and latents.space == generator.space()


@pytest.mark.parametrize("kind", DOMAINS)
def test_old_domains_load(generator: Generator, kind: str) -> None:
    path = FOLDER / f"domain-{kind}.safetensors"
    assert_renders(load_domain(generator, path, 0.5), f"domain-{kind}")
    assert read_domain(path).provenance == {"target": kind}


def test_old_directions_load(generator: Generator) -> None:
    directions = load_directions(FOLDER / "directions.safetensors", generator)
    edited = edit(load_latents(FOLDER / "latents.safetensors"), directions[0], 2.0)
    torch.testing.assert_close(render(generator, edited), PICTURES["edited"], rtol=0, atol=1e-5)


def test_old_autosaves_of_another_run_are_refused(generator: Generator) -> None:
    with pytest.raises(CheckpointError, match="autosave.safetensors belongs to another run"):
        adapt(generator, guide(), TextShift("a", "b"), autosave=FOLDER / "autosave.safetensors", resume=True)


@pytest.mark.parametrize(
    "name", ["generator", "generator-half", "latents", "directions", *(f"domain-{k}" for k in DOMAINS)]
)
def test_files_written_today_equal_the_old_ones(generator: Generator, tmp_path: Path, name: str) -> None:
    """The format has not changed: loading and saving an old file gives its tensors and metadata again."""
    old, new = FOLDER / f"{name}.safetensors", tmp_path / "new.safetensors"
    if name.startswith("generator"):
        save_generator(load_generator(old), new, read_provenance(old), half=name.endswith("half"))
    elif name == "latents":
        save_latents(load_latents(old), new)
    elif name == "directions":
        save_directions(load_directions(old), new)
    else:
        save_domain(read_domain(old), new, compact=name.endswith("lowrank"))
    assert read_metadata(new) == read_metadata(old)
    before, after = load_file(old), load_file(new)
    assert before.keys() == after.keys()
    if name == "domain-lowrank":  # its factors are computed again; their products are equal up to rounding
        before, after = read_domain(old).changes, read_domain(new).changes
    tolerance = 1e-5 if name == "domain-lowrank" else 0
    for key, value in after.items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=tolerance)
