"""The architecture, enforced: floors, doors, heavy imports, dependencies."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nada_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "nada_core"

# The packages of nada_core from the ground up. A package imports only from those on lower floors.
FLOORS = {
    "runtime": 0,
    "io": 0,
    "models": 1,
    "guidance": 2,
    "latents": 3,
    "adaptation": 3,
    "portraits": 4,
    "__init__": 4,
    "cli": 5,
    "__main__": 6,
}

HEAVY = {"PIL", "lpips", "open_clip", "torchvision", "scipy", "matplotlib"}
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py"}

# The public names of nada_core, word for word. Removing one breaks somebody's script; adding one is a promise.
PUBLIC = [
    "AdaptConfig",
    "Adaptation",
    "CheckpointError",
    "ClipGuide",
    "Directions",
    "Domain",
    "Encoder",
    "FacePoints",
    "Generator",
    "GuideError",
    "Identity",
    "ImageShift",
    "Inversion",
    "InvertConfig",
    "Latents",
    "Layer",
    "LayerChoice",
    "MixedShift",
    "NoFaceError",
    "Perceptual",
    "RECIPES",
    "RawCheckpoint",
    "Step",
    "TERMS",
    "TextEditConfig",
    "TextShift",
    "TuneConfig",
    "Tuning",
    "Views",
    "adapt",
    "align",
    "boundary",
    "build",
    "check_prompts",
    "compare_grid",
    "cut_face",
    "edit",
    "edit_by_text",
    "export_rosinality",
    "find_face",
    "grid",
    "inspect_layers",
    "interpolate",
    "invert",
    "load_directions",
    "load_domain",
    "load_encoder",
    "load_generator",
    "load_guide",
    "load_identity",
    "load_image",
    "load_latents",
    "load_perceptual",
    "mix",
    "plot_bars",
    "plot_heat",
    "plot_lines",
    "principal",
    "read_domain",
    "read_provenance",
    "render",
    "sample",
    "save_directions",
    "save_domain",
    "save_generator",
    "save_image",
    "save_latents",
    "sefa",
    "tune",
]


def sources() -> list[Path]:
    """Every Python file of the pack."""
    folders = ("nada_core", "nodes", "tests", "benchmarks")
    return [ROOT / "__init__.py", *(p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")))]


def core_sources() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def node_sources() -> list[Path]:
    return sorted((ROOT / "nodes").rglob("*.py"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(node: ast.AST, top_only: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements below a node; with top_only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif top_only and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        else:
            yield from imports(child, top_only)


def modules(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """First parts of the absolute modules a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name.split(".")[0] for alias in statement.names]
    return [] if statement.level else [(statement.module or "").split(".")[0]]


def room(path: Path) -> str:
    first = path.relative_to(CORE).parts[0]
    return first.removesuffix(".py")


def packages_imported(path: Path) -> Iterator[str]:
    """The packages of nada_core that a file of nada_core imports; the public names count as `__init__`."""
    package = list(path.relative_to(CORE).parent.parts)
    for statement in imports(tree(path)):
        if not isinstance(statement, ast.ImportFrom) or not statement.level:
            continue
        target = package[: len(package) - (statement.level - 1)] + (statement.module or "").split(".")
        for alias in statement.names:
            yield (
                next((name for name in [*target, alias.name] if name), "")
                if target != [""]
                else (alias.name if alias.name in FLOORS else "__init__")
            )


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_packages_import_only_from_lower_floors(path: Path) -> None:
    own = room(path)
    assert own in FLOORS, f"{own} is a new package: give it a floor in this test"
    for other in packages_imported(path):
        assert other in FLOORS, f"{label(path)} imports the unknown package {other}"
        assert other == own or FLOORS[other] < FLOORS[own], f"{label(path)} (floor {FLOORS[own]}) imports {other}"


def test_modules_directly_in_the_core() -> None:
    assert {path.name for path in CORE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_core_is_self_contained_and_light(path: Path) -> None:
    for statement in imports(tree(path)):
        found = set(modules(statement))
        assert not found & HOST, f"{label(path)}:{statement.lineno} imports the host"
        assert "nada_core" not in found, f"{label(path)}:{statement.lineno}: imports inside the core are relative"
    for statement in imports(tree(path), top_only=True):
        found = set(modules(statement)) & HEAVY
        assert not found, f"{label(path)}:{statement.lineno} imports {found} before anybody needs it"


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_core_files_say_what_they_implement(path: Path) -> None:
    module = tree(path)
    assert not module.body or ast.get_docstring(module), f"{label(path)} does not open by naming what it implements"


@pytest.mark.parametrize("path", node_sources(), ids=label)
def test_a_node_is_a_schema_plus_about_ten_lines(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{label(path)} does not open by saying what it holds"
    most = 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most, f"{label(path)} is two files"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == "execute":
            lines = sum(len(ast.unparse(line).splitlines()) for line in node.body)  # however it is laid out
            assert lines <= 12, f"{label(path)}:{node.lineno}: {lines} lines do work that belongs into the core"


def test_only_the_host_room_knows_the_host() -> None:
    for path in node_sources():
        if path.name != "_host.py":
            for statement in imports(tree(path)):
                assert not set(modules(statement)) & HOST, f"{label(path)}:{statement.lineno} imports the host"


@pytest.mark.parametrize("path", sources(), ids=label)
def test_what_should_not_exist(path: Path) -> None:
    assert path.name not in FORBIDDEN_NAMES, f"{label(path)}: name the file after what it does"
    for node in ast.walk(tree(path)):
        where = f"{label(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "print", f"{where} prints"
            unsafe = [k for k in node.keywords if k.arg == "weights_only" and getattr(k.value, "value", 1) is False]
            assert not unsafe, f"{where} unpickles whatever the file says"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"{where} touches sys.path"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            assert not silent, f"{where} swallows an exception"


def requirement_lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def project(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def test_dependencies_are_said_once() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none
    needed = requirement_lines("requirements.txt")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert needed == declared
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in needed), "lower bounds only"
    assert not {"torch", "torchvision", "torchaudio"} & {project(line) for line in needed}, "the host brings torch"


def test_development_set_is_pinned() -> None:
    pinned = requirement_lines("constraints.txt")
    assert all("==" in line for line in pinned)
    wanted = {project(line) for line in requirement_lines("requirements.txt")}
    assert wanted | {"torch", "torchvision", "pytest", "ruff", "mypy"} <= {project(line) for line in pinned}


def test_the_registry_would_take_the_pack(tmp_path: Path) -> None:
    """`comfy node validate` ends well whatever it finds, so that what it says is what counts."""
    tomllib = pytest.importorskip("tomllib")
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert told["PublisherId"] and told["DisplayName"] and re.fullmatch(r">=[\d.]+", told["requires-comfyui"])
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "PYTHONUTF8": "1",
    }
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    said = [line.strip() for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    assert answer.returncode == 0, said
    assert said[:2] == ["Validating node configuration...", "Running security checks..."], said
    assert said[2:] == ["\u2713 All validation checks passed successfully"], said


def test_import_loads_nothing_heavy() -> None:
    """What `python -m benchmarks.import_time` prints stays short because none of these is loaded."""
    program = "import json, sys; import nada_core; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(answer.stdout)}
    assert {"torch", "nada_core"} <= loaded
    assert not (HEAVY | {"tyro"}) & loaded


def test_the_door_is_frozen() -> None:
    assert nada_core.__all__ == PUBLIC == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(nada_core, name).__doc__, f"{name} is public and says nothing about itself"


def test_the_version_is_the_projects() -> None:
    tomllib = pytest.importorskip("tomllib")
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert nada_core.__version__ == told
