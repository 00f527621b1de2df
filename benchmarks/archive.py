"""Print what the published archive holds, and run the first template from it in a ComfyUI without other packs.

    python -m benchmarks.archive                      size and contents
    COMFYUI_PATH=... COMFYUI_PYTHON=... python -m benchmarks.archive

The archive is built by comfy-cli from the files that git tracks, as for the registry. It is unpacked into custom_nodes,
without git. The second form needs what tests/real needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(place: Path) -> Path:
    """Write node.zip of the repository to a folder and return its path."""
    from comfy_cli.file_utils import zip_files

    previous = Path.cwd()
    os.chdir(ROOT)  # zip_files reads the current folder
    try:
        zip_files(str(place / "node.zip"))
    finally:
        os.chdir(previous)
    return place / "node.zip"


def unpack(archive: Path, place: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(place)
    return place


def contents(archive: Path) -> Iterator[str]:
    """One table row for each folder, and one for all files outside of folders."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    with zipfile.ZipFile(archive) as content:
        for info in content.infolist():
            folder, slash, _ = info.filename.partition("/")
            for name in (folder if slash else "files at the top", "all"):
                for index, number in enumerate((1, info.file_size, info.compress_size)):
                    totals[name][index] += number
    yield "| folder | files | MiB unpacked | MiB in the archive |\n|---|---|---|---|"
    for name, (count, size, packed) in sorted(totals.items(), key=lambda item: -item[1][2]):
        yield f"| {name} | {count} | {size / 2**20:.2f} | {packed / 2**20:.2f} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        archive = build(Path(name))
        for line in contents(archive):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if "COMFYUI_PATH" in os.environ:
            pack = unpack(archive, Path(name) / "pack")
            environment = {**os.environ, "NADA_PACK": str(pack), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, str(ROOT / "tests" / "real" / "archive.py")]
            subprocess.run(command, cwd=name, env=environment, check=True)


if __name__ == "__main__":
    main()
