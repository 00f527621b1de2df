"""A real server runs the pack: quiet start, templates, every workflow, progress, preview, cache and interrupt."""

from __future__ import annotations

import json
import time
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
    """The shortest graph that trains and shows pictures, as its nodes come with all their defaults."""
    prompt = chain(info, *(PREFIX + name for name in TRAINING), "PreviewImage")
    return changed(prompt, SAMPLE, count=2)


def test_the_log_has_no_complaint(server: Server) -> None:
    from server import lines_about

    assert lines_about(server.log) == []
    assert "IMPORT FAILED" not in server.log
    assert "Traceback" not in server.log


def test_the_pack_is_found_by_its_folder(info: dict[str, Any]) -> None:
    ours = {name: told["python_module"] for name, told in info.items() if name.startswith(PREFIX)}
    assert ours
    assert set(ours.values()) == {f"custom_nodes.{PACK}"}


def test_every_workflow_is_a_template_with_a_thumbnail(server: Server) -> None:
    assert workflows(), "the pack ships no workflows"
    listed = server.get("/api/workflow_templates")[PACK]
    assert sorted(listed) == [path.stem for path in workflows()]
    for path in workflows():
        place = f"/api/workflow_templates/{PACK}/{quote(path.stem)}"
        assert server.get(f"{place}.json") == json.loads(path.read_text(encoding="utf-8"))
        assert server.get(f"{place}.jpg").startswith(b"\xff\xd8\xff"), f"{path.stem}.jpg is no JPEG"


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_every_workflow_runs(server: Server, info: dict[str, Any], path: Path) -> None:
    run = server.run(short(to_api(json.loads(path.read_text(encoding="utf-8")), info)))
    assert run.status == "success", run.error
    assert run.outputs


def test_training_shows_progress_and_previews(server: Server, training: Prompt) -> None:
    prompt = changed(training, ADAPT, steps=5)
    (adapt,) = find(prompt, ADAPT)
    run = server.run(prompt)
    assert run.status == "success", run.error
    told = [(value, most) for node, value, most in run.progress if node == adapt]
    assert told == sorted(told)
    assert told[-1] == (5, 5)
    pictures = [image for node, image in run.previews if node == adapt]
    assert pictures
    assert all(image.startswith(b"\xff\xd8\xff") for image in pictures)


def test_the_same_again_is_all_cached(server: Server, training: Prompt) -> None:
    prompt = changed(training, ADAPT, steps=4)
    first, again = server.run(prompt), server.run(prompt)
    assert first.status == again.status == "success"
    assert sorted(again.cached) == sorted(prompt)
    assert again.executed == []
    assert again.outputs == first.outputs


def test_another_seed_of_the_pictures_trains_nothing(server: Server, training: Prompt) -> None:
    prompt = changed(training, ADAPT, steps=4)
    server.run(prompt)
    run = server.run(changed(prompt, SAMPLE, seed=123))
    assert run.status == "success", run.error
    assert find(prompt, ADAPT)[0] in run.cached
    assert find(prompt, SAMPLE)[0] in run.executed


def test_interrupt_stops_a_training_at_once(server: Server, training: Prompt) -> None:
    prompt = changed(training, ADAPT, steps=500)
    asked: list[float] = []

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] >= 2 and not asked:
            asked.append(time.perf_counter())
            server.interrupt()

    run = server.run(prompt, on_event=stop)
    assert run.status == "interrupted"
    assert run.events[-1].at - asked[0] < 1
    after = server.run(short(training, steps=2))
    assert after.status == "success", after.error


def test_a_refusal_names_the_node(server: Server, training: Prompt) -> None:
    from server import ServerError

    with pytest.raises(ServerError) as refused:
        server.queue(changed(training, SAMPLE, count=0))
    assert list(refused.value.node_errors) == find(training, SAMPLE)
