"""Templates as the page opens them: scale, text, subgraphs, apps and blueprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geometry
import pytest
from environment import PREFIX, pack_path, require, workflows

require("websocket", "playwright", "comfy_cli")

if TYPE_CHECKING:
    from page import Page
    from server import Server

BLUEPRINTS = sorted((pack_path() / "subgraphs").glob("*.json"))
FORMS = [path for path in workflows() if path.stem.endswith(".app")]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


OPEN = """async ([text, name]) => {
    await app.loadGraphData(JSON.parse(text), true, true, name, {openSource: 'template'})
    await new Promise(done => setTimeout(done, 1000))
    const canvas = app.canvas
    return JSON.stringify({
        scale: canvas.ds.scale, smallest: canvas.min_font_size_for_lod / LiteGraph.NODE_TEXT_SIZE,
        sizes: Object.fromEntries(app.graph._nodes.map(node => [node.id, [...node.size]])),
        least: Object.fromEntries(app.graph._nodes.map(node => [node.id, [...node.computeSize()]])),
        points: Object.fromEntries(app.graph._nodes.flatMap(node => node.inputs.flatMap((input, slot) => {
            const link = app.graph.getLink(input.link)
            if (!link) return []
            const source = app.graph.getNodeById(link.origin_id)
            return [[`${link.origin_id} ${node.id} ${slot}`,
                     [[...source.getOutputPos(link.origin_slot)], [...node.getInputPos(slot)]]]]
        }))),
        notes: app.graph._nodes.filter(node => node.type === 'MarkdownNote').map(node => {
            const shown = node.widgets[0].element, text = shown.querySelector('.tiptap')
            return [text.scrollHeight, shown.clientHeight]
        }),
        curve: canvas.links_render_mode, spline: LiteGraph.SPLINE_LINK,
    })
}"""


@pytest.mark.parametrize("path", [path for path in workflows() if path not in FORMS], ids=lambda path: path.stem)
def test_template_opens_as_computed(page: Page, path: Path) -> None:
    """`geometry` and the page agree on the scale, the sizes and the ends of the links, and the notes show all text."""
    workflow = read(path)
    page.tab.evaluate("() => { app.extensionManager.focusMode = false }")
    page.tab.wait_for_timeout(300)
    found = json.loads(page.tab.evaluate(OPEN, [json.dumps(workflow), path.stem]))
    assert found["scale"] >= 0.6 > found["smallest"], "smaller scales draw no text"
    assert found["scale"] == pytest.approx(geometry.scale(list(geometry.boxes(workflow).values())), abs=0.01)
    assert found["curve"] == found["spline"], "the curve of links that geometry computes"
    for node in workflow["nodes"]:
        if node["type"].startswith((PREFIX, "MarkdownNote")):
            assert found["sizes"][str(node["id"])] == pytest.approx(node["size"], abs=1), node["type"]
    ends = sorted((points[0], points[-1]) for _, _, points in geometry.links(workflow))
    shown = sorted((tuple(start), tuple(end)) for start, end in found["points"].values())
    for (start, end), (there, target) in zip(ends, shown, strict=True):
        assert start == pytest.approx(there, abs=1) and end == pytest.approx(target, abs=1)
    assert all(height <= room + 1 for height, room in found["notes"])
    assert page.errors == []


PROMOTED = """async () => {
    const boxes = app.graph._nodes.filter(node => node.isSubgraphNode?.())
    return JSON.stringify(boxes.map(node => node.widgets.map(widget => [widget.name, widget.value])))
}"""


@pytest.mark.parametrize("path", [path for path in workflows() if path not in FORMS], ids=lambda path: path.stem)
def test_subgraphs_show_widgets_and_the_button(page: Page, path: Path) -> None:
    workflow = read(path)
    definitions = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    page.load(workflow)
    boxes = json.loads(page.tab.evaluate(PROMOTED))
    assert len(boxes) == len(definitions)
    hosts = [node for node in workflow["nodes"] if node["type"] in definitions]
    for shown, host in zip(boxes, hosts, strict=True):
        assert [value for _, value in shown][: len(host["widgets_values"])] == host["widgets_values"]
        kinds = {node["type"] for node in definitions[host["type"]]["nodes"]}
        names = [name for name, _ in shown]
        assert ("stop_and_keep" in names) is (f"{PREFIX}AdaptGenerator" in kinds)


CHANGED = """async () => {
    const node = app.graph._nodes.find(node => node.isSubgraphNode?.())
    const widget = node.widgets.find(widget => widget.name === 'settings.steps')
    widget.value = 7
    widget.callback?.(7, app.canvas, node)
    return String(node.id)
}"""


def test_widget_of_a_subgraph_reaches_the_prompt(page: Page) -> None:
    (path,) = (path for path in workflows() if path.stem.startswith("9 "))
    page.load(read(path))
    box = page.tab.evaluate(CHANGED)
    prompt = page.export()["output"]
    steps = {
        key: node["inputs"]["settings.steps"] for key, node in prompt.items() if "settings.steps" in node["inputs"]
    }
    assert [value for key, value in steps.items() if key.startswith(f"{box}:")] == [7]
    assert sorted(steps.values())[0] == 7 and len(steps) == 2 and max(steps.values()) > 7


STOP = """() => {
    const node = app.graph._nodes.find(node => node.isSubgraphNode?.())
    node.widgets.find(widget => widget.name === 'stop_and_keep').callback?.()
}"""


def test_training_in_a_subgraph_is_stopped_and_kept(page: Page) -> None:
    workflow = next(read(path) for path in workflows() if path.stem.startswith("4 "))
    page.load(workflow)
    page.tab.evaluate(CHANGED.replace("7", "5000"))
    page.queue()
    for _ in range(60):
        page.tab.evaluate(STOP)
        page.tab.wait_for_timeout(1000)
        if any("stops after this step" in text for text in page.toasts()):
            break
    else:
        pytest.fail("the training inside the subgraph was not found")
    page.server.interrupt()
    page.wait()
    page.errors.clear()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_app_opens_as_a_form(page: Page, path: Path) -> None:
    page.tab.evaluate(OPEN, [path.read_text(encoding="utf-8"), path.stem])
    page.tab.get_by_text("Number of runs").first.wait_for(state="visible")
    for label in ("target", "steps", "seed"):
        assert page.tab.get_by_text(label, exact=True).last.is_visible()
    assert page.errors == []
    page.load({"nodes": [], "links": [], "groups": [], "version": 0.4})


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_blueprint_is_in_the_node_library(page: Page, server: Server, path: Path) -> None:
    listed = [one["name"] for one in server.get("/global_subgraphs").values()]
    assert path.stem in listed
    assert page.add_by_search(path.stem) == [path.stem]
    assert page.errors == []
