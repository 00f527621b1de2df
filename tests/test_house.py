"""Rules of the code base: import levels, public names, heavy imports, dependencies, and what must not exist."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import nada_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "nada_core"

# The packages of nada_core. A package imports only from packages of lower levels.
LEVELS = {
    "runtime": 0,
    "io": 0,
    "models": 1,
    "guidance": 2,
    "latents": 3,
    "adaptation": 3,
    "portraits": 4,
    "__init__": 6,
    "cli": 7,
    "__main__": 8,
}

HEAVY = {"PIL", "lpips", "open_clip", "torchvision", "scipy", "matplotlib", "optuna"}
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}
FORBIDDEN_NAMES = {"utils", "helpers", "common"}
FORBIDDEN_COMMENTS = re.compile(r"fmt: (skip|off)|yapf: disable|\b(TODO|FIXME|XXX)\b")
MAX_FUNCTION_LINES = 60

# Calls that change the whole process, by the last part of their name, and the files that may make them: a command is a
# process of its own, and the others undo the change before they return.
PROCESS_WIDE = {
    "basicConfig",
    "filterwarnings",
    "mallopt",
    "putenv",
    "register_module_backward_hook",
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
    "register_module_full_backward_hook",
    "seed",
    "set_default_device",
    "set_default_dtype",
    "set_deterministic_debug_mode",
    "set_dir",
    "set_float32_matmul_precision",
    "set_num_interop_threads",
    "set_num_threads",
    "setlocale",
    "setrecursionlimit",
    "simplefilter",
    "torch.manual_seed",
    "use_deterministic_algorithms",
}
PROCESS_WIDE_ALLOWED = {
    "nada_core/__main__.py": {"os.environ.setdefault"},
    "nada_core/cli/main.py": {"set_num_threads"},
    "nada_core/models/lpips.py": {"simplefilter"},
    "nada_core/portraits/fitting/training.py": {"torch.manual_seed"},
    "nada_core/runtime/allocator.py": {"mallopt", "global _active"},
    "nada_core/runtime/threads.py": {"set_num_threads"},
    "nodes/_host.py": {"register_module_forward_pre_hook"},
}

# The public names of nada_core. Removing one breaks scripts, and a new one has to be supported.
PUBLIC = [
    "AdaptConfig",
    "Adaptation",
    "CheckpointError",
    "ClipGuide",
    "Directions",
    "Domain",
    "EmbeddingShift",
    "Encoder",
    "FaceFrame",
    "FacePoints",
    "FoundSettings",
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
    "PairShift",
    "PairsConfig",
    "PasteConfig",
    "Perceptual",
    "RECIPES",
    "RawCheckpoint",
    "Recipe",
    "SearchConfig",
    "Snapshot",
    "Step",
    "TERMS",
    "TextEditConfig",
    "TextShift",
    "TuneConfig",
    "Tuning",
    "Views",
    "adapt",
    "adapt_to_pairs",
    "align",
    "align_faces",
    "boundary",
    "build",
    "check_prompts",
    "compare_grid",
    "cut_face",
    "edit",
    "edit_by_text",
    "export_onnx",
    "export_rosinality",
    "filmstrip",
    "find_face",
    "find_settings",
    "find_snapshots",
    "grid",
    "guide_from_vision_tower",
    "inspect_layers",
    "interpolate",
    "invert",
    "judge_snapshots",
    "load_directions",
    "load_domain",
    "load_encoder",
    "load_frames",
    "load_generator",
    "load_guide",
    "load_identity",
    "load_image",
    "load_latents",
    "load_perceptual",
    "load_recipe",
    "mix",
    "paste_faces",
    "pick_snapshot",
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
    "save_frames",
    "save_generator",
    "save_image",
    "save_latents",
    "save_recipe",
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
    """Yield the import statements below a node; with top_only those that run when the module is imported."""
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
    """Return the first parts of the absolute modules that a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name.split(".")[0] for alias in statement.names]
    return [] if statement.level else [(statement.module or "").split(".")[0]]


def package(path: Path) -> str:
    first = path.relative_to(CORE).parts[0]
    return first.removesuffix(".py")


def packages_imported(path: Path) -> Iterator[str]:
    """Yield the packages of nada_core that one of its files imports; public names count as `__init__`."""
    folder = list(path.relative_to(CORE).parent.parts)
    for statement in imports(tree(path)):
        if not isinstance(statement, ast.ImportFrom) or not statement.level:
            continue
        target = folder[: len(folder) - (statement.level - 1)] + (statement.module or "").split(".")
        for alias in statement.names:
            yield (
                next((name for name in [*target, alias.name] if name), "")
                if target != [""]
                else (alias.name if alias.name in LEVELS else "__init__")
            )


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_packages_import_only_from_lower_levels(path: Path) -> None:
    own = package(path)
    assert own in LEVELS, f"{own} is a new package: add it to LEVELS"
    for other in packages_imported(path):
        assert other in LEVELS, f"{label(path)} imports the unknown package {other}"
        assert other == own or LEVELS[other] < LEVELS[own], f"{label(path)} (level {LEVELS[own]}) imports {other}"


def test_core_has_only_packages() -> None:
    assert {path.name for path in CORE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_core_is_self_contained_and_light(path: Path) -> None:
    for statement in imports(tree(path)):
        imported = set(modules(statement))
        assert not imported & HOST, f"{label(path)}:{statement.lineno} imports the host"
        assert "nada_core" not in imported, f"{label(path)}:{statement.lineno}: imports inside the core are relative"
    for statement in imports(tree(path), top_only=True):
        heavy = set(modules(statement)) & HEAVY
        assert not heavy, f"{label(path)}:{statement.lineno} imports {heavy} at import time"


@pytest.mark.parametrize("path", core_sources(), ids=label)
def test_core_files_have_a_docstring(path: Path) -> None:
    module = tree(path)
    assert not module.body or ast.get_docstring(module), f"{label(path)} has no docstring that names what it implements"


@pytest.mark.parametrize("path", node_sources(), ids=label)
def test_nodes_are_a_schema_plus_about_ten_lines(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{label(path)} has no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{label(path)} is too long: split it"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.name == "execute":
            lines = sum(len(ast.unparse(line).splitlines()) for line in node.body)  # independent of the layout
            assert lines <= 12, (
                f"{label(path)}:{node.lineno}: {lines} lines, expected at most 12: move work to the core"
            )


def test_host_is_imported_by_two_modules() -> None:
    for path in node_sources():
        if path.name not in ("_host.py", "_server.py"):
            for statement in imports(tree(path)):
                assert not set(modules(statement)) & HOST, f"{label(path)}:{statement.lineno} imports the host"


@pytest.mark.parametrize("path", sources(), ids=label)
def test_sources_have_no_forbidden_names_calls_or_comments(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES, f"{label(path)}: name the file after what it does"
    for node in ast.walk(tree(path)):
        where = f"{label(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "print", f"{where} prints"
            unsafe = [k for k in node.keywords if k.arg == "weights_only" and getattr(k.value, "value", 1) is False]
            assert not unsafe, f"{where} unpickles without an allow list"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"{where} changes sys.path"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            assert not silent, f"{where} swallows an exception"
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                assert not FORBIDDEN_COMMENTS.search(token.string), f"{label(path)}:{token.start[0]}: {token.string}"


def process_wide_changes(node: ast.AST) -> Iterator[str]:
    """Yield the names of process-wide settings that a single syntax node changes."""
    if isinstance(node, ast.Global):
        yield from (f"global {name}" for name in node.names)
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        yield from {name, name.rpartition(".")[2]} & PROCESS_WIDE
        if name in ("os.environ.update", "os.environ.setdefault"):
            yield name
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
        targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else node.targets
        yield from (
            name
            for name in map(ast.unparse, targets)
            if re.match(r"(torch\.backends\.|os\.environ\b|sys\.(modules|argv|std\w+)\b)", name)
        )


@pytest.mark.parametrize("path", sources(), ids=label)
def test_functions_have_at_most_60_lines(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{label(path)}:{node.lineno} {node.name}: {lines} lines"


@pytest.mark.parametrize("path", [*core_sources(), *node_sources()], ids=label)
def test_sources_make_no_process_wide_changes(path: Path) -> None:
    changes = {name for node in ast.walk(tree(path)) for name in process_wide_changes(node)}
    assert changes <= PROCESS_WIDE_ALLOWED.get(label(path), set())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("torch.manual_seed(0)", {"torch.manual_seed"}),
        ("rng.manual_seed(0)", set()),
        ("np.random.seed(0)", {"seed"}),
        ("torch.backends.cudnn.benchmark = True", {"torch.backends.cudnn.benchmark"}),
        ("os.environ['A'] = '1'", {"os.environ['A']"}),
        ("a = os.environ['A']", set()),
        ("def f():\n    global cache", {"global cache"}),
    ],
)
def test_process_wide_changes_are_recognized(code: str, expected: set[str]) -> None:
    assert {name for node in ast.walk(ast.parse(code)) for name in process_wide_changes(node)} == expected


def requirement_lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def project(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def test_dependencies_are_equal_in_both_files() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none
    needed = requirement_lines("requirements.txt")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert needed == declared
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in needed), "lower bounds only"
    assert not {"torch", "torchvision", "torchaudio"} & {project(line) for line in needed}, "ComfyUI provides torch"


def test_development_set_is_pinned() -> None:
    pinned = requirement_lines("constraints.txt")
    assert all("==" in line for line in pinned)
    needed = {project(line) for line in requirement_lines("requirements.txt")}
    assert needed | {"torch", "torchvision", "pytest", "ruff", "mypy"} <= {project(line) for line in pinned}


def test_pack_passes_the_validation_of_the_registry(tmp_path: Path) -> None:
    """`comfy node validate` exits with 0 in any case, so its output is compared."""
    tomllib = pytest.importorskip("tomllib")
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and re.fullmatch(r">=[\d.]+", comfy["requires-comfyui"])
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "DO_NOT_TRACK": "1",
        "PYTHONUTF8": "1",
    }
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert result.returncode == 0, lines
    assert lines[:2] == ["Validating node configuration...", "Running security checks..."], lines
    assert lines[2:] == ["\u2713 All validation checks passed successfully"], lines


def test_import_loads_nothing_heavy() -> None:
    """`python -m benchmarks.import_time` measures the time."""
    program = "import json, sys; from nada_core import adapt; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert {"torch", "nada_core"} <= loaded
    assert not (HEAVY | {"tyro"}) & loaded


def test_pytorch_is_imported_with_the_first_public_name() -> None:
    """So that `python -m nada_core` can set OMP_WAIT_POLICY before, which OpenMP reads when PyTorch loads it."""
    program = "import sys, nada_core; sys.stdout.write(nada_core.__version__ + str('torch' in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{nada_core.__version__}False"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nada_core.no_such_name


def test_public_names_are_frozen() -> None:
    assert nada_core.__all__ == PUBLIC == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(nada_core, name).__doc__, f"{name} is public and has no docstring"


def test_version_is_that_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert nada_core.__version__ == version
