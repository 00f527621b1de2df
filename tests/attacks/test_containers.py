"""Archives, arrays and safetensors files whose structure lies: bombs, duplicates, lengths, overlaps."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from conftest import Refused
from hostile import archive, named, old_archive, program, safetensors, state, storage, tensor, zipped
from safetensors.torch import save

PICKLED = program(state(a=tensor(storage("0", 4), [4], [1])))
SOUND = {"data/0": bytes(16)}
BOMB = bytes(32 << 20)


def damaged(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


def test_sound_archive_is_read(tmp_path: Path, refused: Refused) -> None:
    """The other archives of this module differ from it in one respect."""
    with pytest.raises(AssertionError, match="'read'"):
        refused(archive(PICKLED, SOUND), reader="checkpoint")


def test_compressed_members_are_refused(refused: Refused) -> None:
    for members in ({"data/0": BOMB}, {**SOUND, "byteorder": BOMB}, {**SOUND, ".data/serialization_id": BOMB}):
        content = archive(PICKLED, members, zipfile.ZIP_DEFLATED)
        refused(content, "DamagedCheckpointError", "checkpoint")
    text = program(b"X" + struct.pack("<I", len(BOMB)) + BOMB)
    refused(archive(text, SOUND, zipfile.ZIP_DEFLATED), "DamagedCheckpointError", "checkpoint")


def test_member_shorter_than_its_storage_is_refused(refused: Refused) -> None:
    """The rest of the storage would show what the memory held before."""
    refused(archive(PICKLED, {"data/0": bytes(15)}), "DamagedCheckpointError", "checkpoint")
    refused(archive(PICKLED, {"data/0": b""}), "DamagedCheckpointError", "checkpoint")
    refused(archive(PICKLED), "DamagedCheckpointError", "checkpoint")
    content = archive(PICKLED, {"data/0": b"abcd"})
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4) + 4)
    lying = content[: entry + 24] + struct.pack("<I", 16) + content[entry + 28 :]  # its size, not that in the archive
    refused(lying, "DamagedCheckpointError", "checkpoint")


def test_old_archive_without_a_storage_is_refused(refused: Refused) -> None:
    whole = struct.pack("<q", 4) + bytes(16)
    for keys, content in (
        ([], b""),
        (["1"], whole),
        (["0", "0"], whole * 2),
        (["0"], whole[:-1]),
        (["0"], b"\xff" * 24),
        ({"0": 1}, whole),
        ([("0",)], whole),
    ):
        refused(old_archive(PICKLED, keys, content), "DamagedCheckpointError", "checkpoint")  # type: ignore[arg-type]


def test_storages_larger_than_the_file_are_refused(refused: Refused) -> None:
    for count in (1 << 20, 1 << 40, 1 << 62, -1):
        pickled = program(state(a=tensor(storage("0", count), [1], [1])))
        refused(archive(pickled, SOUND), "DamagedCheckpointError", "checkpoint")
        refused(old_archive(pickled, ["0"]), "DamagedCheckpointError", "checkpoint")


def test_tar_archives_of_the_first_pytorch_are_refused(tmp_path: Path, refused: Refused) -> None:
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (tmp_path / name).write_bytes(program(named("os", "system") + b"X\x01\x00\x00\x00x\x85R"))
            tar.add(tmp_path / name, name)
    refused(tmp_path / "x.tar", "UnsupportedCheckpointError")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [
        ["archive/data.pkl", "archive/data.pkl"],
        ["archive/data.pkl", "other/data.pkl"],
        ["archive/data.pkl", "../../data.pkl"],
        ["archive/data.pkl", "/etc/data.pkl"],
        ["archive/data.pkl", "C:\\data.pkl"],
        ["archive/data.pkl", "archive/../x"],
        [f"archive/{index}" for index in range(70_000)],
    ],
    ids=lambda names: names[-1],
)
def test_odd_names_of_members_are_refused(refused: Refused, names: list[str]) -> None:
    refused(zipped([(name, PICKLED) for name in names]), "DamagedCheckpointError", "checkpoint")
    refused(zipped([(f"{name}.npy", PICKLED) for name in names]), "DamagedCheckpointError", "checkpoint")


def test_long_lists_of_members_take_no_memory(refused: Refused) -> None:
    """zipfile keeps hundreds of bytes for each entry of 47 bytes."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    entries = entry * 500_000
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(entries), 4, 0)
    refused(b"PK\x03\x04" + entries + end, "DamagedCheckpointError", "checkpoint")


def test_encrypted_members_are_refused(refused: Refused) -> None:
    content = archive(PICKLED, SOUND)
    entry = content.index(b"PK\x01\x02")
    refused(content[: entry + 8] + b"\x01" + content[entry + 9 :], "DamagedCheckpointError", "checkpoint")


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    written = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(written)) + written + content


HEADERS = {
    "huge shape": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n", bytes(80)),
    "product": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n", bytes(80)),
    "negative": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -3), }\n", bytes(80)),
    "text": npy("{'descr': '<U400000000', 'fortran_order': False, 'shape': (10,), }\n", bytes(80)),
    "no dict": npy("[1]\n"),
    "deep": npy("(" * 5000 + "\n"),
    "long number": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 9000 + ",), }\n"),
    "long header": npy("{" + " " * 60_000 + "}\n"),
    "length": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "version": b"\x93NUMPY\x09\x00\xff\xff\xff\xff",
    "subarray": npy("{'descr': ('<f8', (1000000, 1000000)), 'fortran_order': False, 'shape': (1,), }\n", bytes(80)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_arrays_are_not_trusted(refused: Refused, name: str) -> None:
    refused(HEADERS[name], "DamagedCheckpointError", "latents")
    refused(zipped([("w.npy", HEADERS[name])]), "DamagedCheckpointError", "latents")


def test_packed_arrays_are_bounded(tmp_path: Path, refused: Refused) -> None:
    numpy.savez_compressed(tmp_path / "one.npz", w=numpy.zeros(40 << 20))
    refused(tmp_path / "one.npz", "UnsupportedCheckpointError", "latents")
    numpy.savez_compressed(tmp_path / "many.npz", **{f"w{index}": numpy.zeros(1 << 20) for index in range(40)})
    refused(tmp_path / "many.npz", "UnsupportedCheckpointError", "latents")


def test_texts_in_arrays_are_not_unpacked(tmp_path: Path, refused: Refused) -> None:
    """A list of strings takes 60 bytes for each byte of the array."""
    numpy.save(tmp_path / "x.npy", numpy.zeros(20 << 20, "S1"))
    refused(tmp_path / "x.npy", "UnsupportedCheckpointError", "latents")


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


SAFETENSORS = {
    "length": safetensors({}, length=1 << 31),
    "longest": safetensors({}, length=(1 << 32) - 1),
    "overlap": safetensors({"a": entry(), "b": entry()}, bytes(16)),
    "gap": safetensors({"a": entry(data_offsets=[4, 20])}, bytes(20)),
    "rest": safetensors({"a": entry()}, bytes(64)),
    "beyond": safetensors({"a": entry()}, bytes(8)),
    "negative offset": safetensors({"a": entry(data_offsets=[-16, 0])}, bytes(16)),
    "negative shape": safetensors({"a": entry(shape=[-2, -2])}, bytes(16)),
    "huge shape": safetensors({"a": entry(shape=[1 << 32, 1 << 32])}, bytes(16)),
    "zero times huge": safetensors({"a": entry(shape=[0, (1 << 64) - 1], data_offsets=[0, 0])}),
    "type": safetensors({"a": entry(dtype="O")}, bytes(16)),
    "twice": safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32"}}', bytes(4)),
    "list": safetensors(b'{"a":[]}'),
    "deep": safetensors(b'{"a":' + b"[" * 100_000),
    "metadata": safetensors({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, bytes(16)),
    "no utf-8": safetensors(b'{"\xff\xfe":{}}'),
    "header": safetensors({"__metadata__": {"a": "x" * (5 << 20)}, "a": entry()}, bytes(16)),
    "tensors": safetensors({str(index): entry(shape=[0], data_offsets=[0, 0]) for index in range(70_000)}),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_headers_of_safetensors_are_not_trusted(refused: Refused, name: str) -> None:
    for reader in ("checkpoint", "provenance") if name not in ("zero times huge",) else ("checkpoint",):
        refused(SAFETENSORS[name], "DamagedCheckpointError", reader)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_numbers_that_are_not_finite_are_refused(refused: Refused, value: float, dtype: torch.dtype) -> None:
    numbers = torch.tensor([0.0, value]).to(dtype)
    refused(save({"a": numbers}), "DamagedCheckpointError", "checkpoint")
