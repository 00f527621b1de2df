"""The only opener of model files. A file is recognised by its content; nothing a file holds is ever run.

Containers: safetensors; PyTorch archives, new (zip) and old, read with `weights_only=True`; pickles of
NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3, read by an unpickler that knows a short list of harmless globals;
numpy's .npy and .npz, of numbers only. Those pickles carry the source text of their own classes for their loader to
execute: here it stays text.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its weights."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}).") from error


def read_description(path: str | Path, hints: Mapping[str, Any], newest: int) -> dict[str, Any]:
    """What a file of ours says about itself, its `provenance` as a dict. newest: the latest version that is known.

    Raises CheckpointError for a description that cannot be read and for a newer version.
    """
    try:
        version, told = json.loads(hints["version"]), dict(json.loads(hints.get("provenance", "{}")))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path}: its description cannot be read ({type(error).__name__}: {error}). The "
            "file was changed; copy it again."
        ) from error
    if not isinstance(version, int) or version > newest:
        raise UnsupportedCheckpointError(
            f"{path}: the file has format version {version}, known is {newest}. Update this package."
        )
    return {**hints, "provenance": told}


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: `path` holds either what it held before or all of the new file."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with _replacing(Path(path)) as temporary:  # save_file would keep the file from all users but one
        temporary.write_bytes(safetensors.torch.save(content, metadata=dict(metadata)))


def write_torch(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a PyTorch archive of tensors and plain values atomically, for programs that read nothing else."""
    with _replacing(Path(path)) as temporary:
        torch.save(dict(content), temporary)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Hands out a temporary path in the same folder; on success it becomes `path`, on failure it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
