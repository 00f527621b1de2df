"""The workflow templates: valid files that run without additional packages."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api  # GPL-3: for tests only
from host import guards
from host.double import Host, install, load_pack
from host.executor import Executor
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
PREFIX = "StyleGANNADA_"
CORE = {"PreviewImage", "SaveImage", "PreviewAny", "MarkdownNote"}
TITLE_BAR = 30  # drawn above a node's position
NEWEST, OLDEST = "0.33.0", "0.20.1"

#: Everything else is automatic: (file, node title) -> widgets.
EXCEPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("How many layers", "2 layers"): {"mode.count": 2},
    ("How many layers", "all layers"): {"mode": "all"},
    ("Naive versus directional", "Naive: global loss"): {
        "settings": "by hand",
        "settings.direction_loss": 0.0,
        "settings.global_loss": 1.0,
        "settings.angle_loss": 0.0,
    },
}
SETTINGS = ("AdaptGenerator", "ChooseLayers", "InvertImage", "PivotalTuning")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"

#: Absolute paths of Unix or Windows, or home folders, with at least two parts; URLs do not match.
PLACE = re.compile(r"(?<![\w.:/~])(?:~|[A-Za-z]:)?[/\\]{1,2}[\w.-]+[/\\][\w.-]+|file:/|[A-Za-z]:\\")


def named(path: Path) -> str:
    return path.stem


each = pytest.mark.parametrize("path", FILES, ids=named)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


class World:
    """The pack in the test double of one ComfyUI version."""

    def __init__(self, host: Host, nodes: list[type]) -> None:
        self.host, self.nodes = host, nodes
        self.info = Executor(host, nodes).object_info()

    def values(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Widget values of a workflow node by name; a control-after-generate value is `seed control`."""
        given = list(node.get("widgets_values") or [])
        values = dict(self._named(self.info[node["type"]]["input"], iter(given), ""))
        assert len(given) == len(values), f"{node['type']} has {len(given)} values for {list(values)}"
        return values

    def _named(self, sections: Mapping[str, Any], given: Iterator[Any], prefix: str) -> Iterator[tuple[str, Any]]:
        inputs = {**sections.get("required", {}), **sections.get("optional", {})}
        for name, (kind, options) in inputs.items():
            if kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC):
                continue
            value = next(given, None)
            yield prefix + name, value
            if options.get("control_after_generate"):
                yield f"{prefix}{name} control", next(given, None)
            for option in options["options"] if kind == DYNAMIC else ():
                if option["key"] == value:
                    yield from self._named(option["inputs"], given, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    from open_clip.tokenizer import SimpleTokenizer

    with pytest.MonkeyPatch.context() as patch, ExitStack() as open_packs:
        # Each run is watched for changes to its inputs; in a tokenizer's hundred thousand words that takes the longest.
        patch.setattr(guards, "OPAQUE", (*guards.OPAQUE, SimpleTokenizer))
        made = {}
        for index, version in enumerate((OLDEST, NEWEST)):
            host = install(patch, tmp_path_factory.mktemp("comfy"), version)
            pack = open_packs.enter_context(load_pack(ROOT, host, f"/x/templates-{index}"))
            made[version] = World(host, pack.nodes)
        yield made


@pytest.fixture
def world(worlds: dict[str, World]) -> World:
    return worlds[NEWEST]


def text(value: Any) -> Iterator[str]:
    """All strings in a file, including keys."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from text(part)
    elif isinstance(value, list):
        for part in value:
            yield from text(part)
    elif isinstance(value, str):
        yield value


# ---- the folder ---------------------------------------------------------------------------------------------------


def test_folder_contains_only_templates() -> None:
    assert len(FILES) >= 6
    others = [path.name for path in FOLDER.iterdir() if path.suffix not in (".json", ".jpg")]
    assert not others, "ComfyUI lists what lies here as templates"
    pictures, workflows = ({path.stem for path in FOLDER.glob(f"*.{kind}")} for kind in ("jpg", "json"))
    assert pictures == workflows, "a template is a workflow and its thumbnail"


@each
def test_thumbnail_is_a_small_jpeg(path: Path) -> None:
    data = path.with_suffix(".jpg").read_bytes()
    assert len(data) <= 150_000
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        assert picture.format == "JPEG" and width >= 400
        assert height <= width <= 2 * height, "the list shows squares, and cuts what is higher or far wider"
        assert not picture.getexif()


@each
def test_template_contains_no_local_paths(path: Path) -> None:
    paths = [part for part in text(read(path)) if PLACE.search(part)]
    assert not paths


@pytest.mark.parametrize(
    ("text_part", "is_path"),
    [
        ("/home/me/a.pt", True),
        ("in /data/x", True),
        ("C:\\Users\\me", True),
        ("~/models/a", True),
        ("D:/x/y", True),
        ("file:///a", True),
        ("`models/stylegan_nada`", False),
        ("https://example.org/a/b", False),
        ("1/2/3", False),
        ("and/or", False),
        ("a / b", False),
        ("before\nafter", False),
    ],
)
def test_local_path_pattern(text_part: str, is_path: bool) -> None:
    assert bool(PLACE.search(text_part)) is is_path


# ---- the graph ----------------------------------------------------------------------------------------------------


@each
def test_template_uses_only_core_and_own_nodes(world: World, path: Path) -> None:
    workflow = read(path)
    kinds = {node["type"] for node in workflow["nodes"]}
    assert {kind for kind in kinds if kind not in CORE} <= {cls.GET_SCHEMA().node_id for cls in world.nodes}
    assert not workflow.get("definitions"), "a subgraph hides nodes from this test"
    assert {node["mode"] for node in workflow["nodes"]} == {0}, "nothing is muted or bypassed"
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and all(len(note) > 50 for note in notes)


@each
def test_nodes_do_not_overlap(path: Path) -> None:
    nodes = read(path)["nodes"]
    boxes = [
        (x, y - TITLE_BAR, x + width, y + height)
        for (x, y), (width, height) in ((node["pos"], node["size"]) for node in nodes)
    ]
    for index, one in enumerate(boxes):
        for other, box in enumerate(boxes[:index]):
            apart = one[2] <= box[0] or box[2] <= one[0] or one[3] <= box[1] or box[3] <= one[1]
            assert apart, f"{nodes[index]['type']} lies on {nodes[other]['type']}"


@each
def test_links_are_consistent(path: Path) -> None:
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"]) and len(links) == len(workflow["links"])
    assert max(nodes) <= workflow["last_node_id"] and max(links) <= workflow["last_link_id"]
    leaving = {
        (link, node["id"], slot, output["type"])
        for node in nodes.values()
        for slot, output in enumerate(node["outputs"])
        for link in output["links"] or ()
    }
    taken = {link[0]: link[5] for link in workflow["links"]}  # an input of type * takes whatever its link brings
    arriving = {
        (entry["link"], node["id"], slot, taken[entry["link"]] if entry["type"] == "*" else entry["type"])
        for node in nodes.values()
        for slot, entry in enumerate(node["inputs"])
        if entry.get("link") is not None
    }
    assert leaving == {(id, source, slot, kind) for id, source, slot, _, _, kind in links.values()}
    assert arriving == {(id, target, slot, kind) for id, _, _, target, slot, kind in links.values()}


# ---- the values ---------------------------------------------------------------------------------------------------


@each
def test_widget_values_are_complete(worlds: dict[str, World], path: Path) -> None:
    for world in worlds.values():
        for node in read(path)["nodes"]:
            if node["type"].startswith(PREFIX):
                values = world.values(node)
                assert all(value == "fixed" for name, value in values.items() if name.endswith(" control"))
                named = node.get("widgets_values_named", {})
                assert all(values[name] == value for name, value in named.items() if name in values)


@each
def test_settings_are_automatic(world: World, path: Path) -> None:
    """Templates teach what a user needs first, so they leave the settings to the generator's file."""
    left = {title: widgets for (name, title), widgets in EXCEPTIONS.items() if name == path.stem}
    for node in read(path)["nodes"]:
        kind = node["type"].removeprefix(PREFIX)
        if kind in SETTINGS:
            exception, values = left.pop(node.get("title", ""), {}), world.values(node)
            assert exception.items() <= values.items(), node.get("title")
            usual = {"automatic", "adaptive", -1, 0, "fixed"}
            assert {value for name, value in values.items() if name not in exception} <= usual, node.get("title")
    assert not left, "exceptions without a node"


def test_exceptions_name_existing_templates() -> None:
    assert {name for name, _ in EXCEPTIONS} <= {path.stem for path in FILES}


# ---- running ------------------------------------------------------------------------------------------------------


def shortened(prompt: dict[str, Any]) -> dict[str, Any]:
    """Copy the graph with two training steps and two images."""
    made = json.loads(json.dumps(prompt))
    for node in made.values():
        inputs = node["inputs"]
        if node["class_type"] == f"{PREFIX}AdaptGenerator":
            inputs |= {"settings.steps": 2}
        if node["class_type"] == f"{PREFIX}ShiftFromText":
            inputs["wording"] = "bare"
        if node["class_type"] in (f"{PREFIX}SampleLatents", f"{PREFIX}DrawPortrait"):
            inputs["count"] = 2
        if node["class_type"] in (f"{PREFIX}InvertImage", f"{PREFIX}PivotalTuning"):
            inputs["settings.steps"] = 3
    return made


@each
def test_template_runs_and_is_cached(worlds: dict[str, World], path: Path) -> None:
    workflow = read(path)
    for world in worlds.values():
        prompt = convert_ui_to_api(workflow, world.info)
        assert Executor(world.host, world.nodes).validate(prompt) == []
    wanted = {str(node["id"]) for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    assert prompt.keys() == wanted
    world = worlds[NEWEST]
    executor, short = Executor(world.host, world.nodes), shortened(prompt)
    result = executor.run(short, {"workflow": workflow}).check()
    assert set(result.executed) == wanted and not result.cached
    keys = {"PreviewImage": "images", "PreviewAny": "text"}
    shows = {id: keys.get(node["class_type"]) for id, node in prompt.items()}
    assert any(shows.values()) and all(result.ui[id][key] for id, key in shows.items() if key)
    again = executor.run(short, {"workflow": workflow}).check()
    assert not again.executed and again.ui.keys() == result.ui.keys()


@each
def test_prompt_contains_the_widget_values(world: World, path: Path) -> None:
    prompt = convert_ui_to_api(read(path), world.info)
    for node in read(path)["nodes"]:
        if node["type"].startswith(PREFIX):
            values = {name: value for name, value in world.values(node).items() if not name.endswith(" control")}
            inputs = prompt[str(node["id"])]["inputs"]
            assert {name: inputs[name] for name in values} == values


def test_invalid_widget_value_is_detected(world: World) -> None:
    workflow = read(FOLDER / "Text to new domain.json")
    (node,) = (node for node in workflow["nodes"] if node["type"] == f"{PREFIX}AdaptGenerator")
    with pytest.raises(AssertionError, match=f"AdaptGenerator has {len(node['widgets_values']) - 1} values for"):
        world.values({**node, "widgets_values": node["widgets_values"][:-1]})
    node["widgets_values"][1] = -2
    errors = Executor(world.host, world.nodes).validate(convert_ui_to_api(workflow, world.info))
    assert [(error.type, error.input_name) for error in errors] == [("value_smaller_than_min", "settings.steps")]
