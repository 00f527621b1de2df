"""A pickle reader that executes nothing: it knows a short list of globals and returns everything else as inert data.

A pickle is a program that can call only what `find_class` returns, so that method decides what a file can do:

- globals on the allow list rebuild tensors, numpy arrays of plain numbers and plain containers;
- any other class becomes a `Record`, which stores the state of the object and has no behavior;
- a call of anything else raises UnsafeCheckpointError.

`pickle_machine` bounds the other instructions. Tensors and arrays together never take more memory than the file has
bytes.
"""

from __future__ import annotations

import codecs
import io
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .errors import DamagedCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, brief
from .pickle_machine import Budget, Inert, PickleMachine, check_key

_STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_NEW_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")
}

_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "u4": "I", "u1": "B", "b1": "?"}

_NUMBERS = {code: np.dtype(code) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")}

_NO_PROGRAMS = {*sys.stdlib_module_names, "__builtin__", "torch", "numpy"}

_MAGIC = 0x1950A86A20F9469CFC6C  # opens a PyTorch archive of the old format

_MOST_CLASSES = 1000  # unknown classes of one file
_MOST_AXES = 16
_MOST_PARTS = 64  # of a path
_LONGEST_TEXT = 1000
_LONGEST_BYTES = 1 << 20  # longer ones are the content of an array, which uses their memory


class Record(Inert):
    """An object whose class is not imported: `state` is what pickle stored, `items` the content of a dict subclass."""

    class_name = ""
    state: Any = None

    items: dict[Any, Any]

    def __new__(cls, *_: object) -> Record:
        record = object.__new__(cls)
        record.items = {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def extend(self, items: list[Any]) -> None:
        """Ignore the content of a list subclass."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The object's `__dict__`. Raises ValueError where the file stores something else."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        if state is None:
            return {}
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of a {self.class_name or 'record'} is {brief(state)}, expected a dict")
        return state


class Settings(dict[str, Any]):
    """Stands in for dnnlib's EasyDict."""

    def __init__(self, *_: object) -> None:
        """Ignore arguments: the items follow one by one."""


class Array(Record):
    """A numpy array: `tensor` holds its numbers, None for an array of text."""

    tensor: Tensor | None = None
    charge: Callable[[int], None]

    def __setstate__(self, state: Any) -> None:
        _, size, dtype, fortran, content = state
        self.fill(content, dtype, size, "F" if fortran else "C")

    def fill(self, content: bytes | bytearray, dtype: _Dtype, size: tuple[int, ...], order: Any) -> Array:
        if dtype.code.startswith("O"):
            raise UnsafeCheckpointError(f"an array of Python objects ({dtype.code}) was not read. Save plain numbers.")
        if dtype.code in _NUMBERS:
            dtype.check_order()
            self.charge(len(content))
            numbers = np.frombuffer(content, _NUMBERS[dtype.code]).reshape(size, order=order)
            self.tensor = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        return self


class _Dtype(Record):
    """Stands in for numpy.dtype, of which only the code ("f4") and the byte order are used."""

    code = ""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code[:8].removeprefix("<")

    def check_order(self) -> None:
        if self.code.startswith(">") or (isinstance(self.state, tuple) and self.state[1] == ">"):
            raise UnsupportedCheckpointError(f"an array of big-endian numbers ({self.code}) is not supported.")


class _Foreign(type):
    """The type of stand-ins for unknown names. Calling one does nothing: it makes a record of a class, or is refused.

    The name of a class of some program (an enum, for example) begins with a capital letter. Whatever is called in the
    standard library, torch or numpy is refused: no file of weights does that without ill intent.
    """

    path: Path

    def __call__(cls, *_: object, **__: object) -> Any:
        package, name = cls.__qualname__.partition(".")[0], cls.__qualname__.rpartition(".")[2]
        if name[:1].isupper() and package not in _NO_PROGRAMS:
            return Record.__new__(cls)  # type: ignore[arg-type]
        raise UnsafeCheckpointError.for_global(cls.path, cls.__qualname__)


@dataclass(frozen=True, repr=False)  # the representation would print every byte
class Storage:
    """The bytes that tensors are views of, and the type of their numbers."""

    content: torch.UntypedStorage
    dtype: torch.dtype


LoadStorage = Callable[[str, int, torch.dtype], torch.UntypedStorage]  # (key, count of numbers, their type)


class Unpickler(PickleMachine):
    """Reads a pickle with the allow list of this module.

    Args:
        budget: of the file.
        load_storage: returns the content of a storage that lies outside the pickle; None: there are none, and the
            pickle holds none either.
        nested: the pickle is part of another one, and must not hold further ones.
    """

    def __init__(
        self, file: BinaryIO, budget: Budget, load_storage: LoadStorage | None = None, nested: bool = False
    ) -> None:
        super().__init__(file, budget)
        self.path, self.load_storage = budget.path, load_storage
        self.allowed = _allow_list(budget)
        if nested:
            del self.allowed["torch.storage", "_load_from_bytes"]
        self.foreign: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        reference = f"{module}.{name}"
        if reference not in self.foreign:
            if len(self.foreign) == _MOST_CLASSES:
                raise DamagedCheckpointError(f"{self.path}: a pickle of more than {_MOST_CLASSES} unknown classes.")
            namespace = {"__qualname__": reference, "class_name": name, "path": self.path}
            self.foreign[reference] = _Foreign(reference, (Record,), namespace)
        return self.foreign[reference]

    def persistent_load(self, pid: Any) -> Storage:
        is_storage = (
            isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)
        )
        if self.load_storage is None or not is_storage or not isinstance(pid[2], str | int):
            raise UnsupportedCheckpointError(f"{self.path}: it refers to {brief(pid)}, which is outside the file.")
        if type(pid[4]) is not int or pid[4] < 0:
            raise DamagedCheckpointError(
                f"{self.path}: storage {pid[2]} has {brief(pid[4])} numbers, expected a count."
            )
        return Storage(self.load_storage(str(pid[2]), pid[4], pid[1]), pid[1])


def read_old_archive(file: BinaryIO, budget: Budget, nested: bool = False) -> Any:
    """Read the archive format of PyTorch before version 1.6: a few pickles, then the content of the storages."""
    path = budget.path
    storages: dict[str, tuple[int, torch.UntypedStorage]] = {}

    def reserve(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        if key not in storages:
            budget.charge(count * dtype.itemsize)
            storages[key] = count, torch.UntypedStorage(count * dtype.itemsize)
        return storages[key][1]

    magic, _, system = (Unpickler(file, budget, nested=nested).load() for _ in range(3))
    if magic != _MAGIC or not system.get("little_endian", True):
        raise UnsupportedCheckpointError(f"{path}: a PyTorch archive of an unknown format or byte order.")
    content = Unpickler(file, budget, reserve, nested).load()
    keys = Unpickler(file, budget, nested=nested).load()
    # A storage that is not listed would keep whatever the memory held before.
    if not isinstance(keys, list) or sorted(map(_text, keys)) != sorted(storages):
        raise DamagedCheckpointError(f"{path}: the list of its storages is not complete. Download or copy it again.")
    for key in keys:
        count, storage = storages[str(key)]
        target = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if struct.unpack("<q", file.read(8)) != (count,) or file.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise DamagedCheckpointError(f"{path}: damaged or cut short. Download or copy it again.")
    return content


def _text(value: object) -> str:
    """A part of a path, a device or a class name. Containers are not converted: they may be nested without end."""
    return str(value)[:_LONGEST_TEXT] if isinstance(value, str | int) else brief(value)


def _allow_list(budget: Budget) -> dict[tuple[str, str], Any]:
    """All that a file can call. The functions are new for each file, so that no file can change them for the next."""
    path = budget.path

    def text(value: object) -> str:
        budget.read()
        result = _text(value)
        budget.copy(len(result))
        return result

    def persistent(meta: Mapping[str, Any]) -> Record:  # the original compiles and runs meta["module_src"] here
        record = Record()
        record.class_name, record.state = text(meta["class_name"]), meta["state"]
        return record

    def old_style(cls: type, *_: object) -> Any:  # how protocols 0 and 1 create an object
        if not isinstance(cls, _Foreign):
            raise UnsafeCheckpointError.for_global(path, f"copyreg._reconstructor({brief(cls)})")
        return Record.__new__(cls)  # type: ignore[arg-type]

    def storage(content: bytes) -> Storage:
        stored = read_old_archive(io.BytesIO(content), budget, nested=True)
        if not isinstance(stored, Storage):
            raise UnsupportedCheckpointError(f"{path}: got {brief(stored)} where a storage was expected.")
        return stored

    def tensor(stored: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
        if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list) or len(size) > _MOST_AXES:
            raise DamagedCheckpointError(f"{path}: a tensor of size {brief(size)} and stride {brief(stride)}.")
        if any(type(number) is not int for number in (offset, *size, *stride)):
            raise DamagedCheckpointError(f"{path}: the sizes of a tensor are not integers.")
        # Tensor.set_ would enlarge a storage that is too small, so the bounds are checked here.
        needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
        available = stored.content.nbytes() // stored.dtype.itemsize
        if min((offset, *size, *stride)) < 0 or needed > available:
            raise DamagedCheckpointError(
                f"{path}: a tensor of {list(size)} numbers reaches beyond its storage of {available}. "
                "The file was changed; take it from another place."
            )
        if math.prod(size) * stored.dtype.itemsize > budget.size:  # a stride of 0 repeats one number
            raise DamagedCheckpointError(
                f"{path}: a tensor claims {list(size)} numbers, more than the whole file holds; it was not read. "
                "Take the file from another place."
            )
        return torch.empty(0, dtype=stored.dtype).set_(stored.content, offset, size, stride)

    def retyped(stored: Storage, offset: int, size: Any, stride: Any, *options: object) -> Tensor:
        """A tensor of a type that has no storage of its own, (requires_grad, hooks, dtype) being its options."""
        dtype = _NEW_DTYPES.get(options[2]) if isinstance(options[2], str) else None
        if dtype is None:
            raise UnsupportedCheckpointError(f"{path}: a tensor of the type {brief(options[2])} is not supported.")
        return tensor(Storage(stored.content, dtype), offset, size, stride)

    def parameter(data: Any, *_: object) -> Any:
        return data

    def dropped(*_: object) -> None:
        """Dates and times, which no network needs."""

    def typed(function: Callable[..., Any], _: object, arguments: tuple[Any, ...], *__: object) -> Any:
        if function not in (tensor, parameter):
            raise UnsafeCheckpointError.for_global(path, brief(function))
        return function(*arguments)

    def special(*_: object) -> Tensor:  # sparse, quantised, nested: refused with its name once that is known
        return torch.empty(0, device="meta")

    def array(*_: object) -> Array:
        created = Array()
        created.charge = budget.charge
        return created

    def array_of(content: bytes, dtype: _Dtype, size: tuple[int, ...], order: Any) -> Array:  # protocol 5
        return array().fill(content, dtype, size, order)

    def scalar(dtype: _Dtype, content: bytes) -> Any:  # numpy's own would take pickled objects as well
        return struct.unpack(f"<{_SCALARS[dtype.code]}", content)[0]

    def encode(content: str, _: str = "latin1") -> bytes | bytearray:  # how pickles of protocol 2 spell bytes
        budget.copy(len(content))
        if len(content) <= _LONGEST_BYTES:
            return codecs.latin_1_encode(content)[0]
        result = bytearray(len(content))
        for start in range(0, len(content), _LONGEST_BYTES):
            part = slice(start, start + _LONGEST_BYTES)
            result[part] = codecs.latin_1_encode(content[part])[0]
        return result

    def joined(*parts: object) -> str:
        return str(PurePosixPath(*map(text, parts[:_MOST_PARTS])))

    def device(*parts: object) -> str:
        return ":".join(map(text, parts[:_MOST_PARTS]))

    def mapping(*arguments: object) -> OrderedDict[Any, Any]:  # Python 2 passes [[key, value], ...], others set items
        result: OrderedDict[Any, Any] = OrderedDict()
        for key, value in copied(arguments[-1:]):
            result[check_key(path, key)] = value
        return result

    def copied(arguments: tuple[object, ...]) -> Iterable[Any]:
        items = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
        budget.copy(100 * len(items))  # bytes of an entry of a set or dict
        return items

    def tuple_of(*arguments: object) -> tuple[Any, ...]:
        return tuple(copied(arguments))

    def set_of(*arguments: object) -> set[Any]:
        return {check_key(path, item) for item in copied(arguments)}

    allowed: dict[tuple[str, str], Any] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent,
        ("copyreg", "_reconstructor"): old_style,
        ("copy_reg", "_reconstructor"): old_style,
        ("torch.storage", "_load_from_bytes"): storage,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_tensor_v3"): retyped,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): typed,
        ("torch.storage", "UntypedStorage"): torch.uint8,
        ("torch.serialization", "_get_layout"): device,
        ("_codecs", "encode"): encode,
        ("dnnlib.util", "EasyDict"): Settings,
        ("dnnlib", "EasyDict"): Settings,
        ("collections", "OrderedDict"): mapping,
        ("collections", "defaultdict"): mapping,
        ("collections", "Counter"): parameter,
        ("builtins", "set"): set_of,
        ("__builtin__", "set"): set_of,
        ("builtins", "frozenset"): set_of,
        ("__builtin__", "frozenset"): set_of,
        ("torch", "Size"): tuple_of,
        ("torch", "device"): device,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): Array,
    }
    for name in ("sparse_tensor", "sparse_csr_tensor", "qtensor", "nested_tensor", "meta_tensor_no_storage"):
        allowed["torch._utils", f"_rebuild_{name}"] = special
    for home in ("numpy.core", "numpy._core"):  # before and since numpy 2
        allowed[f"{home}.multiarray", "scalar"] = scalar
        allowed[f"{home}.multiarray", "_reconstruct"] = array
        allowed[f"{home}.numeric", "_frombuffer"] = array_of
    for home in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            allowed[home, name] = joined
    for name in ("datetime", "date", "time", "timedelta", "timezone"):
        allowed["datetime", name] = dropped
    for name, dtype in _STORAGES.items():
        allowed["torch", name] = dtype
    usual = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
    for name in (*usual, *_NEW_DTYPES):
        allowed["torch", name] = name
    return allowed
