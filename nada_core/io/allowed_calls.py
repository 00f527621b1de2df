"""The calls that a pickle may make: they rebuild tensors, numpy arrays of plain numbers and plain containers."""

from __future__ import annotations

import codecs
import io
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import DamagedCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, brief
from .inert_objects import Array, Dtype, Foreign, Record, Settings, Storage
from .pickle_machine import Budget, check_key

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

_MOST_AXES = 16
_MOST_PARTS = 64  # of a path
_LONGEST_TEXT = 1000
_LONGEST_BYTES = 1 << 20  # longer ones are the content of an array, which uses their memory


def brief_text(value: object) -> str:
    """A part of a path, a device or a class name. Containers are not converted: they may be nested without end."""
    return str(value)[:_LONGEST_TEXT] if isinstance(value, str | int) else brief(value)


class AllowedCalls:
    """Everything a file can call. The methods are bound anew for each file, so no file can change them for the next.

    Args:
        read_nested: reads a PyTorch archive inside the pickle.
    """

    def __init__(self, budget: Budget, read_nested: Callable[[BinaryIO, Budget], Any]) -> None:
        self.path, self.budget, self.read_nested = budget.path, budget, read_nested

    def table(self) -> dict[tuple[str, str], Any]:
        """The allow list: (module, name) -> what stands in for it."""
        allowed: dict[tuple[str, str], Any] = {
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): self.persistent,
            ("copyreg", "_reconstructor"): self.old_style,
            ("copy_reg", "_reconstructor"): self.old_style,
            ("torch.storage", "_load_from_bytes"): self.storage,
            ("torch._utils", "_rebuild_tensor"): self.tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self.retyped,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self.parameter,
            ("torch._tensor", "_rebuild_from_type_v2"): self.typed,
            ("torch.storage", "UntypedStorage"): torch.uint8,
            ("torch.serialization", "_get_layout"): self.device,
            ("_codecs", "encode"): self.encode,
            ("dnnlib.util", "EasyDict"): Settings,
            ("dnnlib", "EasyDict"): Settings,
            ("collections", "OrderedDict"): self.mapping,
            ("collections", "defaultdict"): self.mapping,
            ("collections", "Counter"): self.parameter,
            ("builtins", "set"): self.set_of,
            ("__builtin__", "set"): self.set_of,
            ("builtins", "frozenset"): self.set_of,
            ("__builtin__", "frozenset"): self.set_of,
            ("torch", "Size"): self.tuple_of,
            ("torch", "device"): self.device,
            ("numpy", "dtype"): Dtype,
            ("numpy", "ndarray"): Array,
        }
        for name in ("sparse_tensor", "sparse_csr_tensor", "qtensor", "nested_tensor", "meta_tensor_no_storage"):
            allowed["torch._utils", f"_rebuild_{name}"] = self.special
        for home in ("numpy.core", "numpy._core"):  # before and since numpy 2
            allowed[f"{home}.multiarray", "scalar"] = self.scalar
            allowed[f"{home}.multiarray", "_reconstruct"] = self.array
            allowed[f"{home}.numeric", "_frombuffer"] = self.array_of
        for home in ("pathlib", "pathlib._local"):
            for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
                allowed[home, name] = self.joined
        for name in ("datetime", "date", "time", "timedelta", "timezone"):
            allowed["datetime", name] = self.dropped
        for name, dtype in _STORAGES.items():
            allowed["torch", name] = dtype
        usual = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
        for name in (*usual, *_NEW_DTYPES):
            allowed["torch", name] = name
        return allowed

    def text(self, value: object) -> str:
        self.budget.read()
        result = brief_text(value)
        self.budget.copy(len(result))
        return result

    def persistent(self, meta: Mapping[str, Any]) -> Record:  # the original compiles and runs meta["module_src"] here
        record = Record()
        record.class_name, record.state = self.text(meta["class_name"]), meta["state"]
        return record

    def old_style(self, cls: type, *_: object) -> Any:  # how protocols 0 and 1 create an object
        if not isinstance(cls, Foreign):
            raise UnsafeCheckpointError.for_global(self.path, f"copyreg._reconstructor({brief(cls)})")
        return Record.__new__(cls)  # type: ignore[arg-type]

    def storage(self, content: bytes) -> Storage:
        stored = self.read_nested(io.BytesIO(content), self.budget)
        if not isinstance(stored, Storage):
            raise UnsupportedCheckpointError(f"{self.path}: got {brief(stored)} where a storage was expected.")
        return stored

    def tensor(
        self, stored: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Tensor:
        if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list) or len(size) > _MOST_AXES:
            raise DamagedCheckpointError(f"{self.path}: a tensor of size {brief(size)} and stride {brief(stride)}.")
        if any(type(number) is not int for number in (offset, *size, *stride)):
            raise DamagedCheckpointError(f"{self.path}: the sizes of a tensor are not integers.")
        # Tensor.set_ would enlarge a storage that is too small, so the bounds are checked here.
        needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else 0
        available = stored.content.nbytes() // stored.dtype.itemsize
        if min((offset, *size, *stride)) < 0 or needed > available:
            raise DamagedCheckpointError(
                f"{self.path}: a tensor of {list(size)} numbers reaches beyond its storage of {available}. "
                "The file was changed; take it from another place."
            )
        if math.prod(size) * stored.dtype.itemsize > self.budget.size:  # a stride of 0 repeats one number
            raise DamagedCheckpointError(
                f"{self.path}: a tensor claims {list(size)} numbers, more than the whole file holds; it was not read. "
                "Take the file from another place."
            )
        return torch.empty(0, dtype=stored.dtype).set_(stored.content, offset, size, stride)

    def retyped(self, stored: Storage, offset: int, size: Any, stride: Any, *options: object) -> Tensor:
        """A tensor of a type that has no storage of its own, (requires_grad, hooks, dtype) being its options."""
        dtype = _NEW_DTYPES.get(options[2]) if isinstance(options[2], str) else None
        if dtype is None:
            raise UnsupportedCheckpointError(f"{self.path}: tensors of the type {brief(options[2])} are not supported.")
        return self.tensor(Storage(stored.content, dtype), offset, size, stride)

    def parameter(self, data: Any, *_: object) -> Any:
        return data

    def dropped(self, *_: object) -> None:
        """Dates and times, which no network needs."""

    def typed(self, function: Callable[..., Any], _: object, arguments: tuple[Any, ...], *__: object) -> Any:
        if function not in (self.tensor, self.parameter):
            raise UnsafeCheckpointError.for_global(self.path, brief(function))
        return function(*arguments)

    def special(self, *_: object) -> Tensor:  # sparse, quantised, nested: refused with its name once that is known
        return torch.empty(0, device="meta")

    def array(self, *_: object) -> Array:
        created = Array()
        created.charge = self.budget.charge
        return created

    def array_of(self, content: bytes, dtype: Dtype, size: tuple[int, ...], order: Any) -> Array:  # protocol 5
        return self.array().fill(content, dtype, size, order)

    def scalar(self, dtype: Dtype, content: bytes) -> Any:  # numpy's own would take pickled objects as well
        return struct.unpack(f"<{_SCALARS[dtype.code]}", content)[0]

    def encode(self, content: str, _: str = "latin1") -> bytes | bytearray:  # how pickles of protocol 2 spell bytes
        self.budget.copy(len(content))
        if len(content) <= _LONGEST_BYTES:
            return codecs.latin_1_encode(content)[0]
        result = bytearray(len(content))
        for start in range(0, len(content), _LONGEST_BYTES):
            part = slice(start, start + _LONGEST_BYTES)
            result[part] = codecs.latin_1_encode(content[part])[0]
        return result

    def joined(self, *parts: object) -> str:
        return str(PurePosixPath(*map(self.text, parts[:_MOST_PARTS])))

    def device(self, *parts: object) -> str:
        return ":".join(map(self.text, parts[:_MOST_PARTS]))

    def mapping(self, *arguments: object) -> OrderedDict[Any, Any]:
        """Python 2 passes [[key, value], ...], later versions set items."""
        result: OrderedDict[Any, Any] = OrderedDict()
        for key, value in self.copied(arguments[-1:]):
            result[check_key(self.path, key)] = value
        return result

    def copied(self, arguments: tuple[object, ...]) -> Iterable[Any]:
        items = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()
        self.budget.copy(100 * len(items))  # bytes of an entry of a set or dict
        return items

    def tuple_of(self, *arguments: object) -> tuple[Any, ...]:
        return tuple(self.copied(arguments))

    def set_of(self, *arguments: object) -> set[Any]:
        return {check_key(self.path, item) for item in self.copied(arguments)}
