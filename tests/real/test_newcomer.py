"""A newcomer's graph: every widget but the target at its default, judged by the classifier of the built-in world.

NADA_STEPS limits the steps, for a quick check that the graph runs; the verdict is only asserted without a limit.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from environment import PREFIX, require
from graph import Prompt, chain, changed, find, short

require("websocket")

if TYPE_CHECKING:
    from server import Server

TRAINING = ("LoadGenerator", "LoadGuide", "ShiftFromText", "AdaptGenerator", "SampleLatents", "Compare")
STEPS = int(os.environ.get("NADA_STEPS", 3))  # 0: all, about a minute for each target


def graph(info: dict[str, Any], target: str) -> Prompt:
    """The nodes in the order in which they are dragged, connected by type; the result is also saved for the judge."""
    prompt = chain(info, *(PREFIX + name for name in TRAINING), "PreviewImage", f"{PREFIX}SaveGenerator")
    (load,), (adapt,) = (find(prompt, PREFIX + name) for name in ("LoadGenerator", "AdaptGenerator"))
    (compare,), (sample,) = (find(prompt, PREFIX + name) for name in ("Compare", "SampleLatents"))
    prompt[compare]["inputs"] |= {"generators.generator_1": [load, 0], "generators.generator_2": [adapt, 0]}
    prompt[sample]["inputs"]["generator"] = [load, 0]
    return changed(prompt, f"{PREFIX}ShiftFromText", target=target)


@pytest.mark.parametrize("target", ["joker", "zombie", "pencil sketch"])
def test_defaults_give_a_good_result(server: Server, info: dict[str, Any], target: str) -> None:
    from nada_core import load_generator
    from nada_core.portraits import Judge, examine
    from nada_core.portraits.content import Content

    prompt = graph(info, target)
    run = server.run(short(prompt, STEPS) if STEPS else prompt)
    assert run.status == "success", run.error
    assert any("images" in output for output in run.outputs.values())
    newest = max(
        Path(server.base, "output", "stylegan_nada").glob("*.safetensors"), key=lambda path: path.stat().st_mtime
    )
    verdict = examine(Judge.load(), Content.load(), load_generator("portraits"), load_generator(newest), target)
    sys.stdout.write(f"{target}, {run.seconds:.0f} s: {json.dumps(verdict.as_row())}\n")
    if not STEPS:
        assert verdict.passed, verdict
