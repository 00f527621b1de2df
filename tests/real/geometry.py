"""Where ComfyUI's page draws the boxes and links of a workflow, computed from its JSON.

The rules are those of frontends 1.42 and 1.49 with their classic renderer: LGraphCanvas and pathRenderer draw a link as
a cubic Bezier curve, fitView chooses the scale when a template is opened. `tests/real/test_templates.py` compares the
scale with the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

TITLE = 30  # height of a title bar, drawn above a node's position
SLOT = 20  # height of a row of slots
WIDGET = 24  # height of a row of widgets
PADDING = 10  # around all nodes
FILLED = 0.75  # share of the page that the nodes get
PAGE = (1600, 1000)
SMALLEST = 8 / 14  # smaller scales draw no text
SAMPLES = 48  # points per link

#: The weights of a cubic curve's ends and handles at each point.
BEZIER = [
    ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    for t in (index / SAMPLES for index in range(SAMPLES + 1))
]


def box(pos: Sequence[float], size: Sequence[float]) -> Box:
    """The box of a node with its title bar."""
    return pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]


def boxes(workflow: Mapping[str, Any]) -> dict[int, Box]:
    """The boxes of all nodes by id. Raises ValueError if one is collapsed: its width depends on the font."""
    if collapsed := [node["id"] for node in workflow["nodes"] if node["flags"].get("collapsed")]:
        raise ValueError(f"nodes {collapsed} are collapsed; expected nodes that show their widgets")
    return {node["id"]: box(node["pos"], node["size"]) for node in workflow["nodes"]}


def growth(sections: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """By how many pixels a node can grow when other options of its dynamic combos show more widgets.

    Args:
        sections: the inputs of the node, as in /object_info.
        values: its widgets by name; those without one have their first option.
    """
    result = 0
    for name, entry in [item for section in ("required", "optional") for item in sections.get(section, {}).items()]:
        if entry[0] == "COMFY_DYNAMICCOMBO_V3":
            rows = {one["key"]: sum(map(len, one["inputs"].values())) for one in entry[1]["options"]}
            result += WIDGET * (max(rows.values()) - rows[values.get(name, next(iter(rows)))])
    return result


def grown(one: Box, pixels: int) -> Box:
    return one[0], one[1], one[2], one[3] + pixels


def scale(nodes: Sequence[Box], page: tuple[int, int] = PAGE) -> float:
    """The scale at which the page opens a template: its nodes fill three quarters of the width or the height."""
    left, top = min(one[0] for one in nodes) - PADDING, min(one[1] for one in nodes) - PADDING
    width = max(one[2] for one in nodes) + PADDING - left
    height = max(one[3] for one in nodes) + PADDING - top
    return FILLED * min(page[0] / max(width, 300), page[1] / max(height, 300))


def output_point(pos: Sequence[float], size: Sequence[float], slot: int) -> Point:
    return pos[0] + size[0] + 1 - SLOT / 2, pos[1] + (slot + 0.7) * SLOT


def input_point(pos: Sequence[float], slot: int) -> Point:
    """slot: counted without the inputs that belong to widgets."""
    return pos[0] + SLOT / 2, pos[1] + (slot + 0.7) * SLOT


def curve(start: Point, end: Point) -> list[Point]:
    """Points on a link from an output to an input."""
    reach = max(30.0, math.dist(start, end) / 4)
    (x, y), (u, v) = start, end
    return [(a * x + b * (x + reach) + c * (u - reach) + d * u, (a + b) * y + (c + d) * v) for a, b, c, d in BEZIER]


def crossed(points: Sequence[Point], source: Any, target: Any, nodes: Mapping[Any, Box]) -> Iterator[Any]:
    """The keys of the boxes that a link passes; its own two only where it leaves the slots' margin."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    for key, (left, top, right, bottom) in nodes.items():
        right -= SLOT if key == source else 0
        left += SLOT if key == target else 0
        if high > top and low < bottom and any(left < x < right and top < y < bottom for x, y in points):
            yield key


def links(workflow: Mapping[str, Any]) -> Iterator[tuple[int, int, list[Point]]]:
    """Source id, target id and points of every link."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, slot, target, entry, _ in workflow["links"]:
        giver, taker = nodes[source], nodes[target]
        free = [item for item in taker["inputs"] if "widget" not in item]
        at = free.index(taker["inputs"][entry])
        yield source, target, curve(output_point(giver["pos"], giver["size"], slot), input_point(taker["pos"], at))


def crossings(workflow: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Source id, target id and crossed node id, for every link that passes a node's box."""
    nodes = boxes(workflow)
    return [
        (source, target, key)
        for source, target, points in links(workflow)
        for key in crossed(points, source, target, nodes)
    ]
