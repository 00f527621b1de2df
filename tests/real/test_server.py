"""The pack in a real ComfyUI server: start, templates, workflows, progress, previews, cache and interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from environment import PACK, PREFIX, require, workflows
from graph import Prompt, chain, changed, find, short, to_api

require("websocket", "comfy_cli")

if TYPE_CHECKING:
    from server import Event, Server

ADAPT, SAMPLE = f"{PREFIX}AdaptGenerator", f"{PREFIX}SampleLatents"
TRAINING = ("LoadGenerator", "LoadGuide", "ShiftFromText", "AdaptGenerator", "SampleLatents", "Render")


@pytest.fixture
def training(info: dict[str, Any]) -> Prompt:
    """The shortest graph that trains and shows images, with default widgets."""
    prompt = chain(info, *(PREFIX + name for name in TRAINING), "PreviewImage")
    return changed(prompt, SAMPLE, count=2)


def test_pack_loads_without_warnings(server: Server) -> None:
    from server import lines_about

    loading, ready, _ = server.log.partition("To see the GUI")
    assert ready
    assert lines_about(loading) == []
    assert "IMPORT FAILED" not in loading
    assert "Traceback" not in loading


def test_pack_is_identified_by_its_folder(info: dict[str, Any]) -> None:
    ours = {name: told["python_module"] for name, told in info.items() if name.startswith(PREFIX)}
    assert ours
    assert set(ours.values()) == {f"custom_nodes.{PACK}"}


def test_workflows_are_templates_with_thumbnails(server: Server) -> None:
    assert workflows(), "the pack ships no workflows"
    listed = server.get("/api/workflow_templates")[PACK]
    assert sorted(listed) == sorted(path.stem for path in workflows())
    for path in workflows():
        place = f"/api/workflow_templates/{PACK}/{quote(path.stem)}"
        assert server.get(f"{place}.json") == json.loads(path.read_text(encoding="utf-8"))
        assert server.get(f"{place}.jpg").startswith(b"\xff\xd8\xff"), f"{path.stem}.jpg is no JPEG"


@pytest.mark.parametrize("path", workflows(run=True), ids=lambda path: path.stem)
def test_workflow_runs(server: Server, info: dict[str, Any], path: Path) -> None:
    run = server.run(short(to_api(json.loads(path.read_text(encoding="utf-8")), info)))
    assert run.status == "success", run.error
    assert run.outputs


def test_training_shows_progress_and_previews(server: Server, training: Prompt) -> None:
    prompt = short(training, 5)
    (adapt,) = find(prompt, ADAPT)
    run = server.run(prompt)
    assert run.status == "success", run.error
    told = [(value, most) for node, value, most in run.progress if node == adapt]
    assert told == sorted(told)
    assert told[-1] == (5, 5)
    pictures = [image for node, image in run.previews if node == adapt]
    assert pictures
    assert all(image.startswith(b"\xff\xd8\xff") for image in pictures)


def test_repeated_run_is_cached(server: Server, training: Prompt) -> None:
    prompt = short(training, 4)
    first, again = server.run(prompt), server.run(prompt)
    assert first.status == again.status == "success"
    assert sorted(again.cached) == sorted(prompt)
    assert again.executed == []
    assert again.outputs == first.outputs


def test_sampling_seed_does_not_train_again(server: Server, training: Prompt) -> None:
    prompt = short(training, 4)
    server.run(prompt)
    run = server.run(changed(prompt, SAMPLE, seed=123))
    assert run.status == "success", run.error
    assert find(prompt, ADAPT)[0] in run.cached
    assert find(prompt, SAMPLE)[0] in run.executed


def test_interrupt_stops_a_training(server: Server, training: Prompt) -> None:
    """`tests/real/measure.py` prints how long that takes."""
    steps = 100_000  # far more than the run could finish before the request arrives
    prompt = short(training, steps)
    asked: list[int] = []

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] >= 2 and not asked:
            asked.append(event.data["value"])
            server.interrupt()

    run = server.run(prompt, on_event=stop)
    assert run.status == "interrupted" and asked
    assert max(value for _, value, _ in run.progress) < steps
    after = server.run(short(training, steps=2))
    assert after.status == "success", after.error


def test_validation_error_names_the_node(server: Server, training: Prompt) -> None:
    from server import ServerError

    with pytest.raises(ServerError) as refused:
        server.queue(changed(training, SAMPLE, count=0))
    assert list(refused.value.node_errors) == find(training, SAMPLE)


@pytest.fixture
def unrelated_files(server: Server) -> None:
    """In the models folder: a generator with another latent space, its domain, and a CLIP file without architecture."""
    import shutil

    import torch

    from nada_core import Domain, save_domain, save_generator
    from nada_core.models.clip_loading import built_in_guides
    from nada_core.models.stylegan2 import StyleGAN2

    models = server.base / "models" / "stylegan_nada"
    (models / "guides").mkdir(parents=True, exist_ok=True)
    other = StyleGAN2(resolution=16, z_dim=6, w_dim=5, mapping_layers=2, widths=[8, 7, 4])
    save_generator(other, models / "other.safetensors", {})
    domain = Domain({"synthesis.b4.const": torch.ones(1)}, other.space(), {})
    save_domain(domain, models / "domains" / "other.safetensors")
    shutil.copy(built_in_guides()["portraits"].with_suffix(".safetensors"), models / "guides" / "mute.safetensors")


#: A file, and losses that are all 0.
OWN_GUIDE = {"guide": "own file", "guide.file": "mute.safetensors", "guide.architecture": "ViT-B-32-quickgelu"}
BY_HAND = {
    "settings": "by hand",
    **{f"settings.{name}": -1 for name in ("steps", "batch", "lr")},
    **{f"settings.{name}_loss": 0.0 for name in ("direction", "global", "angle")},
}


@pytest.mark.parametrize("target", ["  ", "Photo"])
def test_texts_are_rejected_before_the_run(server: Server, training: Prompt, target: str) -> None:
    from server import ServerError

    with pytest.raises(ServerError) as refused:
        server.queue(changed(training, f"{PREFIX}ShiftFromText", target=target))
    assert list(refused.value.node_errors) == find(training, f"{PREFIX}ShiftFromText")
    assert repr(target) in json.dumps(refused.value.node_errors)


@pytest.mark.usefixtures("unrelated_files")
@pytest.mark.parametrize(
    "broken, at, told",
    [
        ({"ShiftFromText": {"target": "submarine"}}, "AdaptGenerator", "submarine"),
        ({"LoadGuide": OWN_GUIDE}, "LoadGuide", "ViT-B-32-quickgelu"),
        ({"AdaptGenerator": BY_HAND}, "AdaptGenerator", "loss terms"),
    ],
)
def test_invalid_graph_reports_the_value(
    server: Server, training: Prompt, broken: dict[str, dict[str, Any]], at: str, told: str
) -> None:
    prompt = short(training, steps=2)
    for name, inputs in broken.items():
        for node in find(prompt, PREFIX + name):
            prompt[node]["inputs"] |= inputs
    run = server.run(prompt)
    assert run.status == "error"
    assert run.error is not None and run.error["node_type"] == PREFIX + at
    assert told in run.error["exception_message"]


@pytest.mark.usefixtures("unrelated_files")
def test_domain_of_another_generator_is_rejected(server: Server) -> None:
    names = ("LoadGenerator", "LoadDomain", "SampleLatents", "Render")
    prompt = chain(server.object_info(), *(PREFIX + name for name in names), "PreviewImage")
    run = server.run(changed(prompt, f"{PREFIX}LoadDomain", file="other.safetensors"))
    assert run.error is not None and run.error["node_type"] == f"{PREFIX}LoadDomain"
    assert "another generator" in run.error["exception_message"]


@pytest.mark.usefixtures("unrelated_files")
def test_latents_of_another_generator_are_rejected(server: Server) -> None:
    names = ("LoadGenerator", "SampleLatents", "LoadGenerator", "Render")
    prompt = chain(server.object_info(), *(PREFIX + name for name in names), "PreviewImage")
    prompt["1"]["inputs"]["file"] = "other.safetensors"
    run = server.run(prompt)
    assert run.error is not None and run.error["node_type"] == f"{PREFIX}Render"
    assert "another generator" in run.error["exception_message"]


def test_missing_file_is_rejected_before_the_run(server: Server, training: Prompt) -> None:
    from server import ServerError

    with pytest.raises(ServerError) as refused:
        server.queue(changed(training, f"{PREFIX}LoadGenerator", file="gone.pkl"))
    (errors,) = refused.value.node_errors.values()
    assert "press R" in json.dumps(errors) and "stylegan_nada" in json.dumps(errors)
