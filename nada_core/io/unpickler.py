"""A pickle reader that executes nothing: it knows a short list of globals and returns everything else as inert data.

A pickle is a program that can call only what `find_class` returns, so that method decides what a file can do:

- globals on the allow list rebuild tensors, numpy arrays of plain numbers and plain containers;
- any other class becomes a `Record`, which stores the state of the object and has no behavior;
- a call of anything else raises UnsafeCheckpointError.

`pickle_machine` bounds the other instructions. Tensors and arrays together never take more memory than the file has
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import torch

from .allowed_calls import AllowedCalls, brief_text
from .errors import DamagedCheckpointError, UnsupportedCheckpointError, brief
from .inert_objects import Foreign, Record, Storage
from .pickle_machine import Budget, PickleMachine

_MAGIC = 0x1950A86A20F9469CFC6C  # opens a PyTorch archive of the old format
_MOST_CLASSES = 1000  # unknown classes of one file

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
        self.allowed = AllowedCalls(budget, partial(read_old_archive, nested=True)).table()
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
            self.foreign[reference] = Foreign(reference, (Record,), namespace)
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
    # A storage that is not listed would expose uninitialized memory.
    if not isinstance(keys, list) or sorted(map(brief_text, keys)) != sorted(storages):
        raise DamagedCheckpointError(f"{path}: the list of its storages is not complete. Download or copy it again.")
    for key in keys:
        count, storage = storages[str(key)]
        target = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if struct.unpack("<q", file.read(8)) != (count,) or file.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise DamagedCheckpointError(f"{path}: damaged or cut short. Download or copy it again.")
    return content
