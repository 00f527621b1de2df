"""Long and foreign names, folders that are read-only, full disks and processes that write at once, for every writer."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from host.double import install, load_pack
from pack_world import QUICK, World
from test_resume import SHIFT, settings
from tiny import changed, generator, guide

from nada_core import (
    Directions,
    Domain,
    FaceFrame,
    Latents,
    adapt,
    export_rosinality,
    load_directions,
    load_frames,
    load_generator,
    load_image,
    load_latents,
    read_domain,
    read_provenance,
    save_directions,
    save_domain,
    save_frames,
    save_generator,
    save_image,
    save_latents,
)
from nada_core.adaptation.adapt import Step
from nada_core.adaptation.recipes import Recipe, load_recipe, save_recipe
from nada_core.adaptation.snapshots import find_snapshots
from nada_core.cli import training_commands
from nada_core.cli.main import main
from nada_core.io import checkpoint_file
from nada_core.io.checkpoint_file import read_checkpoint, sha256
from nada_core.io.errors import CheckpointError
from nada_core.io.metadata import write_safetensors

ROOT = Path(__file__).parents[1]
on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows limits paths, and replaces no file that is open")
names = pytest.mark.parametrize(
    "name",
    [" a name  with spaces", "лицо 顔 é 😀", pytest.param("x" * 200, marks=on_posix)],
    ids=["spaces", "letters", "200 characters"],
)
LIMIT = 64 << 10  # bytes; every large file of WRITERS is larger, and no small one


def latents(count: int) -> Latents:
    return Latents(torch.randn(count, 6, 5))


def directions(count: int) -> Directions:
    return Directions(torch.randn(count, 1, 5), torch.ones(count), tuple(map(str, range(count))))


def frames(count: int) -> list[FaceFrame]:
    return [FaceFrame((9.0, 9.0), (9.0, 0.0), 16, 20, 20)] * count


def domain(width: int) -> Domain:
    source, other = generator(widths=[width, 7, 4]), generator(widths=[width, 7, 4])
    with torch.no_grad():
        other.get_parameter("synthesis.b8.conv0.weight").add_(1.0)
    return Domain.between(source, other)


def wide(is_large: bool) -> Any:
    return generator(widths=[300, 7, 4], z_dim=5) if is_large else generator(z_dim=5)


#: Writer -> ending, a function that writes a small or a large file, and a reader.
WRITERS: dict[str, tuple[str, Callable[[Path, bool], Any], Callable[[Path], Any]]] = {
    "generator": (".safetensors", lambda path, large: save_generator(wide(large), path, {}), load_generator),
    "rosinality": (".pt", lambda path, large: export_rosinality(wide(large), path), load_generator),
    "domain": (".safetensors", lambda path, large: save_domain(domain(300 if large else 8), path), read_domain),
    "latents": (
        ".safetensors",
        lambda path, large: save_latents(latents(900 if large else 1), path),
        lambda path: load_latents(path, None),
    ),
    "directions": (
        ".safetensors",
        lambda path, large: save_directions(directions(5000 if large else 1), path),
        lambda path: load_directions(path, None),
    ),
    "frames": (".json", lambda path, large: save_frames(frames(900 if large else 1), path), load_frames),
    "recipe": (
        ".json",
        lambda path, large: save_recipe(Recipe("a" * (90_000 if large else 1), "photo", (), ""), path),
        load_recipe,
    ),
    "image": (".png", lambda path, large: save_image(torch.rand(3, *[400 if large else 8] * 2), path), load_image),
}
writers = pytest.mark.parametrize("writer", WRITERS)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(*_: object) -> None:
    pytest.fail("the work has begun")


# ---- names --------------------------------------------------------------------------------------------------------


@names
@writers
def test_odd_names_are_written_and_read(tmp_path: Path, writer: str, name: str) -> None:
    ending, write, read = WRITERS[writer]
    path = tmp_path / name / f"{name}{ending}"
    write(path, False)
    assert read(path) is not None and list(everything(tmp_path)) == [path]


def test_longest_name_of_the_file_system_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'顔' * 81}.safetensors"  # 255 bytes; that of the temporary file is no longer
    save_generator(generator(), path, {})
    assert read_provenance(path) == {} and list(everything(tmp_path)) == [path]


@pytest.mark.parametrize("name", ["x" * 300, pytest.param("顔" * 100, marks=on_posix)], ids=["characters", "bytes"])
def test_longer_names_are_refused_before_the_first_step(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=name):
        adapt(generator(), guide(), SHIFT, settings(), autosave=tmp_path / f"{name}.safetensors", on_step=fail)
    assert not everything(tmp_path)


@names
def test_run_with_odd_names_is_resumed(tmp_path: Path, name: str) -> None:
    autosave, folder = tmp_path / name / f"{name}.safetensors", tmp_path / f"{name}-snapshots"
    files: dict[str, Any] = {"autosave": autosave, "snapshots": folder, "snapshot_every": 2}
    whole = adapt(generator(), guide(), SHIFT, settings(steps=6))
    steps: list[int] = []
    adapt(generator(), guide(), SHIFT, settings(steps=6), steps.append, stop=lambda: len(steps) == 3, **files)
    resumed = adapt(generator(), guide(), SHIFT, settings(steps=6), resume=True, **files)
    assert not changed(whole.generator.state_dict(), resumed.generator.state_dict())
    assert [one.step for one in find_snapshots(folder)] == [2, 4, 6]


@names
def test_commands_take_odd_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    source, out = tmp_path / name / f"{name}.safetensors", tmp_path / name / "out" / name
    save_generator(generator(z_dim=5), source, {})
    training = ("--guide", "portraits", "--target", "zombie", "--steps", "1", "--batch", "1", "--snapshot-every", "1")
    result, copy = out / "zombie.safetensors", out / f"{name}.pt"
    for words in (
        ("adapt", str(source), *training, "--out", str(out)),
        ("info", str(result)),
        ("sample", str(result), "--seeds", "0-1", "--separate", str(out / "images"), "--out", str(out / "grid.png")),
        ("convert", str(result), str(copy)),
    ):
        code = main(words)
        said = capsys.readouterr()
        assert code == 0 and name.strip() in said.out, said.err
    assert load_generator(result) and load_generator(copy) and load_latents(out / "images" / "latents.safetensors")


@on_posix
@names
def test_pack_and_its_files_in_odd_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    pack_folder = tmp_path / name / f"{name[:90]} pack"
    pack_folder.symlink_to(ROOT, target_is_directory=True)
    host = install(monkeypatch, tmp_path / name)
    with load_pack(pack_folder, host, str(pack_folder)) as pack:
        world = World(host, pack)
        world.reset()
        world.save(world.generator, "models", "stylegan_nada", name, f"{name}.safetensors")
        file = str(Path(name, f"{name}.safetensors"))
        prompt = world.prompt(
            load=("LoadGenerator", {"file": file}),
            guide=("LoadGuide", {}),
            shift=("ShiftFromText", {"wording": "bare"}),
            adapt=(
                "AdaptGenerator",
                {"generator": "load.0", "guide": "guide.0", "shift": "shift.0", **QUICK, "snapshot_every": 1},
            ),
            save=("SaveGenerator", {"generator": "adapt.0", "filename_prefix": name}),
            domain=("SaveDomain", {"domain": "adapt.1", "filename_prefix": f"{name}/{name}"}),
        )
        made = world.executor.run(prompt).check()["adapt"]
        assert len(made[4]) == 2
    saved = [path for path in everything(host.output / "stylegan_nada") if "runs" not in path.parts]
    assert len(saved) == 2 and all(read_checkpoint(path).tensors for path in saved)


# ---- read-only folders --------------------------------------------------------------------------------------------


def mounted(folder: Path, options: str) -> bool:
    """Mount a small file system of memory, where this is permitted."""
    if not sys.platform.startswith("linux"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    is_mounted = mounted(folder, "ro")  # permissions do not bind root
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere, and may not mount")
    yield folder
    if is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


@writers
def test_read_only_folder_is_named(read_only: Path, writer: str) -> None:
    ending, write, _ = WRITERS[writer]
    for path in (read_only / f"x{ending}", read_only / "new" / f"x{ending}"):
        with pytest.raises(OSError, match=path.parent.name):
            write(path, False)
    assert not list(read_only.iterdir())


@pytest.mark.parametrize("where", ["autosave", "snapshots"])
def test_read_only_folder_is_refused_before_the_first_step(read_only: Path, where: str) -> None:
    for folder in (read_only, read_only / "new"):
        files: dict[str, Any] = {"autosave": folder / "x.safetensors"}
        if where == "snapshots":
            files = {"snapshots": folder, "snapshot_every": 2}
        with pytest.raises(OSError, match=re.escape(str(folder))):
            adapt(generator(), guide(), SHIFT, settings(), on_step=fail, **files)


def test_read_only_folder_is_refused_before_the_command_works(
    tmp_path: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nada_core.adaptation.adapt.draw_batch", fail)
    monkeypatch.setattr("nada_core.cli.file_commands.render", fail)
    save_generator(generator(), tmp_path / "x.safetensors", {})
    training = ("adapt", "portraits", "--target", "zombie", "--out")
    for words in (
        (*training, str(read_only)),
        (*training, str(read_only / "new")),
        (*training, str(tmp_path / "y.safetensors"), "--autosave", str(read_only / "y.safetensors")),
        ("sample", str(tmp_path / "x.safetensors"), "--out", str(read_only / "grid.png")),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert str(read_only) in error and error.startswith("error: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path != read_only] == ["x.safetensors"]


def test_files_of_a_read_only_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    is_mounted = mounted(folder, "size=8m")
    try:
        for writer, (ending, write, _) in WRITERS.items():
            write(folder / f"{writer}{ending}", False)
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        folder.chmod(0o555) if not is_mounted else None
        for writer, (ending, _, read) in WRITERS.items():
            assert read(folder / f"{writer}{ending}") is not None
    finally:
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o755)


# ---- a full disk --------------------------------------------------------------------------------------------------


Disk = tuple[Path, Callable[[int], AbstractContextManager[None]]]


@pytest.fixture(params=["limit of this process", "small disk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A folder, and a context in which files of so many bytes cannot be written to it."""
    if request.param == "limit of this process":
        yield tmp_path, limited
        return
    folder = tmp_path / "small"
    folder.mkdir()
    if not mounted(folder, f"size={2 * LIMIT}"):
        pytest.skip("this user may not mount")
    yield folder, lambda room: filled(folder, room)
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def limited(room: int) -> Iterator[None]:
    """No file of this process may be larger: writing fails in the middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    """Leave half of `room` on the disk of a folder."""
    status, filler = os.statvfs(folder), folder / "filler"
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - room // 2))
    try:
        yield
    finally:
        filler.unlink()


@writers
def test_full_disk_leaves_the_old_file_and_nothing_else(disk: Disk, writer: str) -> None:
    folder, full = disk
    ending, write, read = WRITERS[writer]
    path = folder / f"x{ending}"
    write(path, False)
    before = path.read_bytes()
    for target in (path, folder / f"new{ending}"):
        with full(LIMIT), pytest.raises(OSError, match=target.name) as caught:
            write(target, True)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert everything(folder) == {path: before}
    assert read(path) is not None


def test_full_disk_in_a_run_loses_no_autosaved_step(disk: Disk) -> None:
    folder, full = disk
    config, autosave, steps = settings(steps=6, autosave_every=2), folder / "run.safetensors", []
    whole = adapt(generator(), guide(), SHIFT, config)
    with ExitStack() as stack:

        def on_step(step: Step) -> None:
            if step.index == 2:
                stack.enter_context(full(2000))

        with pytest.raises(OSError, match=r"run\.safetensors"):
            adapt(generator(), guide(), SHIFT, config, on_step, autosave)
        assert [path for path in everything(folder) if path.name != "filler"] == [autosave]
    resumed = adapt(generator(), guide(), SHIFT, config, lambda step: steps.append(step.index), autosave, resume=True)
    assert steps == [2, 3, 4, 5] and not changed(whole.generator.state_dict(), resumed.generator.state_dict())


def test_full_disk_at_the_end_of_a_command_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(generator(), tmp_path / "x.safetensors", {})
    words = ["adapt", str(tmp_path / "x.safetensors"), "--guide", "portraits", "--target", "zombie", "--steps", "2"]
    words += ["--batch", "1", "--out", str(tmp_path / "out")]

    def save(*inputs: Any) -> None:
        with limited(2000):
            save_generator(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(training_commands, "save_generator", save)
        assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "zombie.safetensors" in error and "2 steps are saved" in error and "--resume" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["zombie.autosave.safetensors"]
    assert main([*words, "--resume"]) == 0 and load_generator(tmp_path / "out" / "zombie.safetensors")


# ---- processes that write at once ---------------------------------------------------------------------------------

WRITER = """
import sys, torch
from nada_core.io.metadata import write_safetensors
while True:
    for value in sys.argv[2:]:
        write_safetensors(sys.argv[1], {name: torch.full((20_000,), float(value)) for name in "abc"}, {"value": value})
"""


@on_posix
def test_reader_sees_a_whole_file_while_processes_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(1)}, {"value": "0"})
    command = [sys.executable, "-c", WRITER, str(path)]
    processes = [subprocess.Popen([*command, *values], cwd=ROOT) for values in (("1", "2"), ("3", "4"))]
    try:
        values: set[str] = set()
        while len(values) < 4 and all(process.poll() is None for process in processes):
            try:
                raw = read_checkpoint(path)
            except CheckpointError as error:  # the writers are quicker than this process
                assert "another process wrote the file" in str(error)
                continue
            value = raw.hints["value"]
            assert all(bool((tensor == float(value)).all()) for tensor in raw.tensors.values())
            values |= {value} - {"0"}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert values == {"1", "2", "3", "4"}
    assert read_checkpoint(path).hints["value"] in values


@on_posix
def test_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replacements = tmp_path / "x.safetensors", iter("12")
    write_safetensors(path, {"a": torch.zeros(2)}, {"value": "0"})
    read = checkpoint_file._READERS["safetensors"]

    def slow(path: Path) -> checkpoint_file.Content:
        tensors, hints = read(path)
        for value in replacements:
            write_safetensors(path, {"a": torch.full((2,), float(value))}, {"value": value})
            if value == "1":  # the second time the file is damaged, too
                raise CheckpointError("half of the old file and half of the new one")
        return tensors, hints

    monkeypatch.setitem(checkpoint_file._READERS, "safetensors", slow)
    raw = read_checkpoint(path)
    assert raw.hints["value"] == "2" and raw.tensors["a"].tolist() == [2.0, 2.0] and raw.sha256 == sha256(path)


@on_posix
def test_file_that_is_replaced_at_every_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(2)}, {})
    read = checkpoint_file._READERS["safetensors"]

    def slow(path: Path) -> checkpoint_file.Content:
        content = read(path)
        write_safetensors(path, {"a": torch.zeros(2)}, {})
        return content

    monkeypatch.setitem(checkpoint_file._READERS, "safetensors", slow)
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*20 times"):
        read_checkpoint(path)


def test_replacing_waits_for_readers_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a file cannot be replaced while another process has it open."""
    path, replace, failures = tmp_path / "x.safetensors", os.replace, iter(range(3))
    pauses: list[float] = []

    def busy(source: Path, target: Path) -> None:
        if next(failures, None) is not None:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr("nada_core.io.metadata.time.sleep", pauses.append)
    write_safetensors(path, {"a": torch.zeros(2)}, {})
    assert len(pauses) == 3 and list(everything(tmp_path)) == [path]
    monkeypatch.setattr(os, "replace", lambda *_: busy(tmp_path / "absent", path))
    failures = iter(range(100))
    with pytest.raises(PermissionError, match=r"x\.safetensors"):
        write_safetensors(path, {"a": torch.ones(2)}, {})
    assert list(everything(tmp_path)) == [path]
