"""CLIP Vision of a real ComfyUI as a guide: weights, gradients, memory, and a training over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_clip_vision
from environment import PREFIX, comfy_path, comfy_python, require
from graph import Prompt, chain, find, short

require("websocket")

if TYPE_CHECKING:
    from server import Server


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> dict[str, Any]:
    return tiny_clip_vision.run_inside(comfy_path(), comfy_python(), pack, tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> Iterator[Server]:
    from server import serve

    base = tmp_path_factory.mktemp("clip_vision")
    tiny_clip_vision.write(base)
    with serve(comfy_path(), comfy_python(), pack, base) as running:
        yield running


def test_embeddings_equal_those_of_comfyui(inside: dict[str, Any]) -> None:
    """For images that need no resizing and have values of whole bytes, to which ComfyUI rounds."""
    assert inside["difference"] < 1e-5


def test_guide_leaves_the_loaded_model_as_it_was(inside: dict[str, Any]) -> None:
    assert inside["changed"] == [] and not inside["memory_changed"]
    assert inside["gradient"] > 0


def test_comfyui_itself_has_no_gradients(inside: dict[str, Any]) -> None:
    """The reason for a network of our own; when this fails, ComfyUI has changed."""
    assert inside["preprocessing_gradient"] == 0
    assert "inplace operation" in inside["network_error"]


def test_text_encoders_project_as_the_shift_expects(inside: dict[str, Any]) -> None:
    assert inside["projected"] == {"sdxl": True, "sd2": True, "flux": False, "sd3": False}


def test_pooled_output_equals_the_text_embedding_of_open_clip(inside: dict[str, Any]) -> None:
    assert inside["text_difference"] < 1e-5


@pytest.fixture
def training(own_server: Server) -> Prompt:
    ours = ("GuideFromClipVision", "ShiftFromImages", "AdaptGenerator", "SampleLatents", "Render")
    names = ["CLIPVisionLoader", "LoadImage", f"{PREFIX}LoadGenerator", *(PREFIX + name for name in ours)]
    return short(chain(own_server.object_info(), *names, "PreviewImage"), 2)


def test_clip_vision_trains_a_generator(own_server: Server, training: Prompt) -> None:
    run = own_server.run(training)
    assert run.status == "success", run.error
    adapt = find(training, f"{PREFIX}AdaptGenerator")
    assert run.outputs and max(value for node, value, _ in run.progress if node in adapt) == 2


def test_text_with_clip_vision_is_refused(own_server: Server, training: Prompt) -> None:
    (shift,) = find(training, f"{PREFIX}ShiftFromImages")
    text = {"source": "photo", "target": "zombie", "wording": "bare"}
    run = own_server.run({**training, shift: {"class_type": f"{PREFIX}ShiftFromText", "inputs": text}})
    assert run.error is not None and run.error["node_type"] == f"{PREFIX}AdaptGenerator"
    assert "no text tower" in run.error["exception_message"]
