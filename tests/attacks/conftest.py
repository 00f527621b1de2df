"""Fixtures: hostile files are opened in processes with limits of memory and time, which note what the files do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import Server, write_seeds

Refused = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real files of every reader."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs fork and /proc of Linux")
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.fixture(scope="session")
def server(seeds: Path) -> Iterator[Server]:
    server = Server(seeds)
    yield server
    server.close()


@pytest.fixture
def opened(server: Server) -> Callable[[Path, str], dict[str, Any]]:
    """Open one file with a reader, and return what happened."""
    return lambda path, reader: server.open(reader, [path])[0]


@pytest.fixture
def refused(server: Server, tmp_path: Path) -> Refused:
    """Open a file, and assert that it is refused with this error (by default any CheckpointError) and does no more."""

    def check(content: bytes | Path, error: str = "", reader: str = "generator") -> dict[str, Any]:
        path = content if isinstance(content, Path) else tmp_path / "hostile"
        if isinstance(content, bytes):
            path.write_bytes(content)
        result = server.open(reader, [path])[0]
        assert result["kind"] == "refused" and result["type"].endswith(error or "CheckpointError"), result
        assert not (tmp_path / "canary").exists()
        return result

    return check
