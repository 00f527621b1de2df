"""PyTorch archives (.pt, .pth), of the zip format and of the older one, read without `torch.load`.

The pickle inside goes through the allow list of `unpickler`, so whole modules are data as well as state dicts.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import DamagedCheckpointError, UnsupportedCheckpointError
from .pickled_objects import flatten
from .unpickler import Unpickler, read_old_archive


def read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an archive that `torch.save` wrote."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        content = _read_zip(path) if is_zip else read_old_archive(file, path, path.stat().st_size)
    return flatten(content)


def _read_zip(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise DamagedCheckpointError(f"{path}: a zip archive that was cut short. Download or copy it again.")
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise UnsupportedCheckpointError(
                f"{path}: a zip archive without weights in PyTorch's format. If it is a packed download, unpack it "
                "first."
            )
        if "constants.pkl" in names:
            raise UnsupportedCheckpointError(
                f"{path}: a TorchScript program (as OpenAI's CLIP files are), "
                "not a file of weights. Give the state-dict version of the model."
            )
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise UnsupportedCheckpointError(f"{path}: big-endian numbers are not supported.")
        return _read_members(path, archive, names)


def _read_members(path: Path, archive: zipfile.ZipFile, names: dict[str, str]) -> Any:
    storages: dict[str, torch.UntypedStorage] = {}

    def stored(name: str) -> zipfile.ZipInfo:
        info = archive.getinfo(names[name])
        if info.compress_type != zipfile.ZIP_STORED:  # PyTorch does not compress, and a small file could promise much
            raise DamagedCheckpointError(f"{path}: {name} is compressed, which PyTorch does not do. Save it again.")
        return info

    def load(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        if key not in storages:
            info, size = stored(f"data/{key}"), count * dtype.itemsize
            unpickler.charge(size)
            if info.file_size != size:
                raise DamagedCheckpointError(
                    f"{path}: storage {key} has {info.file_size} bytes, expected {size}. Download or copy it again."
                )
            storages[key] = torch.UntypedStorage(size)
            with archive.open(info) as member:
                if size:
                    member.readinto(torch.empty(0, dtype=torch.uint8).set_(storages[key]).numpy())  # type: ignore[attr-defined]
        return storages[key]

    unpickler = Unpickler(io.BytesIO(archive.read(stored("data.pkl"))), path, path.stat().st_size, load)
    return unpickler.load()
