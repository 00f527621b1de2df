"""Reading model files: the content of every container, and errors for damaged, foreign and hostile files."""

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from nvidia_pickle import Call, EasyDict, Global, dump, network, persistent

from nada_core.io import checkpoint_file as files
from nada_core.io import inert_objects
from nada_core.io.checkpoint_file import read_checkpoint, sha256
from nada_core.io.errors import (
    CheckpointError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from nada_core.io.metadata import read_metadata, write_safetensors, write_torch
from nada_core.models.stylegan2 import StyleGAN2


def toy() -> StyleGAN2:
    return StyleGAN2(16, z_dim=4, w_dim=4, mapping_layers=1, widths=[4, 4, 4], rng=torch.Generator().manual_seed(0))


def test_safetensors_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b.c": torch.arange(4)}
    write_safetensors(tmp_path / "x.bin", tensors, {"note": "hello"})  # the content decides, not the name
    raw = read_checkpoint(tmp_path / "x.bin")
    assert raw.container == "safetensors" and raw.hints == {"note": "hello"} == read_metadata(tmp_path / "x.bin")
    assert all(torch.equal(raw.tensors[name], value) for name, value in tensors.items())
    assert raw.sha256 == sha256(tmp_path / "x.bin") and len(raw.sha256) == 64 and raw.kind == ""


def test_kind_is_read_from_safetensors_only(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"a": torch.zeros(1)}, {"kind": "nada_domain"})
    torch.save({"a": torch.zeros(1), "kind": "nada_domain"}, tmp_path / "y")
    assert read_checkpoint(tmp_path / "x").kind == "nada_domain" and read_checkpoint(tmp_path / "y").kind == ""


def test_safetensors_are_recognized_at_every_header_length(tmp_path: Path) -> None:
    """The file begins with that length, whose low byte may equal the mark of another container."""
    first_bytes = set()
    for length in range(0, 256, 8):
        write_safetensors(tmp_path / "x", {"a": torch.zeros(1)}, {"note": "x" * length})
        first_bytes.add((tmp_path / "x").read_bytes()[:1])
        assert read_checkpoint(tmp_path / "x").container == "safetensors"
    assert b"\x80" in first_bytes


@pytest.mark.parametrize("new_format", [True, False])
def test_torch_archives_of_both_formats_are_read(tmp_path: Path, new_format: bool) -> None:
    content = {
        "g_ema": {"w": torch.ones(2)},
        "latent_avg": torch.zeros(3),
        "args": argparse.Namespace(size=64, lr=0.1),
        "g_optim": {"state": {0: {"exp_avg": torch.ones(9)}}},
        "iter": 7,
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    raw = read_checkpoint(tmp_path / "x.pt")
    assert raw.container == "torch" and set(raw.tensors) == {"g_ema.w", "latent_avg"}
    assert raw.hints == {"args": {"size": 64, "lr": 0.1}, "iter": 7}


def test_nvidia_pickles_become_tensors_and_hints(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w')"  # what the original loader would execute
    generator = toy()
    content = {"G_ema": network(generator, clamp=256, source=source), "training_set_kwargs": EasyDict(path="x.zip")}
    raw = read_checkpoint(dump(content, tmp_path / "x.pkl"))
    assert raw.container == "nvidia-pickle" and not marker.exists()
    for name, value in generator.state_dict().items():
        assert torch.equal(raw.tensors[f"G_ema.{name}"], value)
    hints = raw.hints["G_ema"]
    assert hints["class_name"] == "Generator" and hints["init_kwargs"]["z_dim"] == 4
    assert hints["attributes"]["synthesis.b8.conv0.conv_clamp"] == 256
    assert hints["attributes"]["mapping.fc0.weight_gain"] == 0.5
    assert raw.hints["training_set_kwargs"] == {"path": "x.zip"}


def test_numpy_arrays_single_and_packed_are_read(tmp_path: Path) -> None:
    numbers = numpy.arange(6.0).reshape(2, 3)
    with (tmp_path / "x.bin").open("wb") as file:  # the content decides, not the name
        numpy.save(file, numbers.astype(">f4"))
    raw = read_checkpoint(tmp_path / "x.bin")
    assert raw.container == "numpy" and set(raw.tensors) == {"array"} and raw.tensors["array"].dtype == torch.float32
    assert torch.equal(raw.tensors["array"].double(), torch.from_numpy(numbers))
    for save in (numpy.savez, numpy.savez_compressed):
        save(tmp_path / "x.npz", w=numbers.T, count=numpy.int64(3), zeros=numpy.zeros((500, 500)), title="hello")
        raw = read_checkpoint(tmp_path / "x.npz")
        assert raw.container == "numpy" and set(raw.tensors) == {"w", "count", "zeros"}
        assert torch.equal(raw.tensors["w"], torch.from_numpy(numbers).T) and raw.tensors["count"] == 3
        assert raw.tensors["zeros"].shape == (500, 500) and raw.hints == {"title": "hello"}


def test_numpy_objects_and_damaged_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = numpy.array([_Evil(str(tmp_path / "marker"))], dtype=object)
    numpy.save(tmp_path / "x.npy", evil)
    numpy.savez(tmp_path / "x.npz", w=numpy.zeros(2), evil=evil)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UnsafeCheckpointError, match="were not opened"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "marker").exists()
    numpy.save(tmp_path / "x.npy", numpy.array([1.0, numpy.nan]))
    with pytest.raises(DamagedCheckpointError, match="the first is array"):
        read_checkpoint(tmp_path / "x.npy")
    numpy.save(tmp_path / "x.npy", numpy.zeros(100))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    numpy.savez(tmp_path / "x.npz", w=numpy.zeros(100))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    for name in ("x.npy", "cut.npz"):
        with pytest.raises(DamagedCheckpointError, match="cut short"):
            read_checkpoint(tmp_path / name)
    numpy.savez_compressed(tmp_path / "x.npz", w=numpy.zeros(1000))
    monkeypatch.setattr(files, "_MOST_UNPACKED", 1000)
    with pytest.raises(UnsupportedCheckpointError, match="more than the file"):
        read_checkpoint(tmp_path / "x.npz")


def hostile(marker: Path) -> dict[str, object]:
    """Pickles that would create `marker` if anything in them were called."""
    line = f"open({str(marker)!r}, 'w').close()"
    evil = Call(Global("builtins", "exec"), line)
    nested = pickle.dumps(_Evil(str(marker)), protocol=2)
    return {
        "exec": evil,
        "eval": Call(Global("builtins", "eval"), line),
        "os.system": Call(Global("os", "system"), f"touch {marker}"),
        "posix": Call(Global("posix", "system"), f"touch {marker}"),
        "open": Call(Global("builtins", "open"), str(marker), "w"),
        "getattr": Call(Call(Global("builtins", "getattr"), Global("os", "system")), f"touch {marker}"),
        "dotted": Call(Global("torch.nn", "modules.module.os.system"), f"touch {marker}"),
        "torch.load": Call(Global("torch", "load"), str(marker)),
        "inside meta": {"G_ema": persistent("Generator", {"_modules": {"a": evil}}, line)},
        "inside a storage": {"G_ema": Call(Global("torch.storage", "_load_from_bytes"), nested)},
    }


class _Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", list(hostile(Path("x"))))
def test_hostile_pickles_run_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(dump(hostile(marker)[name], tmp_path / "x.pkl"))
    assert not marker.exists()
    if name != "inside a storage":
        assert isinstance(caught.value, UnsafeCheckpointError) and "was not called" in str(caught.value)


def test_hostile_torch_archives_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for new_format in (True, False):
        torch.save({"g_ema": _Evil(str(marker))}, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
        with pytest.raises(UnsafeCheckpointError, match=r"system.*was not called"):
            read_checkpoint(tmp_path / "x.pt")
    assert not marker.exists()


def test_pickles_cannot_change_the_reader(tmp_path: Path) -> None:
    """State set on a class or function of the allow list does not affect the next file."""
    for module, name in (
        ("torch.nn.modules.linear", "Linear"),
        ("dnnlib.util", "EasyDict"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
    ):
        reference = Global(module, name).reference
        state = b"N}X\x0a\x00\x00\x00class_nameX\x04\x00\x00\x00evils\x86"  # (None, {"class_name": "evil"})
        (tmp_path / "x.pkl").write_bytes(b"\x80\x03c" + reference + state + b"b.")
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "x.pkl")
    assert inert_objects.Record.class_name == "" and not hasattr(inert_objects.Settings, "class_name")


def test_numpy_scalars_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    """numpy's own constructors accept pickled objects inside arrays and scalars."""
    dtype = Call(Global("numpy", "dtype"), "O8", False, True)
    evil = pickle.dumps(_Evil(str(tmp_path / "m")))
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(dump(Call(Global("numpy._core.multiarray", "scalar"), dtype, evil), tmp_path / "x.pkl"))
    assert not (tmp_path / "m").exists()


def damaged(tmp_path: Path) -> dict[str, tuple[bytes, type[CheckpointError], str]]:
    write_safetensors(tmp_path / "whole", {"a": torch.zeros(100)}, {})
    tensors = (tmp_path / "whole").read_bytes()
    write_torch(tmp_path / "whole", {"a": torch.zeros(100)})
    archive = (tmp_path / "whole").read_bytes()
    pickled = dump({"G_ema": network(toy())}, tmp_path / "whole").read_bytes()
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole", _use_new_zipfile_serialization=False)
    old = (tmp_path / "whole").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("readme.txt", "hello")
    program = io.BytesIO()
    with zipfile.ZipFile(program, "w") as file:
        for name in ("m/data.pkl", "m/constants.pkl", "m/version"):
            file.writestr(name, "x")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return {
        "empty": (b"", DamagedCheckpointError, "empty"),
        "lfs": (lfs, DamagedCheckpointError, "git lfs pull"),
        "html": (b"\n<!DOCTYPE html><html>quota</html>", DamagedCheckpointError, "web page"),
        "text": (b"hello, world", UnsupportedCheckpointError, "that begins with"),
        "zip": (packed.getvalue(), UnsupportedCheckpointError, "unpack it first"),
        "torchscript": (program.getvalue(), UnsupportedCheckpointError, "TorchScript"),
        "bare pickle": (pickle.dumps([1, 2]), UnsupportedCheckpointError, "without networks"),
        "cut safetensors": (tensors[:-40], DamagedCheckpointError, "sound"),
        "cut archive": (archive[:-200], DamagedCheckpointError, "cut short"),
        "cut old archive": (old[:-100], DamagedCheckpointError, "cut short"),
        "cut pickle": (pickled[:-500], DamagedCheckpointError, "cut short"),
        "cut header": (tensors[:20], DamagedCheckpointError, "sound"),
    }


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for name, (content, kind, words) in damaged(tmp_path).items():
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(kind) as caught:
            read_checkpoint(tmp_path / "x")
        assert words in str(caught.value), name
        assert str(tmp_path / "x") in str(caught.value)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for act in (read_checkpoint, read_metadata):
        with pytest.raises(CheckpointError, match="no such file"):
            act(tmp_path / "nothing")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"a": torch.zeros(2), "b": torch.tensor([0.0, float("nan")])}, {})
    with pytest.raises(DamagedCheckpointError, match="1 of 2 tensors hold NaN or infinity, the first is b"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.eye(3).to_sparse(), "a is not a plain tensor"),
        (torch.empty(3, device="meta"), "a is not a plain tensor"),
        (torch.zeros(1).expand(10**6, 10**6, 100), "claims .* more than the whole file holds"),
    ],
)
def test_tensors_that_are_not_dense_are_refused(tmp_path: Path, value: torch.Tensor, words: str) -> None:
    torch.save({"a": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "x.pt")


def test_other_parser_errors_become_damaged_checkpoints(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    torch.save(endless, tmp_path / "x.pt")
    with pytest.raises(DamagedCheckpointError, match="RecursionError"):
        read_checkpoint(tmp_path / "x.pt")
    dump({"G_ema": persistent("Generator", 5, "")}, tmp_path / "x.pkl")  # type: ignore[arg-type]
    with pytest.raises(DamagedCheckpointError, match="the state of a Generator is 5"):
        read_checkpoint(tmp_path / "x.pkl")


def test_eight_bit_floats_are_read(tmp_path: Path) -> None:
    numbers = torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn)
    write_safetensors(tmp_path / "x", {"a": numbers}, {})
    assert torch.equal(read_checkpoint(tmp_path / "x").tensors["a"].float(), numbers.float())
    write_safetensors(tmp_path / "x", {"a": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, {})
    with pytest.raises(DamagedCheckpointError, match="hold NaN"):
        read_checkpoint(tmp_path / "x")
