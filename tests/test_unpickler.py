"""The pickle reader: what it rebuilds, what stays inert, and that no file takes more memory than it has bytes."""

import argparse
import datetime
import io
import pickle
import re
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from nvidia_pickle import Call, Global, dump, foreign_class, network
from torch import nn

from nada_core.io.checkpoint_file import read_checkpoint
from nada_core.io.errors import (
    CheckpointError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from nada_core.io.metadata import write_safetensors
from nada_core.models.stylegan2 import StyleGAN2


def toy() -> StyleGAN2:
    return StyleGAN2(16, z_dim=4, w_dim=4, mapping_layers=1, widths=[4, 4, 4], rng=torch.Generator().manual_seed(0))


def foreign(module: str, name: str, **state: Any) -> Any:
    made = foreign_class(module, name)()
    vars(made).update(state)
    return made


class Rebuilt:
    """A tensor that is pickled with another size, stride and offset than its storage allows."""

    def __init__(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments = storage, offset, size, stride, False, OrderedDict()

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (10**6, 10**6), (1, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (4, (1,), (1,)),
    ],
)
@pytest.mark.parametrize("container", ["zip", "old", "pickle"])
def test_storage_cannot_grow_beyond_its_bytes(
    tmp_path: Path, container: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    storage = torch.arange(4.0)._typed_storage()
    content = {"a": Rebuilt(storage, offset, size, stride), "padding": torch.zeros(1000)}
    if container == "pickle":
        dump(content, tmp_path / "x")
    else:
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(DamagedCheckpointError, match="beyond its storage of 4"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("container", ["zip", "old", "pickle"])
def test_views_of_one_storage_are_read(tmp_path: Path, container: str) -> None:
    whole = torch.arange(12.0)
    content = {"t": whole.view(3, 4).t(), "part": whole[5:7], "none": whole[:0], "half": torch.ones(2).bfloat16()}
    if container == "pickle":
        (tmp_path / "x").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=container == "zip")
    tensors = read_checkpoint(tmp_path / "x").tensors
    assert tensors.keys() == content.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in content.items()
    )


def test_arrays_of_the_same_bytes_take_no_more_memory_than_the_file(tmp_path: Path) -> None:
    content, dtype = b"\0" * 4096, Call(Global("numpy", "dtype"), "f4", False, True)

    class Repeated:
        def __reduce__(self) -> Any:
            empty = (Global("numpy", "ndarray"), (0,), b"b")
            return Global("numpy.core.multiarray", "_reconstruct"), empty, (1, (1024,), dtype, False, content)

    with pytest.raises(DamagedCheckpointError, match="more bytes than the whole file"):
        read_checkpoint(dump([{"a": Repeated()} for _ in range(100)], tmp_path / "x.pkl"))


def test_storages_of_an_archive_take_no_more_memory_than_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for compression, change in (
        (zipfile.ZIP_DEFLATED, lambda name, data: data),  # a few bytes could promise any number of zeros
        (zipfile.ZIP_STORED, lambda name, data: data[:-4] if "/data/" in name else data),
    ):
        with zipfile.ZipFile(tmp_path / "y.pt", "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, change(name, data))
        with pytest.raises(DamagedCheckpointError, match="compressed|bytes, expected 4000"):
            read_checkpoint(tmp_path / "y.pt")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flags": np.array([True, False]),
        "text": np.array(["a"]),
        "number": np.float64(0.5),
        "names": [{"a"}, frozenset(["b"])],
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    raw = read_checkpoint(tmp_path / "x.pkl")
    assert raw.tensors.keys() == {"c", "fortran", "flags"} and raw.hints["number"] == 0.5
    assert raw.hints["names"] == [{"a"}, {"b"}]
    assert all(np.array_equal(raw.tensors[name].numpy(), content[name]) for name in raw.tensors)


def test_long_arrays_of_protocol_2_are_read(tmp_path: Path) -> None:
    """They are stored as text, which is converted part by part."""
    content = np.random.default_rng(0).standard_normal((700, 600))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"c": content, "fortran": np.asfortranarray(content)}, 2))
    tensors = read_checkpoint(tmp_path / "x.pkl").tensors
    assert all(np.array_equal(tensors[name].numpy(), content) for name in ("c", "fortran"))


@pytest.mark.parametrize(("version", "reads"), [("2.5.1+cu124", False), ("2.6.0", True), ("2.10.0a0+git1", True)])
def test_torch_of_files_with_a_pickle_is_2_6_or_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, reads: bool
) -> None:
    for new_format in (True, False):
        torch.save({"a": torch.zeros(1)}, tmp_path / f"{new_format}.pt", _use_new_zipfile_serialization=new_format)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": torch.zeros(1)}))
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    monkeypatch.setattr(torch, "__version__", version)
    assert read_checkpoint(tmp_path / "x.safetensors").tensors["a"] == 0
    for name in ("True.pt", "False.pt", "x.pkl"):
        if reads:
            assert read_checkpoint(tmp_path / name).tensors["a"] == 0
        else:
            with pytest.raises(UnsupportedCheckpointError, match=f"got torch {re.escape(version)}, expected 2.6"):
                read_checkpoint(tmp_path / name)


class Wrapped(nn.Module):
    """A module with a parameter, a buffer and a child, of a class that the reader does not import."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 3)
        self.register_buffer("mean", torch.ones(3))
        self.gain = 0.5


@pytest.mark.parametrize("protocol", [2, 4])
def test_module_of_an_unknown_class_becomes_its_state_dict(tmp_path: Path, protocol: int) -> None:
    module = Wrapped()
    torch.save({"net": module}, tmp_path / "x.pt", pickle_protocol=protocol)
    raw = read_checkpoint(tmp_path / "x.pt")
    assert raw.tensors.keys() == {f"net.{name}" for name in module.state_dict()}
    assert all(torch.equal(raw.tensors[f"net.{name}"], value) for name, value in module.state_dict().items())
    assert raw.hints["net"]["class_name"] == "Wrapped" and raw.hints["net"]["attributes"]["gain"] == 0.5


def test_unknown_objects_beside_a_network_are_inert(tmp_path: Path) -> None:
    class Listed(list):  # type: ignore[type-arg]
        reference = Global("somewhere", "Listed").reference

    content = {
        "G_ema": network(toy()),
        "D": foreign("somewhere.else", "Discriminator", weights=torch.ones(2), config=foreign("x", "Config", size=3)),
        "list": Listed([1, 2]),
        "function": Global("torch.nn.functional", "leaky_relu"),
        "mode": Call(Global("somewhere.modes", "Mode"), 3),  # an enum
    }
    raw = read_checkpoint(dump(content, tmp_path / "x.pkl"))
    assert "G_ema.synthesis.b4.const" in raw.tensors and torch.equal(raw.tensors["D.weights"], torch.ones(2))
    assert raw.hints["D.config.size"] == 3 and "somewhere" not in sys.modules


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_calls_of_unknown_functions_are_refused_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(marker), "w")

    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + pickle.dumps({"a": Evil()}, protocol).removeprefix(b"\x80\x04"))
    with pytest.raises(UnsafeCheckpointError, match=r"open.*was not called"):
        read_checkpoint(tmp_path / "x.pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("subprocess", "Popen"),
        ("os", "PathLike"),
        ("__builtin__", "Xrange"),
        ("torch.jit", "CompilationUnit"),
        ("numpy.ctypeslib", "Load"),
        ("somewhere", "function"),
        ("os.Path", "system"),
    ],
)
def test_calls_other_than_of_a_program_s_classes_are_refused(tmp_path: Path, module: str, name: str) -> None:
    content = {"G_ema": network(toy()), "other": Call(Global(module, name), "true")}
    with pytest.raises(UnsafeCheckpointError, match=f"{module}.{name}"):
        read_checkpoint(dump(content, tmp_path / "x.pkl"))


def test_references_outside_an_archive_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        inner = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    (tmp_path / "x.pkl").write_bytes(inner)
    with pytest.raises(CheckpointError, match="outside the file"):
        read_checkpoint(tmp_path / "x.pkl")


def test_endless_sharing_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    for _ in range(60):
        content = {"a": content, "b": content}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DamagedCheckpointError, match="too many values"):
        read_checkpoint(tmp_path / "x.pkl")


def test_usual_values_of_a_training_state_do_not_prevent_reading(tmp_path: Path) -> None:
    content = {
        "g_ema": {"a": torch.ones(2), "b": torch.ones(2).to(torch.float8_e4m3fn), "c": nn.Parameter(torch.ones(2))},
        "args": argparse.Namespace(
            out=PurePosixPath("/runs/one"), device=torch.device("cuda", 0), size=torch.Size([3]), dtype=torch.float32
        ),
        "when": datetime.datetime(2021, 2, 3, tzinfo=datetime.timezone.utc),
        "count": Counter("aab"),
        "losses": defaultdict(list, {"clip": [1.0]}),
        "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.Adam([torch.zeros(2, requires_grad=True)]), 3),
        "best": np.float32(0.5),
    }
    torch.save(content, tmp_path / "x.pt")
    raw = read_checkpoint(tmp_path / "x.pt")
    assert all(torch.equal(raw.tensors[f"g_ema.{name}"].float(), torch.ones(2)) for name in "abc")
    assert raw.hints["args"] == {"out": "/runs/one", "device": "cuda:0", "size": (3,), "dtype": "float32"}
    assert raw.hints["count.a"] == 2 and raw.hints["losses.clip"] == [1.0] and raw.hints["best"] == 0.5


def nested(levels: int) -> Any:
    """A tuple of two tuples of two tuples ...: a few bytes, and 2 ** levels elements."""
    value: Any = "x"
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "content",
    [
        {"state": Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), {"class_name": nested(60)})},
        {"device": Call(Global("torch", "device"), nested(60))},
        {"path": Call(Global("pathlib", "PosixPath"), nested(60))},
        {"static": foreign("dnnlib.tflib.network", "Network", static_kwargs={}, variables=[], components=nested(60))},
        {"module": foreign("a", "Module", _parameters=nested(60), value=torch.ones(2))},
    ],
    ids=lambda content: next(iter(content)),
)
def test_nested_content_is_neither_printed_nor_walked(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(dump(content, tmp_path / "x.pkl"))


def test_nested_keys_are_not_hashed(tmp_path: Path) -> None:
    levels = b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(1, 61))
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02}U\x01x" + levels + b"Ns.")
    with pytest.raises(DamagedCheckpointError, match="a tuple is the key"):
        read_checkpoint(tmp_path / "x.pkl")


def test_memo_of_a_pickle_takes_no_memory_for_its_largest_index(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="NoneType"):
        read_checkpoint(tmp_path / "x.pkl")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_one_storage_under_many_names_is_refused(tmp_path: Path) -> None:
    """Each view is within bounds; checking and copying all of them would take hours."""
    content = torch.zeros(10_000)
    torch.save({str(index): content[:] for index in range(1000)}, tmp_path / "x.pt")
    with pytest.raises(DamagedCheckpointError, match="times the whole file"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps of Linux")
def test_safetensors_file_is_not_mapped_after_reading(tmp_path: Path) -> None:
    """On Windows a mapped file cannot be replaced."""
    write_safetensors(tmp_path / "mapped.safetensors", {"a": torch.ones(100_000)}, {})
    raw = read_checkpoint(tmp_path / "mapped.safetensors")
    assert raw.tensors["a"].sum() == 100_000 and "mapped.safetensors" not in Path("/proc/self/maps").read_text()
