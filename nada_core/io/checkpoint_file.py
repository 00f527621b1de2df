"""The only opener of model files. A file is recognised by its content; nothing a file holds is ever run.

Containers: safetensors; PyTorch archives, new (zip) and old, read with `weights_only=True`; pickles of
NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3, read by an unpickler that knows a short list of harmless globals;
numpy's .npy and .npz, of numbers only. Those pickles carry the source text of their own classes for their loader to
execute: here it stays text.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError
from .metadata import read_metadata
from .pickled_objects import read_pickle
from .torch_archive import read_torch

BUILTIN = Path(__file__).parents[1] / "portraits" / "weights"

_OLD_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_LARGEST_ARRAYS = 4 << 30  # bytes of a packed .npz; a small file may promise any number of them


@dataclass(frozen=True)
class RawCheckpoint:
    """What a file holds, before anybody asked which network it is."""

    tensors: dict[str, Tensor]  # nested names process_group by dots: "g_ema.conv1.conv.weight"; on the CPU, as stored
    hints: dict[str, Any]  # everything else: metadata, training arguments, constructor arguments
    container: str  # "safetensors" | "torch" | "nvidia-pickle" | "numpy"
    sha256: str


def read_checkpoint(path: str | Path) -> RawCheckpoint:
    """Read a file of weights. Raises CheckpointError, one of its three kinds where the file exists."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    with path.open("rb") as file:
        container = _recognise(file, path)
    try:
        tensors, hints = _READERS[container](path)
        broken = _broken(path, tensors, container != "numpy")
    except CheckpointError:
        raise
    except Exception as error:  # a parser raises whatever the bytes lead it to; none of it is lost
        raise DamagedCheckpointError(
            f"{path}: damaged or cut short ({type(error).__name__}: {error}). Download or copy it again."
        ) from error
    if broken:
        raise DamagedCheckpointError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, the first "
            f"is {broken[0]}. The training that wrote it diverged; take an earlier snapshot."
        )
    return RawCheckpoint(tensors, hints, container, sha256(path))


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _recognise(file: BinaryIO, path: Path) -> str:
    head = file.read(512)
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise DamagedCheckpointError(f"{path}: the file is empty. Download or copy it again.")
    # First, because safetensors opens with the length of its header, whose low byte may look like any other mark.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        raise DamagedCheckpointError(f"{path}: a git-lfs pointer, not the weights. Run `git lfs pull` in that folder.")
    if head.lstrip().startswith(b"<"):
        raise DamagedCheckpointError(
            f"{path}: a web page, not a model. The download answered with an error or a "
            "confirmation page; open the address in a browser and download again."
        )
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK\x03\x04") and _is_npz(path)):
        return "numpy"
    if head.startswith((b"PK\x03\x04", _OLD_TORCH_MAGIC)):
        return "torch"
    if head.startswith(b"\x80"):
        return "nvidia-pickle"
    raise UnsupportedCheckpointError(
        f"{path}: neither safetensors, nor a PyTorch archive, nor a pickle, nor arrays "
        f"of numpy; it begins with {head[:8]!r}. Expected a .safetensors, .pt, .pkl, "
        ".npy or .npz file."
    )


def _is_npz(path: Path) -> bool:
    """Whether a zip archive holds arrays of numpy and nothing else."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _broken(path: Path, tensors: Mapping[str, Tensor], whole: bool) -> list[str]:
    """Names of tensors that hold NaN or infinity. Refuses those that are no plain numbers of this file: sparse,
    quantised, without content, or one number spread over more memory than there is. whole: whether the file holds
    every number as it is; in a packed one they may be fewer."""
    size = path.stat().st_size
    broken = []
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise UnsupportedCheckpointError(
                f"{path}: {name} is not a plain tensor (it is sparse, nested, quantised "
                "or without content). Save dense weights in float32 or float16."
            )
        if whole and value.numel() * value.itemsize > size:
            raise DamagedCheckpointError(
                f"{path}: {name} claims {list(value.shape)} numbers, more than the whole file "
                "holds; it was not read. Take the file from another place."
            )
        if value.is_floating_point():
            numbers = value.float() if value.itemsize == 1 else value  # float8 has few operations of its own
            broken += [] if numbers.isfinite().all() else [name]
    return broken


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        # load_file maps the file; the copies let go of it, so that it can be replaced on Windows.
        mapped = safetensors.torch.load_file(path)
        return {name: value.clone() for name, value in mapped.items()}, read_metadata(path)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}). Copy it again.") from error


def _read_numpy(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import numpy

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > _LARGEST_ARRAYS:
                raise UnsupportedCheckpointError(
                    f"{path}: packed arrays of more than {_LARGEST_ARRAYS >> 30} GiB. Save only those that are needed."
                )
    try:
        with path.open("rb") as file:
            content = numpy.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, numpy.lib.npyio.NpzFile) else {"array": content}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UnsafeCheckpointError(
            f"{path}: holds pickled objects beside numbers, and those were not opened. Save "
            "plain arrays: one a file (.npy), or several by name (.npz)."
        ) from error
    plain = {name: value for name, value in arrays.items() if value.dtype.kind in "fiub"}
    tensors = {name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) for name, value in plain.items()}
    return tensors, {name: value.tolist() for name, value in arrays.items() if name not in plain}


_READERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "safetensors": _read_safetensors,
    "torch": read_torch,
    "nvidia-pickle": read_pickle,
    "numpy": _read_numpy,
}
