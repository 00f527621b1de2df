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
from real import geometry

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
PREFIX = "StyleGANNADA_"
DIFFUSION = "CheckpointLoaderSimple CLIPTextEncode VAEEncode VAEDecode KSampler ImageScale".split()
CORE = {
    "PreviewImage",
    "LoadImage",
    "LoadVideo",
    "GetVideoComponents",
    "CreateVideo",
    "SaveVideo",
    "MarkdownNote",
    *DIFFUSION,
}
#: Needs a checkpoint of the user, and core nodes that the double does not have.
UNRUN = "14 Learn from a diffusion model"
MOST_STEPS = 120
BADGE = 60  # pixels of a thumbnail of 512 that the list of templates covers at the top left
NEWEST, OLDEST = "0.33.0", "0.20.1"

#: Everything else is automatic: (file, title of the node or its subgraph, node) -> widgets.
EXCEPTIONS: dict[tuple[str, str, str], dict[str, Any]] = {
    ("10 How many layers", "Train 2 layers", "ChooseLayers"): {"mode.count": 2},
    ("10 How many layers", "Train all layers", "ChooseLayers"): {"mode": "all"},
    ("9 Naive versus directional", "Naive: global loss", "AdaptGenerator"): {
        "settings": "by hand",
        "settings.direction_loss": 0.0,
        "settings.global_loss": 1.0,
        "settings.angle_loss": 0.0,
    },
}
PICTURES = {
    "PreviewImage",
    *(f"{PREFIX}{name}" for name in ("Compare", "PickSnapshot", "InspectLayers", "PlotTraining")),
}
SETTINGS = ("AdaptGenerator", "AdaptToPairs", "ChooseLayers", "InvertImage", "PivotalTuning")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"

#: Absolute paths of Unix or Windows, or home folders, with at least two parts; URLs do not match.
PLACE = re.compile(r"(?<![\w.:/~])(?:~|[A-Za-z]:)?[/\\]{1,2}[\w.-]+[/\\][\w.-]+|file:/|[A-Za-z]:\\")


def named(path: Path) -> str:
    return path.stem


each = pytest.mark.parametrize("path", FILES, ids=named)
each_that_runs = pytest.mark.parametrize("path", [path for path in FILES if path.stem != UNRUN], ids=named)


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
    others = [path.name for path in FOLDER.iterdir() if path.suffix not in (".json", ".jpg")]
    assert not others, "ComfyUI lists what lies here as templates"
    pictures, workflows = ({path.stem for path in FOLDER.glob(f"*.{kind}")} for kind in ("jpg", "json"))
    assert pictures == workflows, "a template is a workflow and its thumbnail"


def test_names_are_numbered() -> None:
    """The list of templates has the order of the folder, so the names say what comes first."""
    numbers = [int(path.stem.split()[0]) for path in FILES if not path.stem.endswith(".app")]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)) and len(numbers) >= 10
    assert sum(path.stem.endswith(".app") for path in FILES) == 2


@each
def test_thumbnail_is_a_small_square(path: Path) -> None:
    data = path.with_name(f"{path.stem}.jpg").read_bytes()
    assert len(data) <= 60_000
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512) and not picture.getexif()
        darkest, _ = picture.convert("L").crop((0, 0, 512, BADGE)).getextrema()
        assert darkest > 230, "the badge covers a part of the picture"


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


# ---- the view -----------------------------------------------------------------------------------------------------


@each
def test_template_opens_readable(path: Path) -> None:
    """The page draws no text below a scale of 0.57."""
    assert geometry.scale(list(geometry.boxes(read(path)).values())) >= 0.6


@each
def test_links_cross_no_nodes(path: Path) -> None:
    assert geometry.crossings(read(path)) == []


def test_crossing_is_detected() -> None:
    workflow = read(FOLDER / "1 Text to new domain.json")
    (note, *_) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    source, target, points = next(geometry.links(workflow))
    x, y = points[len(points) // 2]
    note["pos"] = [x - note["size"][0] / 2, y - note["size"][1] / 2]
    assert (source, target, note["id"]) in geometry.crossings(workflow)


def grown_boxes(world: World, workflow: Mapping[str, Any]) -> dict[int, geometry.Box]:
    """The boxes of all nodes with as many widgets as their settings can show."""
    boxes = geometry.boxes(workflow)
    for node in workflow["nodes"]:
        if node["type"].startswith(PREFIX):
            pixels = geometry.growth(world.info[node["type"]]["input"], world.values(node))
            boxes[node["id"]] = geometry.grown(boxes[node["id"]], pixels)
    return boxes


@each
def test_nodes_do_not_overlap_with_any_settings(worlds: dict[str, World], path: Path) -> None:
    nodes = list(grown_boxes(worlds[NEWEST], read(path)).items())
    for index, (one, box) in enumerate(nodes):
        assert not [other for other, there in nodes[:index] if overlap(box, there)], one


@each
def test_nodes_are_in_groups_with_any_settings(worlds: dict[str, World], path: Path) -> None:
    workflow = read(path)
    boxes = grown_boxes(worlds[NEWEST], workflow)
    frames = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in workflow["groups"])]
    assert not [(a, b) for index, a in enumerate(frames) for b in frames[:index] if overlap(a, b)]
    for node in workflow["nodes"]:
        box = boxes[node["id"]]
        around = [frame for frame in frames if overlap(frame, box)]
        if node["type"] == "MarkdownNote":
            assert not around
        else:
            ((left, top, right, bottom),) = around
            assert left < box[0] and top + 12 < box[1] and box[2] < right and box[3] < bottom, node["id"]


def overlap(one: geometry.Box, other: geometry.Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@each
def test_notes_come_first(path: Path) -> None:
    nodes = read(path)["nodes"]
    notes = [node["pos"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert notes and max(notes) == min(node["pos"][0] for node in nodes)


#: Title colors: inputs are blue, trainings and changes of weights violet, results green.
READS, TRAINS, SHOWS = "#2a4858", "#4a3358", "#335842"
ROLES = {
    READS: "LoadGenerator LoadGuide LoadLikeness CombineGuides ShiftFromText ShiftFromImages DrawPortrait AlignFace",
    TRAINS: "AdaptGenerator AdaptToPairs ChooseLayers InvertImage PivotalTuning ApplyDomain",
    SHOWS: "SampleLatents MixLatents InterpolateLatents FindDirections EditLatents Render Compare PickSnapshot "
    "InspectLayers PlotTraining SaveDomain SaveGenerator PasteFace",
}
COLORS = {
    **{f"{PREFIX}{name}": color for color, names in ROLES.items() for name in names.split()},
    **dict.fromkeys(("LoadImage", "LoadVideo", "GetVideoComponents"), READS),
    **dict.fromkeys(("CheckpointLoaderSimple", "CLIPTextEncode"), READS),
    "KSampler": TRAINS,
    **dict.fromkeys(("VAEEncode", "VAEDecode", "ImageScale"), SHOWS),
    **dict.fromkeys(("PreviewImage", "CreateVideo", "SaveVideo"), SHOWS),
    "MarkdownNote": "#432",
}


@each
def test_colors_show_roles(path: Path) -> None:
    workflow = read(path)
    boxes = {definition["id"] for definition in subgraphs(workflow)}
    for node in (*workflow["nodes"], *(node for one in subgraphs(workflow) for node in one["nodes"])):
        assert node["color"] == (TRAINS if node["type"] in boxes else COLORS[node["type"]]), node["type"]


# ---- the graph ----------------------------------------------------------------------------------------------------


def subgraphs(workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
    return workflow.get("definitions", {}).get("subgraphs", [])


def inner(workflow: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes, those in subgraphs included, with their titles or those of their subgraphs."""
    names = {one["id"] for one in subgraphs(workflow)}
    yield from ((node.get("title", ""), node) for node in workflow["nodes"] if node["type"] not in names)
    for one in subgraphs(workflow):
        yield from ((one["name"], node) for node in one["nodes"])


@each
def test_template_uses_only_core_and_own_nodes(world: World, path: Path) -> None:
    nodes = [node for _, node in inner(read(path))]
    kinds = {node["type"] for node in nodes}
    assert {kind for kind in kinds if kind not in CORE} <= {cls.GET_SCHEMA().node_id for cls in world.nodes}
    assert {node["mode"] for node in nodes} == {0}, "nothing is muted or bypassed"
    notes = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert notes and all(50 < len(note) < 700 for note in notes)


@each
def test_each_of_several_trainings_is_a_subgraph(path: Path) -> None:
    workflow = read(path)
    trainings = [title for title, node in inner(workflow) if node["type"] == f"{PREFIX}AdaptGenerator"]
    names = {one["name"] for one in subgraphs(workflow)}
    assert len(trainings) < 2 or (set(trainings) <= names and len(set(trainings)) == len(trainings))


@pytest.mark.parametrize("path", [*FILES, *BLUEPRINTS], ids=named)
def test_subgraphs_show_values_of_their_nodes(path: Path) -> None:
    """Frontend 1.42 shows the values of the inner nodes, frontend 1.49 those of the subgraph's node."""
    workflow = read(path)
    for node in workflow["nodes"]:
        for one in subgraphs(workflow):
            if one["id"] == node["type"]:
                given = iter(node.get("widgets_values", []))
                ids = {other["id"]: other for other in one["nodes"]}
                for index, entry in enumerate(one["inputs"]):
                    for link in one["links"]:
                        target = ids.get(link["target_id"])
                        if (link["origin_id"], link["origin_slot"]) == (-10, index) and target is not None:
                            slot = target["inputs"][link["target_slot"]]
                            if "widget" in slot:
                                assert target["widgets_values_named"][slot["name"]] == next(given), entry["name"]
                assert next(given, None) is None


@pytest.mark.parametrize("path", BLUEPRINTS, ids=named)
def test_blueprint_is_one_subgraph(world: World, path: Path) -> None:
    workflow = read(path)
    (node,), (definition,) = workflow["nodes"], subgraphs(workflow)
    assert node["type"] == definition["id"] and definition["name"] == path.stem
    assert {one["type"] for one in definition["nodes"]} <= {cls.GET_SCHEMA().node_id for cls in world.nodes}
    assert all(entry["link"] is None for entry in node["inputs"]) and not workflow["links"]
    assert workflow["extra"]["BlueprintDescription"]
    for one in definition["nodes"]:
        # Frontend 1.42 counts all widgets of a dropped node, but files hold the linked ones only.
        widgets = [name for name in world.values(one) if not name.endswith(" control")]
        shown = [entry["widget"]["name"] for entry in one["inputs"] if "widget" in entry]
        assert shown == widgets[: len(shown)] or any("." in name for name in widgets), one["type"]


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.endswith(".app")], ids=named)
def test_app_shows_existing_widgets_and_outputs(world: World, path: Path) -> None:
    workflow = read(path)
    extra, nodes = workflow["extra"], {node["id"]: node for node in workflow["nodes"]}
    assert extra["linearMode"] is True
    shown = {name for _, name in extra["linearData"]["inputs"]}
    assert {"target", "settings.steps", "seed"} <= shown
    assert all(name in world.values(nodes[id]) for id, name in extra["linearData"]["inputs"])
    assert extra["linearData"]["outputs"] and nodes.keys() >= set(extra["linearData"]["outputs"])
    graph = read(path.with_name(path.name.replace(".app.", ".")))
    assert {**graph, "extra": extra} == workflow, "the form is in front of the same graph"


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
    arriving = {
        (entry["link"], node["id"], slot, entry["type"])
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
        for _, node in inner(read(path)):
            if node["type"].startswith(PREFIX):
                values = world.values(node)
                assert all(value == "fixed" for name, value in values.items() if name.endswith(" control"))
                named = node.get("widgets_values_named", {})
                assert all(values[name] == value for name, value in named.items() if name in values)


@each
def test_settings_are_automatic(world: World, path: Path) -> None:
    """Templates teach what a user needs first, so they leave all settings but the steps to the generator's file."""
    left = {key[1:]: widgets for key, widgets in EXCEPTIONS.items() if key[0] == path.stem}
    for title, node in inner(read(path)):
        kind = node["type"].removeprefix(PREFIX)
        if kind in SETTINGS:
            exception, values = left.pop((title, kind), {}), world.values(node)
            assert exception.items() <= values.items(), title
            rest = {name: value for name, value in values.items() if name not in (*exception, "snapshot_every")}
            assert rest.pop("settings.steps", -1) in (-1, *range(60, MOST_STEPS + 1)), title
            assert set(rest.values()) <= {"automatic", "adaptive", -1, 0, "fixed"}, title
    assert not left, "exceptions without a node"


def test_exceptions_name_existing_templates() -> None:
    assert {name for name, *_ in EXCEPTIONS} <= {path.stem for path in FILES}


# ---- running ------------------------------------------------------------------------------------------------------


def shortened(prompt: dict[str, Any]) -> dict[str, Any]:
    """Copy the graph with two training steps and two images."""
    made = json.loads(json.dumps(prompt))
    for node in made.values():
        inputs = node["inputs"]
        if node["class_type"] == f"{PREFIX}AdaptGenerator":
            inputs |= {"settings.steps": 2, "snapshot_every": min(1, inputs["snapshot_every"])}
        if node["class_type"] == f"{PREFIX}AdaptToPairs":
            inputs["settings.steps"] = 2
        if node["class_type"] == f"{PREFIX}ShiftFromText":
            inputs["wording"] = "bare"
        if node["class_type"] in (f"{PREFIX}SampleLatents", f"{PREFIX}DrawPortrait"):
            inputs["count"] = 2
        if node["class_type"] in (f"{PREFIX}InvertImage", f"{PREFIX}PivotalTuning"):
            inputs["settings.steps"] = 3
    return made


#: Nodes for the user's own files, which are not connected, and the video that the double cannot save.
UNUSED = ("SaveVideo", "LoadImage", "LoadVideo", "GetVideoComponents")


def without_core(workflow: dict[str, Any]) -> dict[str, Any]:
    """Show images instead of saving a video: the double has few core nodes."""
    result = json.loads(json.dumps(workflow))
    for node in result["nodes"]:
        if node["type"] == "CreateVideo":
            node |= {"type": "PreviewImage", "outputs": [], "inputs": node["inputs"][:1], "widgets_values": []}
    result["nodes"] = [node for node in result["nodes"] if node["type"] not in UNUSED]
    ids = {node["id"] for node in result["nodes"]}
    result["links"] = [link for link in result["links"] if {link[1], link[3]} <= ids]
    return result


def expanded(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a prompt by id: "3", or "7:3" inside subgraph node 7."""
    definitions = {one["id"]: one for one in subgraphs(workflow)}
    result = {}
    for node in workflow["nodes"]:
        if node["type"] in definitions:
            result |= {f"{node['id']}:{one['id']}": one for one in definitions[node["type"]]["nodes"]}
        elif node["type"] != "MarkdownNote":
            result[str(node["id"])] = node
    return result


def test_restyled_images_and_their_latents_have_one_source() -> None:
    """The order of images and latents is that of one node, and only the checkpoint is left to the user."""
    workflow = read(FOLDER / f"{UNRUN}.json")
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    links = {(kinds[source], kinds[target]) for _, source, _, target, _, _ in workflow["links"]}
    (box,) = subgraphs(workflow)
    assert {(f"{PREFIX}SampleLatents", box["id"]), (box["id"], f"{PREFIX}AdaptToPairs")} <= links
    assert (f"{PREFIX}SampleLatents", f"{PREFIX}AdaptToPairs") in links
    empty = [node["type"] for _, node in inner(workflow) if None in (node.get("widgets_values") or [])]
    assert empty == ["CheckpointLoaderSimple"]
    (sampler,) = (node for node in box["nodes"] if node["type"] == "KSampler")
    assert 0.3 <= sampler["widgets_values"][-1] <= 0.6


@each_that_runs
def test_template_runs_and_is_cached(worlds: dict[str, World], path: Path) -> None:
    workflow = without_core(read(path))
    for world in worlds.values():
        prompt = convert_ui_to_api(workflow, world.info)
        assert Executor(world.host, world.nodes).validate(prompt) == []
    wanted = set(expanded(workflow))
    assert prompt.keys() == wanted
    world = worlds[NEWEST]
    executor, short = Executor(world.host, world.nodes), shortened(prompt)
    result = executor.run(short, {"workflow": workflow}).check()
    assert set(result.executed) == wanted and not result.cached
    shows = [id for id, node in prompt.items() if node["class_type"] in PICTURES]
    assert shows and all(result.ui[id]["images"] for id in shows)
    again = executor.run(short, {"workflow": workflow}).check()
    assert not again.executed and again.ui.keys() == result.ui.keys()


@each_that_runs
def test_prompt_contains_the_widget_values(world: World, path: Path) -> None:
    workflow = without_core(read(path))
    prompt = convert_ui_to_api(workflow, world.info)
    for id, node in expanded(workflow).items():
        if node["type"].startswith(PREFIX):
            values = {name: value for name, value in world.values(node).items() if not name.endswith(" control")}
            assert {name: prompt[id]["inputs"][name] for name in values} == values


def test_invalid_widget_value_is_detected(world: World) -> None:
    workflow = read(FOLDER / "1 Text to new domain.json")
    (node,) = (node for node in workflow["nodes"] if node["type"] == f"{PREFIX}AdaptGenerator")
    with pytest.raises(AssertionError, match=f"AdaptGenerator has {len(node['widgets_values']) - 1} values for"):
        world.values({**node, "widgets_values": node["widgets_values"][:-1]})
    node["widgets_values"][1] = -2
    errors = Executor(world.host, world.nodes).validate(convert_ui_to_api(workflow, world.info))
    assert [(error.type, error.input_name) for error in errors] == [("value_smaller_than_min", "settings.steps")]
