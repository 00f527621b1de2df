"""ComfyUI's server and page: the progress bar of the running node, texts on it, and routes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..nada_core.io.images import to_pil

#: ComfyUI loads its server before the packs. Without one, as in scripts that only execute prompts, there is no page.
_SERVER = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def watch(total: int) -> Callable[..., None]:
    """Return `tick(done, picture)`, which updates the progress bar of the running node and checks for cancellation.

    `picture` is a callable that returns the preview, [1, 3, H, W] in -1..1. It is called at most twice a second, and
    less often if it is slow, so that previews take at most about 10 % of the time.
    """
    bar = comfy.utils.ProgressBar(total)
    due = -math.inf

    def tick(done: int, picture: Callable[[], Tensor] | None = None) -> None:
        nonlocal due
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        start = time.perf_counter()
        if picture is not None and (start >= due or done == total):
            preview = ("JPEG", to_pil(picture()), 512)
            now = time.perf_counter()
            due = now + max(0.5, 10 * (now - start))
        bar.update_absolute(done, total, preview)

    return tick


def running_node() -> str | None:
    """Return the id of the node that this thread runs, with those of its subgraphs, such as "7:3"."""
    context = get_executing_context()
    return None if context is None else context.node_id


def send_text(text: str) -> None:
    """Show a text on the running node."""
    node = running_node()
    if node is not None and _SERVER is not None:
        _SERVER.send_progress_text(text, node)


def post_route(path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Add a POST route to ComfyUI's server that takes and returns a JSON object."""

    async def handler(request: Any) -> Any:
        from aiohttp import web

        try:
            data = await request.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            return web.json_response({"error": "expected a JSON object"}, status=400)
        return web.json_response(answer(data))

    if _SERVER is not None:
        _SERVER.routes.post(path)(handler)
