"""The fuzz runner at toy size, and the faults that it must notice."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import fuzz
from benchmarks.fuzz import READERS, Server, mutate, mutate_pickle, write_seeds

if not sys.platform.startswith("linux"):
    pytest.skip("needs fork and /proc of Linux", allow_module_level=True)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.fixture(scope="module")
def server(seeds: Path) -> Any:
    server = Server(seeds)
    yield server
    server.close()


@pytest.mark.parametrize("reader", READERS)
def test_short_run_of_every_reader_finds_nothing(tmp_path: Path, server: Server, seeds: Path, reader: str) -> None:
    report = fuzz.fuzz(server, reader, seeds, 0.2, seed=3, out=tmp_path)
    assert report["kinds"].total() >= 1 and set(report["kinds"]) <= {"read", "refused"}, report
    assert report["memory"] < 256 << 20 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reader", "kind", "detail"),
    [
        ("crash", "crash", "signal 11"),
        ("hang", "hang", "isolation.py"),
        ("bug", "bug", "KeyError: 'absent'"),
        ("memory", "memory", " MiB for 10 bytes"),
        ("execution", "execution", "os.system"),
    ],
)
def test_planted_faults_are_found_and_kept(
    tmp_path: Path, server: Server, seeds: Path, reader: str, kind: str, detail: str
) -> None:
    """Every file fails; the runner goes on with the next one, and keeps one input for each kind of failure."""
    folder = tmp_path / "seeds" / reader
    folder.mkdir(parents=True)
    files = [folder / name for name in ("a.bin", "b.bin")]
    for file in files:
        file.write_bytes(b"0123456789")
    for result in server.open(reader, files):
        assert result["kind"] == kind and detail in result["detail"], result
        fuzz.keep(files[0], result, tmp_path / "out")
    assert (tmp_path / "out").exists() and len(list((tmp_path / "out").glob("*.txt"))) >= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_small_files_of_large_images_take_up_to_40_bytes_per_pixel(tmp_path: Path, server: Server, mode: str) -> None:
    size, path = (4000, 3000), tmp_path / f"{mode[0]}.png"
    Image.new(mode, size).save(path, transparency=0 if mode == "P" else None)
    (result,) = server.open("image", [path])
    assert result["kind"] == "read" and result["memory"] < 40 * size[0] * size[1] + (64 << 20), result


def test_mutations_are_reproducible_and_different(seeds: Path) -> None:
    for path in sorted(path for path in seeds.rglob("*") if path.is_file()):
        content = path.read_bytes()
        first, again = ([mutate(content, rng) for _ in range(5)] for rng in (random.Random(1), random.Random(1)))
        assert first == again and any(changed != content for changed in first), path


def test_repeating_an_instruction_with_all_weights_stays_small() -> None:
    content = pickle.dumps([bytes(4 << 20), "x"], protocol=3)
    assert max(len(mutate_pickle(content, random.Random(seed))) for seed in range(400)) < 64 << 20
    small = pickle.dumps({"name": [1, b"two"]}, protocol=2)
    for seed in range(14_380, 14_390):  # one of them repeats an instruction that has become empty
        mutate_pickle(small, random.Random(seed))
