"""The instructions of pickles, restricted to what model files need and bounded by the size of the file.

Python's unpickler allocates memory for a length before it reads the bytes, grows its memo to any index, hashes any key,
and calls methods of any object on the stack (BUILD, SETITEMS, ADDITEMS, APPENDS). This one, on top of its pure Python
version, changes only plain containers and `Inert` objects.
"""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from .errors import DamagedCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, brief

_OLDEST_TORCH = (2, 6)

_MOST_READS = 1_000_000  # an instruction is one to three reads, and takes 225 bytes of memory at most
_LONGEST_INTEGER = 1024  # bytes
_LONGEST_TEXT = 1 << 20  # bytes; longer strings are numbers that protocol 2 stores as Latin-1

_PurePython: Any = pickle._Unpickler  # the one in C has no methods to override


def check_torch(subject: object) -> None:
    """Raise UnsupportedCheckpointError if this torch is too old for pickles from outside."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        raise UnsupportedCheckpointError(
            f"{subject}: got torch {torch.__version__}, expected 2.6 or newer for files that contain a pickle: older "
            "versions may run code in them (CVE-2025-32434). Update torch, or use a safetensors file."
        )


class Inert:
    """An object that stores what a pickle sets on it, and does nothing else."""

    def __setstate__(self, state: Any) -> None:
        raise NotImplementedError

    def __setitem__(self, key: Any, value: Any) -> None:
        raise NotImplementedError

    def extend(self, items: list[Any]) -> None:
        raise NotImplementedError


class Budget:
    """What reading a file may take, in proportion to its size.

    Args:
        path: of the file, for messages.
        size: of the file in bytes.

    Raises:
        UnsupportedCheckpointError: for a version of torch that is too old for pickles from outside.
    """

    def __init__(self, path: Path, size: int) -> None:
        check_torch(path)
        self.path, self.size = path, size
        self.tensors, self.copies, self.reads = size, 2 * size + (1 << 20), _MOST_READS

    def charge(self, size: int) -> None:
        """Count bytes of tensors and arrays."""
        self.tensors -= size
        if size < 0 or self.tensors < 0:
            self.refuse("its tensors claim more bytes than the whole file holds; they were not read")

    def copy(self, size: int) -> None:
        """Count bytes of other objects that one instruction makes."""
        self.copies -= size
        if self.copies < 0:
            self.refuse("its pickle copies the same content over and over")

    def read(self) -> None:
        """Count one read."""
        self.reads -= 1
        if self.reads < 0:
            self.refuse(f"its pickle has more than {_MOST_READS} instructions")

    def refuse(self, fault: str) -> NoReturn:
        """Raise DamagedCheckpointError."""
        raise DamagedCheckpointError(f"{self.path}: {fault}. Take the file from another place.")


class _Source:
    """The file as the unpickler reads it: lengths beyond the end of the file are refused before they are allocated."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self.file, self.budget = file, budget

    def read(self, size: int) -> bytes:
        self.budget.read()
        if size > self.budget.size:
            self.budget.refuse(f"its pickle announces {size} bytes, more than the whole file holds")
        content = self.file.read(size)
        if len(content) < size:
            raise EOFError("the pickle ends early")
        return content

    def readline(self) -> bytes:
        self.budget.read()
        return self.file.readline()


def check_key(path: Path, key: Any) -> Any:
    """Return a key of a dict or set, if its hash takes constant time and no file can choose many with the same hash.

    The hash of nested tuples is recursive, and takes exponential time if they are shared. That of integers is their
    value modulo 2^61 - 1.
    """
    if isinstance(key, tuple):
        good = len(key) <= 16 and all(isinstance(part, str) for part in key)
    else:
        good = abs(key) < 1 << 60 if isinstance(key, int) else not isinstance(key, frozenset)
    if not good:
        raise DamagedCheckpointError(f"{path}: {brief(key)} is the key of a dict, expected a string or small integer.")
    return key


class PickleMachine(_PurePython):
    """The interpreter of the instructions. Subclasses define `find_class` and `persistent_load`."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        super().__init__(_Source(file, budget))
        self.budget = budget

    def _refuse_on(self, instruction: str, value: object) -> NoReturn:
        raise UnsafeCheckpointError.for_global(self.budget.path, f"{instruction} of {brief(value)}")

    def load_frame(self) -> None:
        self.read(8)  # a hint for reading ahead

    def load_long4(self) -> None:
        (size,) = struct.unpack("<i", self.read(4))
        if not 0 <= size <= _LONGEST_INTEGER:
            self.budget.refuse(f"its pickle holds an integer of {size} bytes")
        self.append(pickle.decode_long(self.read(size)))

    def load_binunicode(self, length: str = "<I") -> None:
        (size,) = struct.unpack(length, self.read(struct.calcsize(length)))
        content = self.read(size)
        # One character beyond Latin-1 makes every character of a string take two or four bytes.
        if size > _LONGEST_TEXT and re.search(b"[\xc4-\xff]", content):
            self.budget.refuse(f"its pickle holds a text of {size} bytes")
        self.append(str(content, "utf-8", "surrogatepass"))

    def load_binunicode8(self) -> None:
        self.load_binunicode("<Q")

    def load_bytearray8(self) -> None:
        self.load_binbytes8()

    def load_unicode(self) -> None:
        content = self.readline()[:-1]
        if len(content) > _LONGEST_TEXT:
            self.budget.refuse(f"its pickle holds a text of {len(content)} bytes")
        self.append(str(content, "raw-unicode-escape"))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(items)

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Inert):
            self._refuse_on("SETITEMS", target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(self.budget.path, key)] = value

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Inert):
            self._refuse_on("APPENDS", target)
        target.extend(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # replaces self.append
        self.append(frozenset(check_key(self.budget.path, item) for item in items))

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if isinstance(target, set):
            target.update(check_key(self.budget.path, item) for item in items)
        elif not isinstance(target, Inert):
            self._refuse_on("ADDITEMS", target)

    def load_build(self) -> None:
        """Set the state of an inert object. A dict has no state but its items; everything else keeps what it is."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.__setstate__(state)
        elif not isinstance(target, dict):
            self._refuse_on("BUILD", target)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            self._refuse_on("REDUCE", function)
        self.append(function(*arguments))

    def load_newobj(self) -> None:
        self.stack.pop()  # the arguments
        self._new(self.stack.pop())

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # the arguments by name
        self.load_newobj()

    def _new(self, cls: Any) -> None:
        if not isinstance(cls, type) or not issubclass(cls, dict | Inert):
            self._refuse_on("NEWOBJ", cls)
        self.append(cls.__new__(cls))  # type: ignore[type-var]

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        """Create an object by INST or OBJ."""
        if args or not isinstance(klass, type):
            self.append(klass(*args))
        else:
            self._new(klass)

    def get_extension(self, code: int) -> NoReturn:
        self._refuse_on("EXT", code)


PickleMachine.dispatch = {
    code: getattr(PickleMachine, method.__name__) for code, method in _PurePython.dispatch.items()
}
