"""Files that ask the reader to call something, to run the code they store, or to change it for the next file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import nvidia_pickle
import pytest
import tensorflow_pickle
import tiny
import torch
from conftest import Refused
from hostile import archive, call, dumps, named, old_archive, program, state, storage, tensor, text

CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda pickled: pickled,
    "zip": archive,
    "old": old_archive,
    "storage": lambda pickled: program(
        call(named("torch.storage", "_load_from_bytes"), b"B" + len(pickled).to_bytes(4, "little") + pickled)
    ),
}

# Functions that run a command, code or a file, or give access to all others.
CALLED = [
    ("posix", "system"),
    ("os", "system"),
    ("nt", "system"),
    ("builtins", "exec"),
    ("builtins", "eval"),
    ("__builtin__", "execfile"),
    ("builtins", "open"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("builtins", "globals"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("subprocess", "Popen"),
    ("runpy", "run_path"),
    ("timeit", "timeit"),
    ("webbrowser", "open"),
    ("pty", "spawn"),
    ("socket", "create_connection"),
    ("urllib.request", "urlopen"),
    ("pickle", "loads"),
    ("_pickle", "Unpickler"),
    ("importlib", "import_module"),
    ("pip", "main"),
    ("shutil", "rmtree"),
    ("ctypes", "CDLL"),
    ("torch", "load"),
    ("torch.jit", "load"),
    ("torch.hub", "load"),
    ("torch.utils.cpp_extension", "load_inline"),
    ("torch.nn", "modules.module.os.system"),
    ("torch._utils", "_import_dotted_name"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("dnnlib.util", "open_url"),
    ("torch_utils.persistence", "_src_to_module"),
    ("nada_core.io.unpickler", "read_old_archive"),
]


@pytest.mark.parametrize(("module", "name"), CALLED, ids=lambda value: value)
@pytest.mark.parametrize("container", CONTAINERS)
def test_calls_are_refused(tmp_path: Path, refused: Refused, container: str, module: str, name: str) -> None:
    command = f"touch {tmp_path / 'canary'}"
    hostile = program(state(g_ema=call(named(module, name), text(command))))
    result = refused(CONTAINERS[container](hostile), "UnsafeCheckpointError")
    assert f"{module}.{name}" in result["detail"]


@pytest.mark.parametrize(
    "instructions",
    [
        b"(X\x01\x00\x00\x00xios\nsystem\n",
        b"(cos\nsystem\nX\x01\x00\x00\x00xo",
        b"csubprocess\nPopen\n)\x81)R",
        b"csubprocess\nPopen\n)}\x92)R",
        b"cos\nsystem\nX\x01\x00\x00\x00x\x85R",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R",
        b"ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR)R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN(X\x01\x00\x00\x00xtNtR",
        b"\x82\x01",
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
    ],
    ids=[
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "TUPLE1",
        "STACK_GLOBAL",
        "reconstructor",
        "typed",
        "EXT1",
        "EXT2",
        "EXT4",
    ],
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_way_to_call_is_refused(refused: Refused, container: str, instructions: bytes) -> None:
    result = refused(CONTAINERS[container](program(instructions)), "UnsafeCheckpointError")
    assert "was not called" in result["detail"]


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        (
            tensor(storage("0", 4), [4], [1]),
            b"(" + tensor(storage("0", 4), [4], [1]) + b"K\x00J\xff\xff\xff\x0f\x85K\x01\x85tb",
        ),
        (tensor(storage("0", 4), [4], [1]), b"K\x00K\x00s"),
        (tensor(storage("0", 4), [4], [1]), b"(K\x00K\x00u"),
        (tensor(storage("0", 4), [4], [1]), b"(K\x00\x90"),
        (tensor(storage("0", 4), [4], [1]), b"K\x00a"),
        (storage("0", 4), state(dtype=named("torch", "DoubleStorage")) + b"b"),
        (named("torch", "FloatStorage"), b"N}\x86b"),
        (named("torch._utils", "_rebuild_tensor_v2"), b"N" + state(__defaults__=b"(t") + b"\x86b"),
        (named("collections", "OrderedDict"), state(items=named("os", "system")) + b"b"),
        (named("dnnlib.util", "EasyDict"), state(items=named("os", "system")) + b"b"),
        (named("numpy", "dtype"), state(code=text("f4")) + b"b"),
        (named("somewhere", "Class"), state(__class__=named("os", "system")) + b"b"),
        (b"]", state(append=named("os", "system")) + b"b"),
        (named("torch", "Size"), b")\x81"),
    ],
)
def test_methods_and_attributes_of_other_objects_are_refused(
    refused: Refused, target: bytes, instruction: bytes
) -> None:
    """BUILD calls __setstate__, SETITEMS and the like assign: allowed on dicts, lists, sets and inert records only."""
    pickled = program(state(x=target + instruction))
    refused(archive(pickled, {"data/0": bytes(16)}), "UnsafeCheckpointError", "checkpoint")


def test_attributes_of_dicts_are_ignored(refused: Refused) -> None:
    """torch.save stores `_metadata` of a state dict that way, so it is no reason to refuse."""
    ordered = call(named("collections", "OrderedDict")) + state(items=named("os", "system"), __class__=b"N") + b"b"
    refused(archive(program(ordered)), "UnsupportedCheckpointError")


def test_persistent_ids_outside_the_archive_are_refused(refused: Refused) -> None:
    for pid in (
        text("x"),
        b"(" + text("module") + named("os", "system") + text("a") + text("b") + b"K\x00t",
        b"N",
        b")",
    ):
        refused(archive(program(pid + b"Q")), "UnsupportedCheckpointError")
    refused(program(storage("0", 4)), "UnsupportedCheckpointError")
    refused(
        archive(program(b"(" + text("storage") + named("os", "system") + text("0") * 2 + b"K\x01tQ")),
        "UnsupportedCheckpointError",
    )
    refused(b"\x80\x02P../../etc/passwd\n.", "UnsupportedCheckpointError")


def test_stored_source_is_not_run(tmp_path: Path, opened: Callable[[Path, str], dict[str, Any]]) -> None:
    """The loaders of NVIDIA compile `module_src` and `build_module_src`; here such files are read as data."""
    source = f"open({str(tmp_path / 'canary')!r}, 'w')"
    generator = tiny.generator()
    nvidia_pickle.dump({"G_ema": nvidia_pickle.network(generator, source=source)}, tmp_path / "nvidia.pkl")
    built = tensorflow_pickle.network(tensorflow_pickle.variables(generator))
    built.build_module_src = source
    nvidia_pickle.dump((built, built, built), tmp_path / "tensorflow.pkl")
    for name in ("nvidia.pkl", "tensorflow.pkl"):
        result = opened(tmp_path / name, "generator")
        assert result["kind"] == "read", result
    assert not (tmp_path / "canary").exists()


def test_programs_of_torchscript_are_refused(tmp_path: Path, refused: Refused) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "UnsupportedCheckpointError")
    code = b"class Module(Module):\n  def __setstate__(self, state):\n    ops.aten.save(state, 'canary')\n"
    refused(archive(program(b"}"), {"constants.pkl": b"", "code/__torch__.py": code}), "UnsupportedCheckpointError")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_objects_in_numpy_files_are_refused(tmp_path: Path, refused: Refused) -> None:
    evil = numpy.array([Evil(tmp_path / "canary")], dtype=object)
    field = numpy.zeros(1, [("a", "f4"), ("b", "O")])
    field["b"] = evil
    for array in (evil, field):
        numpy.save(tmp_path / "x.npy", array)
        numpy.savez(tmp_path / "x.npz", w=numpy.zeros(2), evil=array)
        for name in ("x.npy", "x.npz"):
            refused(tmp_path / name, "UnsafeCheckpointError", "latents")


def test_objects_in_arrays_of_pickles_are_refused(tmp_path: Path, refused: Refused) -> None:
    inner = pickle.dumps([Evil(tmp_path / "canary")])
    dtype = nvidia_pickle.Call(nvidia_pickle.Global("numpy", "dtype"), "O8", False, True)
    scalar = nvidia_pickle.Call(nvidia_pickle.Global("numpy._core.multiarray", "scalar"), dtype, inner)
    buffer = nvidia_pickle.Call(nvidia_pickle.Global("numpy._core.numeric", "_frombuffer"), inner, dtype, (1,), "C")
    for hostile, error in ((scalar, "DamagedCheckpointError"), (buffer, "UnsafeCheckpointError")):
        refused(dumps({"G_ema": hostile}), error)


def test_code_in_the_header_of_an_array_is_not_run(tmp_path: Path, refused: Refused) -> None:
    header = (
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': (open({str(tmp_path / 'canary')!r}, 'w'),)}}\n".encode()
    )
    refused(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header, "DamagedCheckpointError", "latents")
