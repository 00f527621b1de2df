"""The only reader of model files: any supported container becomes tensors and plain values.

The content, not the name, decides on the container: safetensors, PyTorch archives (`torch_archive`), other pickles
(`pickled_objects`), numpy's .npy and .npz. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
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

_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_UNPACKED = 4 << 30  # bytes of an .npz; a small archive may expand to any size

Content = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class RawCheckpoint:
    """The content of a model file, before a network claims it."""

    tensors: dict[str, Tensor]  # by dotted names, for example "g_ema.conv1.conv.weight"; on the CPU, as stored
    hints: dict[str, Any]  # everything else: metadata, training and constructor arguments
    container: str  # "safetensors", "torch", "nvidia-pickle" or "numpy"
    sha256: str

    @property
    def kind(self) -> str:
        """`kind` in the metadata of a file of this package; empty for others."""
        return str(self.hints.get("kind", "")) if self.container == "safetensors" else ""


def read_checkpoint(path: str | Path) -> RawCheckpoint:
    """Read a model file of any supported container.

    Raises:
        CheckpointError: for a missing file.
        DamagedCheckpointError: for truncated files, other content than weights, NaN and infinity.
        UnsafeCheckpointError: for pickles that refer to globals which are not on the allow list.
        UnsupportedCheckpointError: for other formats, and tensors that are not dense.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    try:
        with path.open("rb") as file:
            container = _container(file, path)
        tensors, hints = _READERS[container](path)
        broken = _check_tensors(path, tensors, compressed=container == "numpy")
    except CheckpointError:
        raise
    except Exception as error:  # parsers raise any exception on invalid bytes
        raise DamagedCheckpointError(
            f"{path}: damaged or cut short ({type(error).__name__}: {error}). Download or copy it again."
        ) from error
    if broken:
        raise DamagedCheckpointError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, the first is {broken[0]}. The "
            "training that wrote it diverged; use an earlier snapshot."
        )
    return RawCheckpoint(tensors, hints, container, sha256(path))


def sha256(path: str | Path) -> str:
    """Return the hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _container(file: BinaryIO, path: Path) -> str:
    """Which reader takes the file, from its first bytes."""
    head = file.read(512)
    if not head:
        raise DamagedCheckpointError(f"{path}: the file is empty. Download or copy it again.")
    # Checked first: the length at the start of a safetensors file may look like the mark of another container.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        raise DamagedCheckpointError(f"{path}: a git-lfs pointer, not the weights. Run `git lfs pull` in that folder.")
    if head.lstrip().startswith(b"<"):
        raise DamagedCheckpointError(
            f"{path}: a web page, not a model: the download ended at an error or a confirmation page. Open the address "
            "in a browser and download again."
        )
    if head.startswith(b"\x93NUMPY") or (head.startswith(_ZIP) and _is_npz(path)):
        return "numpy"
    if head.startswith((_ZIP, _LEGACY_TORCH)):
        return "torch"
    if head.startswith(b"\x80"):
        return "nvidia-pickle"
    raise UnsupportedCheckpointError(
        f"{path}: got a file that begins with {head[:8]!r}, expected safetensors, a PyTorch archive, a pickle or numpy "
        "arrays (.safetensors, .pt, .pkl, .npy, .npz)."
    )


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], compressed: bool) -> list[str]:
    """Names of tensors with NaN or infinity; refuses tensors that are not dense or larger than an uncompressed file."""
    size = path.stat().st_size
    views = [value.numel() * value.itemsize for value in tensors.values() if value.layout == torch.strided]
    if not compressed and max(views, default=0) <= size and sum(views) > 64 * size:
        raise DamagedCheckpointError(f"{path}: its {len(tensors)} tensors repeat the same numbers over and over.")
    broken = []
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise UnsupportedCheckpointError(
                f"{path}: {name} is not a plain tensor (it is sparse, nested, quantized or without content). Save "
                "dense weights in float32 or float16."
            )
        if not compressed and value.numel() * value.itemsize > size:  # a stride of 0 repeats one number
            raise DamagedCheckpointError(
                f"{path}: {name} claims {list(value.shape)} numbers, more than the whole file holds; it was not read. "
                "Take the file from another place."
            )
        if value.is_floating_point():
            numbers = value.float() if value.itemsize == 1 else value  # float8 has no isfinite
            broken += [] if numbers.isfinite().all() else [name]
    return broken


def _read_safetensors(path: Path) -> Content:
    try:
        # load_file maps the file; the copies release it, so that it can be replaced on Windows.
        mapped = safetensors.torch.load_file(path)
        return {name: value.clone() for name, value in mapped.items()}, read_metadata(path)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}). Copy it again.") from error


def _read_numpy(path: Path) -> Content:
    import numpy

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_UNPACKED:
                raise UnsupportedCheckpointError(
                    f"{path}: packed arrays of more than {_MAX_UNPACKED >> 30} GiB. Save only those that are needed."
                )
    try:
        with path.open("rb") as file:
            content = numpy.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, numpy.lib.npyio.NpzFile) else {"array": content}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UnsafeCheckpointError(
            f"{path}: holds pickled objects, which were not opened. Save plain arrays: one per file (.npy), or several "
            "by name (.npz). The latents.npy of ReStyle is a dict from image name to one latent per iteration; if you "
            "trust the file, save the last one of an image: numpy.save('one.npy', numpy.load('latents.npy', "
            "allow_pickle=True).item()['NAME.jpg'][-1])."
        ) from error
    numeric = {name: value for name, value in arrays.items() if value.dtype.kind in "fiub"}
    tensors = {name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) for name, value in numeric.items()}
    return tensors, {name: value.tolist() for name, value in arrays.items() if name not in numeric}


_READERS: dict[str, Callable[[Path], Content]] = {
    "safetensors": _read_safetensors,
    "torch": read_torch,
    "nvidia-pickle": read_pickle,
    "numpy": _read_numpy,
}
