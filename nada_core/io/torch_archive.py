"""PyTorch archives (.pt, .pth), of the zip format and of the older one, read without `torch.load`.

The pickle inside goes through the allow list of `unpickler`, so whole modules are data as well as state dicts.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import DamagedCheckpointError, UnsupportedCheckpointError
from .pickle_machine import Budget
from .pickled_objects import flatten
from .unpickler import Unpickler, read_old_archive
from .zip_archive import buffered, open_zip


def read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an archive that `torch.save` wrote."""
    budget = Budget(path, path.stat().st_size)
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            return flatten(read_old_archive(file, budget))
    return flatten(_read_zip(path, budget))


def _read_zip(path: Path, budget: Budget) -> Any:
    with open_zip(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            budget.refuse("several folders at the top of one PyTorch archive")
        if "data.pkl" not in members:
            raise UnsupportedCheckpointError(
                f"{path}: a zip archive without weights in PyTorch's format. If it is a packed download, unpack it "
                "first."
            )
        if "constants.pkl" in members:
            raise UnsupportedCheckpointError(
                f"{path}: a TorchScript program (as OpenAI's CLIP files are), "
                "not a file of weights. Give the state-dict version of the model."
            )
        for name, info in members.items():  # a small file could promise much
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise DamagedCheckpointError(f"{path}: {name} is compressed, which PyTorch does not do. Save it again.")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise UnsupportedCheckpointError(f"{path}: big-endian numbers are not supported.")
        return _read_members(archive, members, budget)


def _read_members(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], budget: Budget) -> Any:
    storages: dict[str, torch.UntypedStorage] = {}

    def load(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        if key not in storages:
            info, size = members[f"data/{key}"], count * dtype.itemsize
            budget.charge(size)
            if info.file_size != size:
                raise DamagedCheckpointError(
                    f"{budget.path}: storage {key} has {info.file_size} bytes, expected {size}. Download or copy it "
                    "again."
                )
            storages[key] = torch.UntypedStorage(size)
            with buffered(archive, info) as member:
                target = memoryview(torch.empty(0, dtype=torch.uint8).set_(storages[key]).numpy())  # type: ignore[arg-type]
                if size and member.readinto(target) != size:  # the rest would keep what the memory held before
                    budget.refuse(f"storage {key} is cut short")
        return storages[key]

    with buffered(archive, members["data.pkl"]) as member:
        return Unpickler(member, budget, load).load()
