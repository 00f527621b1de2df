"""The measuring parts of `benchmarks.endurance`."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from tiny import generator

from benchmarks.endurance import digest, resident_memory, slope, torn_files
from nada_core import save_generator


def test_torn_files_are_found(tmp_path: Path) -> None:
    save_generator(generator(), tmp_path / "whole.safetensors", {})
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(content[: len(content) // 2])
    (torn,) = torn_files(tmp_path)
    assert torn.startswith("torn.safetensors")


def test_digest_depends_on_the_tensors_only(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    other = generator()
    next(other.parameters()).data.add_(1)
    for path, network, note in zip(paths, (generator(), generator(), other), "aba", strict=True):
        save_generator(network, path, {"note": note})
    assert digest(paths[0]) == digest(paths[1]) != digest(paths[2])


def test_slope_is_that_of_a_line() -> None:
    assert slope([5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_grows_with_an_allocation() -> None:
    before = resident_memory()
    with mmap.mmap(-1, 64 << 20) as block:  # unlike a bytearray, never memory that was freed before
        block.write(b"1" * len(block))
        assert resident_memory() - before > 32
