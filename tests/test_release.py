"""The archive that the registry would take, and the files that describe a release."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nada_core
from benchmarks.archive import build, contents, unpack

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as comfy-cli builds it from the files of the repository, unpacked into an empty folder."""
    pytest.importorskip("comfy_cli.file_utils")
    if not (ROOT / ".git").exists():
        pytest.skip("the archive is built from a git checkout")
    place = tmp_path_factory.mktemp("archive")
    return unpack(build(place), place / "stylegan-nada")


def test_archive_holds_what_users_need_and_no_more(archive: Path) -> None:
    top = {path.name for path in archive.iterdir()}
    needed = {"__init__.py", "nodes", "nada_core", "locales", "web", "workflows"}
    needed |= {"subgraphs", "requirements.txt", "pyproject.toml"}
    assert top >= needed | {"LICENSE", "README.md", "SECURITY.md", "CHANGELOG.md"}
    assert not top & {"tests", "benchmarks", ".ci", ".github", "Makefile", "constraints.txt", "out", ".venv"}


def test_archive_holds_no_file_twice(archive: Path) -> None:
    files = [path for path in archive.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert len(set(digests)) == len(digests)


def test_contents_of_the_archive_add_up(archive: Path) -> None:
    rows = [line.strip("| ").split(" | ") for line in contents(archive.parent / "node.zip")][1:]
    count = {row[0]: int(row[1]) for row in rows}
    assert count.pop("all") == sum(count.values()) == sum(path.is_file() for path in archive.rglob("*"))
    assert {"nada_core", "nodes", "web", "files at the top"} <= set(count)


def test_archive_runs_without_the_repository(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c"]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nada_core import *\n"
        "generator = load_generator('portraits')\n"
        "result = adapt(generator, load_guide('portraits'), TextShift('photo', 'joker'), AdaptConfig(steps=1))\n"
        "save_image(render(result.generator, sample(generator, [0])), sys.argv[2])"
    )
    subprocess.run([*command, script, str(archive), str(tmp_path / "x.png")], cwd=tmp_path, check=True)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_versions_of_the_release_files_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert match is not None
    version = match[1]
    assert nada_core.__version__ == version
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
