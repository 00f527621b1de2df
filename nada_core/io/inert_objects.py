"""Stand-ins for the objects of a pickle: they store what the file says and do nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UnsafeCheckpointError, UnsupportedCheckpointError, brief
from .pickle_machine import Inert

_NUMBERS = {code: np.dtype(code) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")}

_NO_PROGRAMS = {*sys.stdlib_module_names, "__builtin__", "torch", "numpy"}


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

    def fill(self, content: bytes | bytearray, dtype: Dtype, size: tuple[int, ...], order: Any) -> Array:
        if dtype.code.startswith("O"):
            raise UnsafeCheckpointError(f"an array of Python objects ({dtype.code}) was not read. Save plain numbers.")
        if dtype.code in _NUMBERS:
            dtype.check_order()
            self.charge(len(content))
            numbers = np.frombuffer(content, _NUMBERS[dtype.code]).reshape(size, order=order)
            self.tensor = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        return self


class Dtype(Record):
    """Stands in for numpy.dtype, of which only the code ("f4") and the byte order are used."""

    code = ""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code[:8].removeprefix("<")

    def check_order(self) -> None:
        if self.code.startswith(">") or (isinstance(self.state, tuple) and self.state[1] == ">"):
            raise UnsupportedCheckpointError(f"an array of big-endian numbers ({self.code}) is not supported.")


class Foreign(type):
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
