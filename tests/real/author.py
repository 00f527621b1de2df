"""Build workflow files in ComfyUI's own page from a short description.

The frontend decides widget order, sizes and slot numbers. Therefore the page creates the nodes, sets the widgets,
connects the slots and exports; this module only describes the content.

    description = Workflow(
        nodes=[
            Node("load", "StyleGANNADA_LoadGenerator", (0, 0)),
            Node("adapt", "StyleGANNADA_AdaptGenerator", (330, 0), widgets={"steps": 200}, color="#335"),
            Note("## Adapt\\nWhat to change.", (0, 220), (300, 160)),
        ],
        links=[("load.generator", "adapt.generator")],
        groups=[Group("Adapt", around=("load", "adapt"))],
    )
    write(page, description, Path("workflows/Adapt.json"))
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from page import Page
from playwright.sync_api import Error


@dataclass
class Node:
    """A node. size: the computed size or larger. widgets: values by name; the others have their defaults.

    shown: False collapses the node to its title.
    """

    key: str
    type: str
    pos: tuple[int, int]
    size: tuple[int, int] | None = None
    title: str | None = None
    widgets: dict[str, Any] = field(default_factory=dict)
    color: str | None = None
    bgcolor: str | None = None
    shown: bool = True


@dataclass
class Note:
    """A Markdown note."""

    text: str
    pos: tuple[int, int]
    size: tuple[int, int] = (320, 160)
    title: str = "Note"
    color: str = "#432"
    bgcolor: str = "#653"


@dataclass
class Group:
    """A group: around nodes, by their keys, or with bounding = x, y, width, height."""

    title: str
    around: Sequence[str] = ()
    bounding: tuple[int, int, int, int] | None = None
    color: str = "#3f789e"


@dataclass
class Workflow:
    """links: pairs of "key.output name" and "key.input name", with the English names of the node."""

    nodes: Sequence[Node | Note]
    links: Sequence[tuple[str, str]] = ()
    groups: Sequence[Group] = ()


class AuthorError(ValueError):
    """The description needs something that the page does not have."""


BUILD = """async text => {
    const wanted = JSON.parse(text), made = {}
    const fail = message => { throw new Error('author: ' + message) }
    const names = list => (list || []).map(item => item.name).join(', ')
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {},
                             version: 0.4})
    for (const spec of wanted.nodes) {
        if (!(spec.type in LiteGraph.registered_node_types)) fail(`no node type ${spec.type}`)
        const node = LiteGraph.createNode(spec.type)
        app.graph.add(node)
        made[spec.key] = node
        if (spec.title) node.title = spec.title
        if (spec.color) node.color = spec.color
        if (spec.bgcolor) node.bgcolor = spec.bgcolor
        if (spec.text) node.widgets[0].value = spec.text  // its only one, which has another name in every frontend
        for (const [name, value] of Object.entries(spec.widgets)) {
            const widget = (node.widgets || []).find(w => w.name === name)
            if (!widget) fail(`${spec.type} has no widget ${name}, but ${names(node.widgets)}`)
            const options = Array.isArray(widget.options?.values) ? widget.options.values : null
            if (options && !options.includes(value)) fail(`${spec.type}.${name}: ${value} is none of ${options}`)
            widget.value = value
            widget.callback?.(value, app.canvas, node, node.pos)
        }
        // A second run must be served from the cache, so no seed may move by itself.
        for (const widget of node.widgets || []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
        const least = node.computeSize()
        const size = spec.size || node.size
        node.setSize([Math.ceil(Math.max(least[0], size[0])), Math.ceil(Math.max(least[1], size[1]))])
        node.pos = [...spec.pos]
        if (!spec.shown) node.collapse(true)
    }
    const end = (list, name) => list.findIndex(slot => slot.name === name || slot.label === name)
    for (const [from, to] of wanted.links) {
        const [key, output] = from, [other, input] = to
        if (!made[key] || !made[other]) fail(`a link between unknown keys ${key} and ${other}`)
        const source = made[key], target = made[other]
        const a = end(source.outputs, output), b = end(target.inputs, input)
        if (a < 0) fail(`${source.type} has no output ${output}, but ${names(source.outputs)}`)
        if (b < 0) fail(`${target.type} has no input ${input}, but ${names(target.inputs)}`)
        if (!source.connect(a, target, b)) fail(`${key}.${output} does not fit ${other}.${input}`)
    }
    for (const spec of wanted.groups) {
        const group = new LiteGraph.LGraphGroup(spec.title)
        let box = spec.bounding
        if (!box) {
            const inside = spec.around.map(key => made[key] || fail(`a group around the unknown key ${key}`))
            const x = Math.min(...inside.map(n => n.pos[0])) - 20
            const y = Math.min(...inside.map(n => n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT)) - 45
            box = [x, y, Math.max(...inside.map(n => n.pos[0] + n.size[0])) - x + 20,
                   Math.max(...inside.map(n => n.pos[1] + n.size[1])) - y + 20]
        }
        group.pos = [box[0], box[1]]
        group.size = [box[2], box[3]]
        group.color = spec.color
        app.graph.add(group)
    }
}"""


def build(page: Page, description: Workflow, name: str = "workflow") -> dict[str, Any]:
    """Return the description as a UI-format workflow; deterministic. Raises AuthorError."""
    nodes = [_plain(node, index) for index, node in enumerate(description.nodes)]
    links = [[end.split(".", 1) for end in link] for link in description.links]
    text = json.dumps({"nodes": nodes, "links": links, "groups": [asdict(group) for group in description.groups]})
    try:
        page.tab.evaluate(BUILD, text)
    except Error as error:
        if "author: " not in str(error):
            raise
        raise AuthorError(str(error).split("author: ", 1)[1].splitlines()[0]) from error
    page.tab.wait_for_timeout(300)  # nodes grow with their widgets in the next frame
    exported = page.export()
    workflow = _settled(exported["workflow"], name)
    page.load(workflow)
    if (again := page.export()["output"]) != exported["output"]:
        raise AuthorError(f"{name} is another one when it is loaded again: {again} instead of {exported['output']}")
    return workflow


def write(page: Page, description: Workflow, path: Path) -> None:
    """Build and save; `path` ends in .json and its name is the title that ComfyUI's list of templates shows."""
    workflow = build(page, description, path.stem)
    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")  # positions, links: short ones go on one line
    short = lists.sub(lambda found: f"[{re.sub(chr(10) + ' *', ' ', found[1])}]", text)
    assert json.loads(short) == workflow
    path.write_text(short + "\n", encoding="utf-8")


def _plain(node: Node | Note, index: int) -> dict[str, Any]:
    if isinstance(node, Node):
        return asdict(node)
    told = asdict(node)
    return {**told, "key": f"note {index}", "type": "MarkdownNote", "widgets": {}, "shown": True}


def _settled(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    """Remove what differs between exports: the random id, the view and the version of the page."""
    return {**workflow, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "revision": 0, "extra": {}}
