"""Place the nodes of a workflow in columns so that no link passes a node's box.

A random search with a fixed seed moves columns and nodes up and down and counts the crossings with `geometry`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from geometry import Box, box, crossed, curve, grown, input_point, output_point

COLUMN_GAP, NODE_GAP, NOTE_GAP = 80, 60, 50
GROUP_GAP = 125  # between two nodes of different groups in one column
MARGIN, HEADING = 18, 45  # of a group around its nodes, and above their title bars
TRIALS, STARTS = 3000, 15
STARTING = (0, 0, 60, 120, 240, 360, 480)
STEPS = (-200, -100, -60, -40, -20, 20, 40, 60, 100, 200)


class _Layout:
    """The shown graph without everything that does not matter for positions."""

    def __init__(
        self,
        workflow: dict[str, Any],
        columns: Sequence[Sequence[int]],
        groups: Mapping[str, list[int]],
        growths: Mapping[int, int],
    ) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.growths = growths
        self.columns = [list(column) for column in columns]
        self.groups = groups
        self.group_of = {id: title for title, ids in groups.items() for id in ids}
        self.links = [(a, slot, b, self._free(b, entry)) for _, a, slot, b, entry, _ in workflow["links"]]
        self.space = {id: 0 for id in self.nodes}  # above a node, besides the gap

    def _free(self, id: int, entry: int) -> int:
        inputs = self.nodes[id]["inputs"]
        return [item for item in inputs if "widget" not in item].index(inputs[entry])

    def place(self) -> None:
        left = 0
        for column in self.columns:
            top, above = 0, None
            for id in column:
                if above is not None:
                    same = self.group_of.get(above) == self.group_of.get(id)
                    top += (NODE_GAP if same else GROUP_GAP) + self.space[id]
                else:
                    top += self.space[id]
                self.nodes[id]["pos"] = [left, top]
                top, above = top + self.nodes[id]["size"][1] + self.growths.get(id, 0), id
            is_notes = all(id not in self.group_of for id in column)
            left += max(self.nodes[id]["size"][0] for id in column) + (NOTE_GAP if is_notes else COLUMN_GAP)

    def bounds(self) -> dict[str, list[int]]:
        """x, y, width and height of each group."""
        result = {}
        for title, ids in self.groups.items():
            inside = [self._box(id) for id in ids]
            left, top = min(one[0] for one in inside) - MARGIN, min(one[1] for one in inside) - HEADING
            right, bottom = max(one[2] for one in inside) + MARGIN, max(one[3] for one in inside) + MARGIN
            result[title] = [round(left), round(top), round(right - left), round(bottom - top)]
        return result

    def _box(self, id: int) -> Box:
        """The box of a node that has grown."""
        return grown(box(self.nodes[id]["pos"], self.nodes[id]["size"]), self.growths.get(id, 0))

    def cost(self) -> float:
        self.place()
        boxes = {id: self._box(id) for id in self.nodes}
        total, frames = 0.0, {title: (x, y, x + w, y + h) for title, (x, y, w, h) in self.bounds().items()}
        headings = {title: (x, y, x + 14 * len(title), y + 30) for title, (x, y, _, _) in frames.items()}
        wide = {id: (x - 6, y - 6, u + 6, v + 6) for id, (x, y, u, v) in boxes.items()}
        for a, slot, b, entry in self.links:
            start = output_point(self.nodes[a]["pos"], self.nodes[a]["size"], slot)
            end = input_point(self.nodes[b]["pos"], entry)
            total += 0.02 * abs(end[1] - start[1])
            points = curve(start, end)
            total += 2000 * len(list(crossed(points, a, b, {**wide, a: boxes[a], b: boxes[b]})))
            total += 60 * len(list(crossed(points, None, None, headings)))
        for title, frame in frames.items():
            others = [boxes[id] for id in boxes if self.group_of.get(id) != title]
            others += [other for name, other in frames.items() if name < title]
            total += 3000 * sum(_overlap(frame, other) for other in others)
        height = max(one[3] for one in boxes.values()) - min(one[1] for one in boxes.values())
        corner = max(boxes[id][3] for id in self.columns[-1])  # the page's map covers the lower right
        return total + height + 2 * corner + 0.05 * sum(self.space.values())


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def arrange(
    workflow: dict[str, Any],
    columns: Sequence[Sequence[int]],
    groups: Mapping[str, list[int]],
    growths: Mapping[int, int],
) -> dict[str, list[int]]:
    """Set the positions of all nodes, which `columns` lists from left to right, and return the boxes of the groups.

    growths: pixels that stay free below nodes, by id: see `geometry.growth`.
    """
    layout = _Layout(workflow, columns, groups, growths)
    movable = [[id for id in column if id in layout.group_of] for column in columns]
    starts = [dict(layout.space)]
    chance = random.Random(0)
    for _ in range(STARTS):
        starts.append({**layout.space, **{column[0]: chance.choice(STARTING) for column in movable if column}})
    firsts = [_improved(layout, start, movable, TRIALS // STARTS, chance) for start in starts]
    _improved(layout, min(firsts, key=lambda found: found[0])[1], movable, TRIALS, chance)
    layout.place()
    return layout.bounds()


def _improved(
    layout: _Layout, space: dict[int, int], movable: Sequence[Sequence[int]], trials: int, chance: random.Random
) -> tuple[float, dict[int, int]]:
    """Move nodes at random from `space` on, keep what is not worse, and return the cost and the spaces."""
    layout.space = space
    best, ids = layout.cost(), [id for column in movable for id in column]
    for _ in range(trials if ids and layout.links else 0):
        kept = dict(layout.space)
        for id in chance.sample(ids, min(len(ids), chance.choice((1, 1, 2)))):
            layout.space[id] = max(0, layout.space[id] + chance.choice(STEPS))
        if (now := layout.cost()) > best:
            layout.space = kept
        else:
            best = now
    return best, layout.space
