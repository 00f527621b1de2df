"""The pack loads and runs in a real ComfyUI without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environment import PREFIX, comfy_path, comfy_python, require, workflows
from graph import chain, changed, short, to_api
from inprocess import run_inside

require()

LOAD, SAMPLE, RENDER = (f"{PREFIX}{name}" for name in ("LoadGenerator", "SampleLatents", "Render"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> dict[str, Any]:
    """What a process tells that loads the pack and does nothing else."""
    return run_inside(comfy_path(), comfy_python(), pack, tmp_path_factory.mktemp("alone"))


def test_pack_loads(alone: dict[str, Any]) -> None:
    assert alone["fine"], alone["log"]
    assert alone["loaded"]
    assert all(name.startswith(PREFIX) for name in alone["loaded"])


def test_import_loads_no_heavy_modules(alone: dict[str, Any]) -> None:
    """Of what ComfyUI itself has not imported yet."""
    assert not {"open_clip", "lpips", "scipy", "matplotlib", "tyro"} & set(alone["imported"])


def test_schemas_have_descriptions_and_tooltips(alone: dict[str, Any]) -> None:
    for name in alone["loaded"]:
        told = alone["info"][name]
        assert told["description"], f"{name} has no description"
        assert told["category"].startswith("StyleGAN-NADA"), name
        for group in ("required", "optional"):
            for key, spec in told["input"].get(group, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{key} has no tooltip"
        assert all(told["output_tooltips"]), f"an output of {name} has no tooltip"


def test_node_chain_runs(alone: dict[str, Any], pack: Path, tmp_path: Path) -> None:
    prompt = changed(chain(alone["info"], LOAD, SAMPLE, RENDER, "SaveImage"), SAMPLE, count=2)
    told = run_inside(comfy_path(), comfy_python(), pack, tmp_path, prompt)
    assert told["valid"], told["node_errors"]
    assert told["success"], told["error"]
    images = told["outputs"]["4"]["images"]
    assert len(images) == 2
    assert all((tmp_path / "output" / image["filename"]).is_file() for image in images)


@pytest.mark.parametrize("path", workflows(run=True), ids=lambda path: path.stem)
def test_workflow_runs(alone: dict[str, Any], pack: Path, tmp_path: Path, path: Path) -> None:
    pytest.importorskip("comfy_cli", reason="workflow files are converted by comfy-cli")
    prompt = short(to_api(json.loads(path.read_text(encoding="utf-8")), alone["info"]), steps=3)
    told = run_inside(comfy_path(), comfy_python(), pack, tmp_path, prompt)
    assert told["valid"], told["node_errors"]
    assert told["success"], told["error"]
    assert told["outputs"]


def test_value_out_of_range_is_rejected(alone: dict[str, Any], pack: Path, tmp_path: Path) -> None:
    prompt = changed(chain(alone["info"], LOAD, SAMPLE, RENDER, "SaveImage"), SAMPLE, count=0)
    told = run_inside(comfy_path(), comfy_python(), pack, tmp_path, prompt)
    assert not told["valid"]
    assert list(told["node_errors"]) == ["2"]
