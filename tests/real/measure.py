"""Measure the templates: their scale in the page and, in a real ComfyUI, time, previews, cache and Cancel of the first.

python tests/real/measure.py                                        # scales and crossings only
COMFYUI_PATH=... OMP_NUM_THREADS=2 python tests/real/measure.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import geometry
from environment import PREFIX, comfy_path, comfy_python, pack_path, workflows
from graph import changed, short, to_api

if TYPE_CHECKING:
    from server import Event, Server

MAIN, SAMPLE = "1 Text to new domain", f"{PREFIX}SampleLatents"


def latency(server: Server, prompt: dict, at: int) -> float:
    """Return the seconds from the request to stop at a step to the message that the run has stopped."""
    asked: list[float] = []

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] >= at and not asked:
            asked.append(time.perf_counter())
            server.interrupt()

    return server.run(prompt, on_event=stop).events[-1].at - asked[0]


def table() -> None:
    """Print nodes, scale and crossings of every template; `geometry` says how they are computed."""
    sys.stdout.write(
        "| template | nodes | in subgraphs | scale at 1600 x 1000 | links across nodes |\n|---|---|---|---|---|\n"
    )
    for path in workflows():
        workflow = json.loads(path.read_text(encoding="utf-8"))
        inner = sum(len(one["nodes"]) for one in workflow.get("definitions", {}).get("subgraphs", []))
        scale, crossings = geometry.scale(list(geometry.boxes(workflow).values())), geometry.crossings(workflow)
        sys.stdout.write(f"| {path.stem} | {len(workflow['nodes'])} | {inner} | {scale:.2f} | {len(crossings)} |\n")


def main() -> None:
    table()
    if "COMFYUI_PATH" not in os.environ:
        return
    from server import serve

    with tempfile.TemporaryDirectory() as base, serve(comfy_path(), comfy_python(), pack_path(), Path(base)) as server:
        workflow = json.loads((pack_path() / "workflows" / f"{MAIN}.json").read_text(encoding="utf-8"))
        prompt = to_api(workflow, server.object_info())
        run = server.run(prompt)
        told = f"{len(run.progress)} progress events, {len(run.previews)} previews"
        sys.stdout.write(f"{MAIN}: {run.status} in {run.seconds:.1f} s, {told}\n")
        again = server.run(prompt)
        sys.stdout.write(f"the same again: {len(again.cached)} of {len(prompt)} nodes cached\n")
        other = server.run(changed(prompt, SAMPLE, seed=5))
        names = ", ".join(prompt[node]["class_type"] for node in other.executed)
        sys.stdout.write(f"another seed of the latents: {other.seconds:.2f} s, runs {names}\n")
        waits = [latency(server, short(prompt, 230 + at), at) for at in (5, 12, 19, 26, 33)]
        sys.stdout.write(f"from Cancel to stopped: {', '.join(f'{wait:.3f}' for wait in waits)} s\n")


if __name__ == "__main__":
    main()
