"""The workflows this pack ships, described; `main` builds them all into workflows/*.json.

COMFYUI_PATH=... python tests/real/workflows.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from author import Workflow, write
from environment import comfy_path, comfy_python, pack_path
from page import open_page
from server import serve

#: By the file's name, which ComfyUI's list of templates shows as title.
WORKFLOWS: dict[str, Workflow] = {}


def main() -> None:
    """Build every workflow in a page of a ComfyUI that has the pack."""
    folder = pack_path() / "workflows"
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        serve(comfy_path(), comfy_python(), pack_path(), Path(base)) as server,
        open_page(server) as page,
    ):
        for name, description in WORKFLOWS.items():
            write(page, description, folder / f"{name}.json")
            sys.stdout.write(f"{folder / name}.json\n")


if __name__ == "__main__":
    main()
