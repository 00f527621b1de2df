"""The pack in the page of a real ComfyUI: workflows, help, templates and languages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geometry
import pytest
from environment import PREFIX, pack_path, require, workflows
from graph import bare, to_api

require("websocket", "playwright", "comfy_cli")

if TYPE_CHECKING:
    from page import Page

#: Nodes that have a help page of their own.
DOCS = sorted(path.parent.name for path in (pack_path() / "web" / "docs").glob("*/en.md"))
LOCALES = sorted((pack_path() / "locales").glob("*/nodeDefs.json"))

#: Subgraphs show the steps of their trainings, too.
SHORTEN = """() => { for (const node of app.graph._nodes) for (const widget of node.widgets || []) {
    if (widget.name === 'settings.steps') { widget.value = 3; widget.callback?.(3, app.canvas, node) }
    if (widget.name === 'snapshot_every') widget.value = Math.min(widget.value, 1) } }"""


EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "version": 0.4}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_workflow_opens_and_converts(page: Page, info: dict[str, Any], path: Path) -> None:
    page.open_file(path)
    assert page.missing_nodes() == []
    assert page.errors == []
    assert known(bare(page.export()["output"]), info) == to_api(read(path), info)


def known(prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Only inputs that the host asks for: frontend 1.42 has PreviewAny send what its own text box holds, too."""
    for node in prompt.values():
        asked = {name for group in info[node["class_type"]]["input"].values() for name in group}
        node["inputs"] = {name: value for name, value in node["inputs"].items() if name.partition(".")[0] in asked}
    return prompt


@pytest.mark.parametrize("path", workflows(run=True), ids=lambda path: path.stem)
def test_workflow_runs(page: Page, path: Path) -> None:
    page.load(read(path))
    page.tab.evaluate(SHORTEN)
    page.queue()
    told = page.wait()
    assert told["status"]["status_str"] == "success", told["status"]
    assert page.errors == []


#: Widgets that a new node may show: the classic renderer does not hide advanced ones.
MOST = {"AdaptGenerator": 8, "ChooseLayers": 4, "TrainingOptions": 8, "LoadGuide": 2, "InvertImage": 4}


@pytest.mark.parametrize("name", MOST)
def test_new_node_shows_few_widgets(page: Page, name: str) -> None:
    script = "type => LiteGraph.createNode(type).widgets.map(widget => widget.name)"
    assert 0 < len(page.tab.evaluate(script, PREFIX + name)) <= MOST[name]


def test_option_of_a_dynamic_combo_replaces_the_widgets(page: Page) -> None:
    script = """type => { const node = LiteGraph.createNode(type), combo = node.widgets[0]
        combo.value = 'by hand'
        return node.widgets.filter(widget => widget.type !== "button").map(widget => widget.name) }"""
    shown = page.tab.evaluate(script, f"{PREFIX}AdaptGenerator")
    hand = ("steps", "batch", "lr", "direction_loss", "global_loss", "angle_loss")
    assert shown == ["settings", *(f"settings.{name}" for name in hand), "seed", "snapshot_every"]


def test_templates_are_listed_and_open(page: Page) -> None:
    assert workflows(), "the pack ships no workflows"
    titles = [path.stem for path in workflows()]
    assert page.templates() == dict.fromkeys(titles, True)
    page.open_template(titles[0])
    assert len(page.export()["workflow"]["nodes"]) == len(read(workflows()[0])["nodes"])
    assert page.errors == []


@pytest.mark.parametrize("node_type", DOCS)
def test_help_page_is_shown(page: Page, node_type: str) -> None:
    text = (pack_path() / "web" / "docs" / node_type / "en.md").read_text(encoding="utf-8")
    heading = text.strip().splitlines()[0].lstrip("# ")
    assert heading in page.node_help(node_type)


@pytest.fixture
def english_again(page: Page) -> Iterator[None]:
    yield
    page.open()


@pytest.mark.usefixtures("english_again")
@pytest.mark.parametrize("path", LOCALES, ids=lambda path: path.parent.name)
def test_node_texts_are_translated(page: Page, path: Path) -> None:
    page.open(path.parent.name)
    for node_type, told in read(path).items():
        assert page.title_of(node_type) == told["display_name"]


#: What a user types into the node search, and the node that has to be first.
SEARCHES = {
    "stylegan": "LoadGenerator",
    "nada": "AdaptGenerator",
    "train stylegan": "AdaptGenerator",
    "finetune gan": "AdaptGenerator",
    "latent walk video": "InterpolateLatents",
    "face inversion": "InvertImage",
}


def test_node_search_shows_the_node_first(page: Page) -> None:
    page.load(EMPTY)
    first = {words: page.search(words)[0] for words in SEARCHES}
    assert first == {words: page.title_of(PREFIX + name) for words, name in SEARCHES.items()}


GROW = """async () => {
    const [compare, ...loaders] = ['Compare', 'LoadGenerator', 'LoadGenerator', 'LoadGenerator'].map((name, index) => {
        const node = LiteGraph.createNode('StyleGANNADA_' + name)
        node.pos = [index ? 100 : 500, 100 + 150 * index]
        app.graph.add(node)
        return node
    })
    const sockets = () => compare.inputs.map(input => input.name).filter(name => name.startsWith('generators.'))
    const before = sockets()
    for (const loader of loaders) {
        const free = input => input.name.startsWith('generators.') && !input.link
        loader.connect(0, compare, compare.inputs.findIndex(free))
        await new Promise(done => setTimeout(done, 200))
    }
    return [before, sockets()]
}"""


def test_compare_grows_a_socket_for_each_generator(page: Page) -> None:
    page.load(EMPTY)
    before, after = page.tab.evaluate(GROW)
    names = [f"generators.generator_{number}" for number in range(1, 5)]
    assert before in (names[:2], names[:3])  # frontend 1.49 shows one more
    assert after == names
    prompt = page.export()["output"]
    (compare,) = (node["inputs"] for node in prompt.values() if node["class_type"] == f"{PREFIX}Compare")
    assert [name for name in compare if name.startswith("generators.")] == names[:3]
    assert page.errors == []


COLORS = """() => {
    const style = getComputedStyle(document.documentElement)
    const { link_type_colors: links } = app.canvas.constructor, sockets = app.canvas.default_connection_color_byType
    const read = type => [links[type], sockets[type], style.getPropertyValue('--color-datatype-' + type).trim()]
    return ['NADA_GENERATOR', 'NADA_LATENTS', 'IMAGE'].map(read)
}"""


def test_links_have_a_color_for_each_type(page: Page) -> None:
    generators, latents, images = page.tab.evaluate(COLORS)
    assert set(generators) == {"#9575ff"} and set(latents) == {"#f06292"}
    try:
        page.open(settings={"Comfy.ColorPalette": "light"})
        assert page.tab.evaluate(COLORS)[:2] == [generators, latents]
        assert images[0] not in {"", *generators, *latents}
    finally:
        page.open(settings={"Comfy.ColorPalette": "dark"})
    assert page.errors == []


# ---- the tools themselves ----


def test_author_is_deterministic(page: Page) -> None:
    from author import Group, Node, Note, Workflow, build

    description = Workflow(
        nodes=[
            Note("## Faces\n**Seven** of them."),
            Node("load", f"{PREFIX}LoadGenerator"),
            Node("sample", f"{PREFIX}SampleLatents", title="Faces", widgets={"seed": 7}, color="#335"),
            Node("render", f"{PREFIX}Render"),
            Node("show", "PreviewImage", room=200),
        ],
        links=[
            ("load.generator", "sample.generator"),
            ("load.generator", "render.generator"),
            ("sample.latents", "render.latents"),
            ("render.images", "show.images"),
        ],
        columns=[["note 0"], ["load"], ["sample"], ["render"], ["show"]],
        groups=[Group("Draw", ("load", "sample")), Group("Show", ("render", "show"))],
    )
    workflow = build(page, description, "test")
    assert build(page, description, "test") == workflow
    assert page.errors == []
    assert geometry.crossings(workflow) == []
    assert [node["id"] for node in workflow["nodes"]] == [1, 2, 3, 4, 5]
    assert "randomize" not in json.dumps(workflow)
    assert page.export()["output"]["3"]["inputs"]["seed"] == 7
    assert [group["title"] for group in workflow["groups"]] == ["Draw", "Show"]


def test_author_rejects_unknown_names(page: Page) -> None:
    from author import AuthorError, Node, Workflow, build

    load = Node("load", f"{PREFIX}LoadGenerator")
    with pytest.raises(AuthorError, match="no node type Nothing"):
        build(page, Workflow([Node("a", "Nothing")]))
    with pytest.raises(AuthorError, match="has no widget speed, but file"):
        build(page, Workflow([Node("a", load.type, widgets={"speed": 1})]))
    with pytest.raises(AuthorError, match="has no output picture, but generator"):
        build(page, Workflow([load], [("load.picture", "load.generator")]))


def test_broken_file_is_reported(page: Page) -> None:
    page.load({"nodes": [{"id": 1, "type": "Nothing", "pos": "nowhere"}], "links": [], "version": 0.4})
    assert page.missing_nodes() == ["Nothing"]
    assert any("Invalid workflow" in error for error in page.errors)


def test_screenshot_shows_the_whole_graph(page: Page, tmp_path: Path) -> None:
    page.load({"nodes": [], "links": [], "groups": [], "version": 0.4})
    page.tab.evaluate("type => { app.graph.add(LiteGraph.createNode(type)) }", f"{PREFIX}Render")
    page.screenshot(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 1000
