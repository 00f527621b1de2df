"""Descriptions of files of ours, and atomic writing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nada_core.io import metadata
from nada_core.io.errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError
from nada_core.io.metadata import (
    create_atomically,
    read_description,
    read_metadata,
    read_object,
    write_safetensors,
    write_torch,
)

ROOT = Path(__file__).parents[1]
TENSORS = {"a": torch.zeros(2)}


def test_description_round_trip(tmp_path: Path) -> None:
    """Strings are stored as they are, other values as JSON."""
    path = tmp_path / "x.safetensors"
    written = {"kind": "nada_test", "version": 2, "names": ("a", "b"), "provenance": {"seed": 3}}
    write_safetensors(path, TENSORS, written)
    hints = read_metadata(path)
    assert hints == {"kind": "nada_test", "version": "2", "names": '["a", "b"]', "provenance": '{"seed": 3}'}
    assert read_description(path, hints, 2, "names") == hints | {"version": 2, "names": ["a", "b"]}
    assert read_object(path, hints, "provenance") == {"seed": 3} and read_object(path, hints, "shapes") == {}


@pytest.mark.parametrize(
    ("hints", "error", "value"),
    [
        ({"version": "3", "names": "[]"}, UnsupportedCheckpointError, "x: got format version 3"),
        ({"version": '"new"', "names": "[]"}, UnsupportedCheckpointError, "version new"),
        ({"version": "{", "names": "[]"}, DamagedCheckpointError, "JSONDecodeError"),
        ({"version": "1", "names": "["}, DamagedCheckpointError, "JSONDecodeError"),
        ({"version": 1, "names": "[]"}, DamagedCheckpointError, "TypeError"),
        ({"version": "1"}, DamagedCheckpointError, "'names'"),
        ({}, DamagedCheckpointError, "'version'"),
    ],
)
def test_unreadable_descriptions_are_refused(
    hints: Mapping[str, Any], error: type[CheckpointError], value: str
) -> None:
    with pytest.raises(error, match=value):
        read_description("x", hints, 2, "names")


@pytest.mark.parametrize("value", ["[1]", "{", "5", 5])
def test_objects_that_are_no_json_objects_are_refused(value: object) -> None:
    with pytest.raises(DamagedCheckpointError, match="x: its provenance"):
        read_object("x", {"provenance": value}, "provenance")


def test_metadata_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not safetensors")
    with pytest.raises(DamagedCheckpointError, match=re.escape(str(tmp_path / "x"))):
        read_metadata(tmp_path / "x")
    with pytest.raises(CheckpointError, match="none: there is no such file"):
        read_metadata(tmp_path / "none")


def test_failed_writes_leave_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(metadata.os, "fsync", fail)  # the temporary file is complete by then
    for write in (lambda: write_safetensors(path, {"a": torch.ones(2)}, {}), lambda: write_torch(path, {"a": 1})):
        with pytest.raises(OSError, match="disk full"):
            write()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_writing_creates_the_folder_and_honors_the_umask(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "new" / "x.safetensors", {"a": torch.zeros(2, 3).t()}, {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "new" / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


SAVER = """
import sys, time
from itertools import count
from pathlib import Path
import torch
from nada_core.io.metadata import create_atomically, write_safetensors
folder, own = Path(sys.argv[1]), sys.argv[2]
(folder / own).touch()
while len(list(folder.iterdir())) < 2:  # both start together
    time.sleep(0.001)
for index in range(60):
    paths = (folder / "files" / f"x_{number:05}_.safetensors" for number in count(1))
    content = {"a": torch.full((1000,), float(index))}
    path = create_atomically(paths, lambda path: write_safetensors(path, content, {"by": own, "index": str(index)}))
    print(path.name, own, index)
"""


def test_two_processes_that_number_files_at_once_lose_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    processes = [subprocess.Popen([*command, own], cwd=ROOT, stdout=subprocess.PIPE, text=True) for own in "ab"]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    files = {path.name: read_metadata(path) for path in (tmp_path / "files").iterdir()}
    assert sorted(files) == [f"x_{number:05}_.safetensors" for number in range(1, 121)]
    lines = [line.split() for answer in answers for line in answer.splitlines()]
    assert {name: {"by": own, "index": index} for name, own, index in lines} == files and len(lines) == 120


@pytest.mark.parametrize("fault", ["write", "replace"])
def test_failed_write_of_a_new_file_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    paths = [tmp_path / name for name in "abc"]
    paths[0].write_text("other")

    def write(path: Path) -> None:
        path.write_text("half")
        if fault == "write":
            raise OSError(28, "No space left on device", str(path))

    def replace(temporary: Path, path: Path) -> None:
        raise OSError(28, "No space left on device", str(temporary))

    monkeypatch.setattr(metadata.os, "replace", replace)
    with pytest.raises(OSError, match="No space left") as caught:
        create_atomically(paths, write)
    assert caught.value.filename == str(paths[0])
    assert list(tmp_path.iterdir()) == paths[:1] and paths[0].read_text() == "other"
