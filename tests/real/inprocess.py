"""The pack inside a real ComfyUI without a server: loaded, validated and executed in a process of its own, in seconds.

    told = run_inside(comfy, python, pack, base, prompt)
    told["loaded"], told["valid"], told["outputs"], told["error"]

This file is also the program of that process, which knows ComfyUI's modules and nothing of the tests. It runs as
`python -c`, so that modules are looked for in ComfyUI's folder, where it starts, and not beside this file, whose
neighbours have names that ComfyUI uses too. There is no progress bar and no interrupt in it; those need the server.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def run_inside(
    comfy: Path, python: str, pack: Path, base: Path, prompt: dict[str, Any] | None = None, timeout: float = 600
) -> dict[str, Any]:
    """Load the pack and execute an API prompt, if there is one.

    loaded (ids of the pack's nodes), imported (packages that loading the pack added), info (as /object_info, of all
    nodes); with a prompt also valid, refused, node_errors, success, seconds, outputs (by node), error; and the process'
    log.
    Raises RuntimeError when the process fails.
    """
    from environment import make_base, process_environment

    place = make_base(base, comfy, pack)
    order = {"base": str(base), "place": str(place), "prompt": prompt}
    done = subprocess.run(
        [python, "-c", Path(__file__).read_text(encoding="utf-8")],
        input=json.dumps(order),
        cwd=comfy,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
        env=process_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"the process inside ComfyUI failed:\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr + done.stdout}


# ---- what runs inside -----------------------------------------------------------------------------------------------


def _inside(order: dict[str, Any]) -> dict[str, Any]:
    import comfy.options  # noqa: F401 - leaves the command line alone
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, order["base"]  # both are read when the modules below are imported
    import execution
    import folder_paths

    import nodes

    folder_paths.set_user_directory(str(Path(order["base"], "user")))
    # Of the host's nodes outside of nodes.py the templates use these; loading all of them takes long.
    for name in ("nodes_preview_any.py", "nodes_video.py"):
        extra = Path(nodes.__file__).parent / "comfy_extras" / name
        asyncio.run(nodes.load_custom_node(str(extra), module_parent="comfy_extras"))
    before, modules = set(nodes.NODE_CLASS_MAPPINGS), _packages()
    fine = asyncio.run(nodes.load_custom_node(order["place"], module_parent="custom_nodes"))
    told: dict[str, Any] = {"imported": sorted(_packages() - modules), "fine": fine}
    told["loaded"] = sorted(set(nodes.NODE_CLASS_MAPPINGS) - before)
    told["info"] = {name: _info(name, kind) for name, kind in nodes.NODE_CLASS_MAPPINGS.items()}
    if order["prompt"] is not None:
        told |= _execute(execution, order["prompt"])
    return told


def _packages() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


def _info(name: str, kind: Any) -> dict[str, Any]:
    """The part of /object_info that says how nodes fit together."""
    if hasattr(kind, "GET_NODE_INFO_V1"):
        return kind.GET_NODE_INFO_V1()
    return {"input": kind.INPUT_TYPES(), "output": list(kind.RETURN_TYPES), "name": name}


def _execute(execution: Any, prompt: dict[str, Any]) -> dict[str, Any]:
    checked = asyncio.run(execution.validate_prompt("a", prompt, None))
    told = {"valid": checked[0], "refused": checked[1], "node_errors": checked[3]}
    if not checked[0]:
        return told
    server = SimpleNamespace(
        client_id=None, last_node_id=None, last_prompt_id=None, sockets_metadata={}, send_sync=lambda *_: None
    )
    own: dict[str, Any] = {"cache_type": execution.CacheType.CLASSIC}
    if "cache_args" in inspect.signature(execution.PromptExecutor).parameters:
        own["cache_args"] = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(server, **own)
    start = time.perf_counter()
    executor.execute(prompt, "a", {"client_id": "tests"}, checked[2])
    errors = [data for kind, data in executor.status_messages if kind == "execution_error"]
    return {
        **told,
        "success": executor.success,
        "seconds": time.perf_counter() - start,
        "outputs": executor.history_result["outputs"],
        "error": errors[0] if errors else None,
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_inside(json.load(sys.stdin)), default=str) + "\n")
