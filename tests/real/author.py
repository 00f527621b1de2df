"""Build workflow files in ComfyUI's own page from a short description.

The frontend decides widget order, sizes, slot numbers and the content of subgraphs. Therefore the page creates the
nodes, sets the widgets, connects the slots and exports; this module describes the content and places the nodes.

    description = Workflow(
        nodes=[
            Note("## Adapt\\nWhat to change."),
            Node("load", "StyleGANNADA_LoadGenerator"),
            Node("adapt", "StyleGANNADA_AdaptGenerator", widgets={"settings.steps": 80}, color="#335", room=220),
        ],
        links=[("load.generator", "adapt.generator")],
        columns=[["note 0"], ["load"], ["adapt"]],
        groups=[Group("Train", ("load", "adapt"))],
    )
    write(page, description, Path("workflows/1 Adapt.json"))
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arrange import arrange
from geometry import growth
from page import Page
from playwright.sync_api import Error


@dataclass
class Node:
    """A node. widgets: values by name; the others have their defaults. room: height below the widgets for a picture."""

    key: str
    type: str
    title: str | None = None
    widgets: dict[str, Any] = field(default_factory=dict)
    color: str | None = None
    width: int = 280
    room: int = 0


@dataclass
class Note:
    """A Markdown note, as high as its text. Its key is "note 0" for the first one."""

    text: str
    title: str = "Note"
    width: int = 320
    color: str = "#432"
    bgcolor: str = "#653"


@dataclass
class Subgraph:
    """Nodes in one box, from the workflow's own nodes.

    widgets: those that the box shows, as "key.widget name", and their labels. preview: the key of a training node,
    whose picture and button the box shows. takes, gives: labels of the inputs and outputs, if their names do not do.
    """

    key: str
    title: str
    around: Sequence[str]
    widgets: dict[str, str] = field(default_factory=dict)
    preview: str | None = None
    color: str | None = None
    width: int = 280
    room: int = 0
    takes: Sequence[str] = ()
    gives: Sequence[str] = ()


@dataclass
class Group:
    title: str
    around: Sequence[str]
    color: str = "#3f789e"


@dataclass
class Workflow:
    """links: pairs of "key.output name" and "key.input name", with the English names of the node.

    columns: the keys from left to right and from top to bottom. form: for an app, the widgets and the output nodes that
    its page shows, as "key.widget name" and keys. about: the description of a blueprint.
    """

    nodes: Sequence[Node | Note]
    links: Sequence[tuple[str, str]] = ()
    columns: Sequence[Sequence[str]] = ()
    groups: Sequence[Group] = ()
    subgraphs: Sequence[Subgraph] = ()
    form: tuple[Sequence[str], Sequence[str]] | None = None
    about: str | None = None


class AuthorError(ValueError):
    """The description needs something that the page does not have."""


BUILD = """async text => {
    const wanted = JSON.parse(text), made = {}
    const fail = message => { throw new Error('author: ' + message) }
    const names = list => (list || []).map(item => item.name).join(', ')
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {},
                             version: 0.4})
    for (const [index, spec] of wanted.nodes.entries()) {
        if (!(spec.type in LiteGraph.registered_node_types)) fail(`no node type ${spec.type}`)
        const node = LiteGraph.createNode(spec.type)
        app.graph.add(node)
        made[spec.key] = node
        node.pos = [400 * index, 0]
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
    }
    await new Promise(resolve => setTimeout(resolve, 300))  // nodes grow with their widgets in the next frame
    const end = (list, name) => list.findIndex(slot => slot.name === name || slot.label === name)
    const late = [], last = app.graph.state.lastNodeId
    for (const [from, to] of wanted.links) {
        const [key, output] = from, [other, input] = to
        if (!made[key] || !made[other]) fail(`a link between unknown keys ${key} and ${other}`)
        if (input.includes('.')) {  // growing inputs lose their links in a conversion to a subgraph
            const source = made[key], a = end(source.outputs, output), stand_in = LiteGraph.createNode('PreviewAny')
            if (a < 0) fail(`${source.type} has no output ${output}, but ${names(source.outputs)}`)
            stand_in.id = 10000 + late.length
            app.graph.add(stand_in)
            source.connect(a, stand_in, 0)
            late.push([stand_in, made[other], input])
            continue
        }
        const source = made[key], target = made[other]
        const a = end(source.outputs, output), b = end(target.inputs, input)
        if (a < 0) fail(`${source.type} has no output ${output}, but ${names(source.outputs)}`)
        if (b < 0) fail(`${target.type} has no input ${input}, but ${names(target.inputs)}`)
        if (!source.connect(a, target, b)) fail(`${key}.${output} does not fit ${other}.${input}`)
    }
    app.graph.state.lastNodeId = last
    for (const spec of wanted.subgraphs) {
        const around = spec.around.map(key => made[key] || fail(`a subgraph around the unknown key ${key}`))
        const {subgraph, node} = app.graph.convertToSubgraph(new Set(around))
        made[spec.key] = node
        node.title = subgraph.name = spec.title
        if (spec.color) node.color = spec.color
        // The page promotes every seed by itself; the description says which widgets the box shows.
        for (const input of [...node.inputs]) if (input.widget) subgraph.removeInput(input._subgraphSlot)
        node.properties.proxyWidgets = spec.promoted.map(([key, name]) => [String(made[key].id), name])
    }
    for (const [stand_in, target, input] of late) {
        const link = app.graph.getLink(stand_in.inputs[0].link), source = app.graph.getNodeById(link.origin_id)
        const b = end(target.inputs, input)
        if (b < 0) fail(`${target.type} has no input ${input}, but ${names(target.inputs)}`)
        if (!source.connect(link.origin_slot, target, b)) fail(`${source.title} does not fit ${target.type}.${input}`)
        app.graph.remove(stand_in)
        await new Promise(resolve => setTimeout(resolve, 60))  // the next input appears in the next frame
    }
    return JSON.stringify(Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id])))
}"""

#: The smallest size of every node, and of a note that has its width; by id.
SIZES = """async () => {
    const text = node => node.type === 'MarkdownNote' && node.widgets[0].element.querySelector('.tiptap').scrollHeight
    for (let tries = 0; tries < 100 && app.graph._nodes.some(node => text(node) === 0); tries++)
        await new Promise(resolve => setTimeout(resolve, 50))  // a busy page shows the notes later
    return JSON.stringify(Object.fromEntries(app.graph._nodes.map(node => {
        const [width, height] = node.computeSize()
        return [node.id, [width, text(node) ? text(node) + 26 : height]]
    })))
}"""


def build(page: Page, description: Workflow, name: str = "workflow") -> dict[str, Any]:
    """Return the description as a UI-format workflow; deterministic. Raises AuthorError."""
    ids = _created(page, description)
    workflow = page.export()["workflow"]
    _widen(workflow, description, ids)
    page.load(workflow)  # makes inputs of the promoted widgets
    exported = page.export()
    workflow = _settled(exported["workflow"], name)
    sizes = json.loads(page.tab.evaluate(SIZES))
    for key, spec in _outer(description).items():
        node = _node(workflow, ids[key])
        width, height = sizes[str(ids[key])]
        node["size"] = [max(spec.width, round(width + 0.5)), round(height + 0.5) + getattr(spec, "room", 0)]
        if isinstance(spec, Subgraph):
            _label(workflow, node, spec, ids)
    groups = {group.title: [ids[key] for key in group.around] for group in description.groups}
    columns = [[ids[key] for key in column] for column in description.columns]
    bounds = arrange(workflow, columns, groups, _growths(page, description, ids))
    workflow["groups"] = [
        {"id": index, "title": group.title, "bounding": bounds[group.title], "color": group.color, "flags": {}}
        for index, group in enumerate(description.groups, 1)
    ]
    page.load(workflow)
    if (again := page.export()["output"]) != exported["output"]:
        raise AuthorError(f"{name} is another one when it is loaded again: {again} instead of {exported['output']}")
    return workflow


def app(workflow: dict[str, Any], description: Workflow) -> dict[str, Any]:
    """Return the workflow with its form in front of it."""
    assert description.form is not None
    widgets, outputs = description.form
    ids, split = numbers(description), [widget.split(".", 1) for widget in widgets]
    form = {"inputs": [[ids[key], name] for key, name in split], "outputs": [ids[key] for key in outputs]}
    return {**workflow, "extra": {**workflow["extra"], "linearMode": True, "linearData": form}}


def blueprint(workflow: dict[str, Any], description: Workflow) -> dict[str, Any]:
    """Return the workflow's only subgraph without the nodes around it."""
    (box,) = description.subgraphs
    node = _node(workflow, numbers(description)[box.key])
    node["inputs"] = [{**entry, "link": None} for entry in node["inputs"]]
    node["outputs"] = [{**entry, "links": None} for entry in node["outputs"]]
    node["pos"] = [0, 0]
    (definition,) = workflow["definitions"]["subgraphs"]
    definition["category"], extra = "StyleGAN-NADA", {"BlueprintDescription": description.about}
    return {**workflow, "nodes": [node], "links": [], "groups": [], "extra": extra}


def numbers(description: Workflow) -> dict[str, int]:
    """The ids that `build` gives to the nodes and subgraphs, by key."""
    keys = [*_plain(description), *(one.key for one in description.subgraphs)]
    return {key: index for index, key in enumerate(keys, 1)}


def save(workflow: dict[str, Any], path: Path) -> None:
    """Save a workflow; its name is the title that ComfyUI's list of templates shows."""
    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    lists = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")  # positions, links: short ones go on one line
    short = lists.sub(lambda found: f"[{re.sub(chr(10) + ' *', ' ', found[1])}]", text)
    assert json.loads(short) == workflow
    path.write_text(short + "\n", encoding="utf-8")


def _created(page: Page, description: Workflow) -> dict[str, int]:
    """Make the nodes in the page and return their ids by key."""
    nodes = [{"key": key, **spec} for key, spec in _plain(description).items()]
    links = [[end.split(".", 1) for end in link] for link in description.links]
    boxes = [
        {**asdict(one), "promoted": [widget.split(".", 1) for widget in one.widgets]} for one in description.subgraphs
    ]
    try:
        made = page.tab.evaluate(BUILD, json.dumps({"nodes": nodes, "links": links, "subgraphs": boxes}))
    except Error as error:
        if "author: " not in str(error):
            raise
        raise AuthorError(str(error).split("author: ", 1)[1].splitlines()[0]) from error
    ids = {key: int(id) for key, id in json.loads(made).items()}
    assert ids == numbers(description), (ids, numbers(description))
    return ids


def _plain(description: Workflow) -> dict[str, dict[str, Any]]:
    """The nodes by key, as the page gets them."""
    notes = [node for node in description.nodes if isinstance(node, Note)]
    return {
        node.key if isinstance(node, Node) else f"note {notes.index(node)}": (
            asdict(node) if isinstance(node, Node) else {**asdict(node), "type": "MarkdownNote", "widgets": {}}
        )
        for node in description.nodes
    }


def _outer(description: Workflow) -> dict[str, Node | Note | Subgraph]:
    """The nodes and subgraphs that the opened workflow shows, by key."""
    inner = {key for one in description.subgraphs for key in one.around}
    nodes = dict(zip(_plain(description), description.nodes, strict=True))
    return {
        **{key: node for key, node in nodes.items() if key not in inner},
        **{one.key: one for one in description.subgraphs},
    }


def _node(workflow: dict[str, Any], id: int) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if node["id"] == id)


def _growths(page: Page, description: Workflow, ids: dict[str, int]) -> dict[int, int]:
    """By how many pixels the nodes that the opened workflow shows can grow, by id."""
    info, outer = page.server.get("/object_info"), _outer(description)
    nodes = {ids[key]: spec for key, spec in outer.items() if isinstance(spec, Node)}
    return {id: growth(info[spec.type]["input"], spec.widgets) for id, spec in nodes.items()}


def _widen(workflow: dict[str, Any], description: Workflow, ids: dict[str, int]) -> None:
    """Give nodes their width before their height is measured."""
    for key, spec in _outer(description).items():
        _node(workflow, ids[key])["size"][0] = spec.width


def _label(workflow: dict[str, Any], node: dict[str, Any], spec: Subgraph, ids: dict[str, int]) -> None:
    """Name the promoted widgets, and place the inner nodes from left to right.

    Frontend 1.49 finds promoted widgets as inputs of the subgraph, frontend 1.42 also the button in `proxyWidgets`.
    """
    (inner,) = (one for one in workflow["definitions"]["subgraphs"] if one["id"] == node["type"])
    promoted = len(inner["inputs"]) - len(spec.widgets)
    labeled = [*zip(inner["inputs"][promoted:], spec.widgets.values(), strict=True)]
    for one in (inner, node):
        slots = [entry for entry in one["inputs"][:promoted] if "widget" not in entry]
        labeled += zip(slots, spec.takes, strict=True) if spec.takes else []
        labeled += zip(one["outputs"], spec.gives, strict=True) if spec.gives else []
    for entry, label in labeled:
        entry["label"] = label
    node["properties"] = {}
    if spec.preview is not None:
        picture, id = "$$canvas-image-preview", str(ids[spec.preview])
        exposed = {"name": picture, "sourceNodeId": id, "sourcePreviewName": picture}
        proxies = [[id, "stop_and_keep"]]
        node["properties"] = {"previewExposures": [exposed], "proxyWidgets": proxies}
    left = 0
    for one in inner["nodes"]:
        one["pos"] = [left, 0]
        left += one["size"][0] + 80
    inner["inputNode"]["bounding"][:2] = [-220, 0]
    inner["outputNode"]["bounding"][:2] = [left, 0]


def _settled(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    """Replace what differs between exports: random ids, the view and the version of the page."""
    text = json.dumps({**workflow, "id": "", "revision": 0, "extra": {}})
    pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    random = dict.fromkeys(re.findall(pattern, text))
    for index, id in enumerate(random):
        text = text.replace(id, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {index}")))
    return {**json.loads(text), "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name))}
