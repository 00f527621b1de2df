"""Run the first template of a pack without git in a ComfyUI without other packs.

    COMFYUI_PATH=... python -m benchmarks.archive

runs this file with the published archive.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

from environment import PREFIX, comfy_path, comfy_python, pack_path, workflows
from graph import to_api
from server import lines_about, serve


def main() -> None:
    comfy = comfy_path()
    version = re.search(r'"(.+)"', (comfy / "comfyui_version.py").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name, serve(comfy, comfy_python(), pack_path(), Path(name)) as server:
        info = server.object_info()
        run = server.run(to_api(json.loads(workflows()[0].read_text(encoding="utf-8")), info))
        images = sum(len(output.get("images", ())) for output in run.outputs.values())
        nodes = sum(key.startswith(PREFIX) for key in info)
        complaints = lines_about(server.log)
    sys.stdout.write(
        "| ComfyUI | nodes | first template | previews | images | warnings and errors in the log |\n"
        "|---|---|---|---|---|---|\n"
        f"| {version[1] if version else comfy} | {nodes} | {run.status}, {run.seconds:.0f} s | {len(run.previews)} "
        f"| {images} | {len(complaints)} |\n"
    )
    if run.status != "success" or complaints:
        raise SystemExit("\n".join([str(run.error), *complaints]))


if __name__ == "__main__":
    main()
