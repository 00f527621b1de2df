"""Trainings in a real ComfyUI: canceled and continued, stopped and kept, and shown again from the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from environment import PREFIX, require
from graph import Prompt, chain, changed, find, short

require("websocket")

if TYPE_CHECKING:
    from page import Page
    from server import Event, Server

ADAPT, SAVE, PICK = f"{PREFIX}AdaptGenerator", f"{PREFIX}SaveGenerator", f"{PREFIX}PickSnapshot"


@pytest.fixture
def training(info: dict[str, Any]) -> Prompt:
    """Train and save the generator."""
    names = ("LoadGenerator", "LoadGuide", "ShiftFromText", "AdaptGenerator", "SaveGenerator")
    return chain(info, *(PREFIX + name for name in names))


def texts(events: list[Event], node: str) -> list[str]:
    return [event.data["text"] for event in events if event.kind == "text" and event.data["node"] == node]


def at_step(server: Server, step: int, action: Any) -> Any:
    done: list[Any] = []

    def on_event(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] >= step and not done:
            done.append(action())

    return on_event


def test_canceled_training_continues(server: Server, training: Prompt) -> None:
    prompt = short(training, steps=80)
    (adapt,) = find(prompt, ADAPT)
    runs = server.base / "output" / "stylegan_nada" / "runs"
    others = set(runs.glob("*"))
    canceled = server.run(prompt, on_event=at_step(server, 10, server.interrupt))
    assert canceled.status == "interrupted"
    (autosave,) = set(runs.iterdir()) - others
    continued = server.run(prompt)
    assert continued.status == "success", continued.error
    assert any(text.startswith("Continuing after step") for text in texts(continued.events, adapt))
    assert min(value for node, value, _ in continued.progress if node == adapt) > 10
    assert not autosave.exists()
    saved = texts(continued.events, find(prompt, SAVE)[0])
    assert saved and saved[-1].startswith("Saved: output")
    again = server.run(prompt)
    assert adapt in again.cached and again.outputs[adapt] == continued.outputs[adapt]
    assert again.outputs[adapt]["images"]


def test_stopped_training_is_kept(server: Server, training: Prompt) -> None:
    prompt = short(training, steps=5000)
    (adapt,) = find(prompt, ADAPT)

    def stop() -> None:
        assert server.post("/stylegan_nada/stop", {"node_id": "none"}) == {"stopping": False}
        assert server.post("/stylegan_nada/stop", {"node_id": adapt}) == {"stopping": True}

    run = server.run(prompt, on_event=at_step(server, 3, stop))
    assert run.status == "success", run.error
    assert any(text.startswith("Stopped after") for text in texts(run.events, adapt))
    (path,) = run.outputs[find(prompt, SAVE)[0]]["text"]
    assert Path(path).is_file()
    assert server.post("/stylegan_nada/stop", {"node_id": adapt}) == {"stopping": False}


def test_snapshot_is_picked_without_training_again(server: Server, info: dict[str, Any]) -> None:
    names = ("LoadGenerator", "LoadGuide", "ShiftFromText", "AdaptGenerator", "SampleLatents", "PickSnapshot")
    prompt = changed(short(chain(info, *(PREFIX + name for name in names)), steps=6), ADAPT, snapshot_every=2)
    (adapt,), (pick,), (load,) = (find(prompt, name) for name in (ADAPT, PICK, f"{PREFIX}LoadGenerator"))
    prompt[pick]["inputs"]["generator"] = [load, 0]
    runs = server.base / "output" / "stylegan_nada" / "runs"
    others = set(runs.glob("*"))
    first = server.run(prompt)
    assert first.status == "success", first.error
    assert texts(first.events, pick)[-1].startswith("step 6: loss ") and first.outputs[pick]["images"]
    (folder,) = set(runs.iterdir()) - others
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:06}.safetensors" for step in (2, 4, 6)]
    again = server.run(changed(prompt, PICK, **{"pick.step": 4}))
    assert again.status == "success", again.error
    assert adapt in again.cached and texts(again.events, pick)[-1].startswith("step 4: loss ")
    wrong = server.run(changed(prompt, PICK, **{"pick.step": 5}))
    assert wrong.error is not None and "2, 4, 6" in wrong.error["exception_message"]
    shutil.rmtree(folder)
    gone = server.run(changed(prompt, PICK, **{"pick.step": 2}))
    assert gone.error is not None and "snapshot_every" in gone.error["exception_message"]


def test_error_is_shown_on_its_node(server: Server, training: Prompt) -> None:
    prompt = changed(short(training, steps=2), f"{PREFIX}ShiftFromText", target="submarine")
    run = server.run(prompt)
    assert run.status == "error" and run.error is not None
    shown = texts(run.events, run.error["node_id"])
    assert shown and shown[-1].startswith("Error: ") and "submarine" in shown[-1]


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
def test_stop_button_is_on_the_node_only(page: Page, nodes_2: bool) -> None:
    script = """async ([type, vue]) => {
        await app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', vue)
        await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], version: 0.4})
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        const button = node.widgets.find(widget => widget.name === 'stop_and_keep')
        const saved = node.serialize()
        const {output} = await app.graphToPrompt()
        const result = {last: node.widgets.at(-1) === button, label: button.label, count: node.widgets.length,
            saved: saved.widgets_values.length, sent: Object.keys(output[node.id].inputs)}
        button.callback()
        return JSON.stringify(result)
    }"""
    import json

    shown = json.loads(page.tab.evaluate(script, [ADAPT, nodes_2]))
    assert shown["last"] and shown["label"] == "Stop and keep" and "stop_and_keep" not in shown["sent"]
    assert shown["saved"] < shown["count"]
    page.tab.wait_for_timeout(700)
    assert any("not training" in text for text in page.toasts())
    page.tab.evaluate("async () => { await app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', false) }")
    assert page.errors == []
