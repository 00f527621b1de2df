"""The ComfyUI, interpreter, pack and base directory of the tests in this folder.

COMFYUI_PATH     a ComfyUI tree; without it every test here is skipped
COMFYUI_PYTHON   the interpreter that can run it, by default the one that runs pytest
NADA_PACK        the pack under test, by default this repository
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: The folder's name when the registry installs the pack.
PACK = "stylegan-nada"

#: The ids of this pack's nodes begin with it.
PREFIX = "StyleGANNADA_"


def require(*modules: str) -> None:
    """Skip the calling test file unless ComfyUI and these modules are available."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set; set it to a ComfyUI checkout", allow_module_level=True)
    for name in modules:
        pytest.importorskip(name, reason=f"the Python package {name} is not installed")


def comfy_path() -> Path:
    """Return the ComfyUI tree under test. Raises FileNotFoundError."""
    path = Path(os.environ["COMFYUI_PATH"]).resolve()
    if not (path / "main.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH={path} holds no main.py: name the folder of a ComfyUI checkout")
    return path


def comfy_python() -> str:
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


def pack_path() -> Path:
    return Path(os.environ.get("NADA_PACK", Path(__file__).parents[2])).resolve()


def process_environment() -> dict[str, str]:
    """The environment of ComfyUI processes: unbuffered output, no downloads, one thread unless OMP_NUM_THREADS is set.

    On a busy machine a second thread slows small networks down, from 80 ms to 7 s.
    """
    fixed = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return {"OMP_NUM_THREADS": "1", **os.environ, **fixed}


#: Templates that need a model of the user: they are built but not run, and show the picture of another.
UNRUN = {"14 Learn from a diffusion model": "13 Learn from pairs"}


def workflows(run: bool = False) -> list[Path]:
    """The workflow files of the pack, by their number. run: without those that need a model of the user."""
    found = (path for path in (pack_path() / "workflows").glob("*.json") if not (run and path.stem in UNRUN))
    return sorted(found, key=lambda path: (int(path.stem.split()[0]), path.stem))


def files_of(pack: Path) -> list[Path]:
    """The relative paths of all files that git does not ignore."""
    if not (pack / ".git").exists():
        return [path.relative_to(pack) for path in pack.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=pack, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (pack / name).is_file()]


def make_base(base: Path, comfy: Path, pack: Path) -> Path:
    """A base directory with the folders ComfyUI expects, its own example pictures and a copy of the pack; its place.

    A copy, because a link would hide files that git ignores but the pack needs.
    """
    for name in ("custom_nodes", "models", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(comfy / "input", base / "input", dirs_exist_ok=True)
    place = base / "custom_nodes" / PACK
    for name in files_of(pack):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(pack / name, place / name)
    return place
