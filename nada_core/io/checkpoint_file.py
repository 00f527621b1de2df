"""The only reader of model files: any supported container becomes tensors and plain values.

The content, not the name, decides on the container: safetensors, PyTorch archives (`torch_archive`), other pickles
(`pickled_objects`), numpy's .npy and .npz. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import math
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
from .zip_archive import open_zip

BUILTIN = Path(__file__).parents[1] / "portraits" / "weights"

_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_UNPACKED = 64 << 20  # bytes by which the arrays of an .npz may exceed the file
_MOST_SHARED = 4  # the size of all tensors, in sizes of the file
_LONGEST_HEADER = 10_000  # bytes of the header of an array, the limit of numpy
_ATTEMPTS = 20  # readings of a file that another process replaces meanwhile
_MOST_TEXTS = 1000  # elements of an array of text

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
    for _ in range(_ATTEMPTS):
        before = _version(path)
        try:
            with path.open("rb") as file:  # while it is open, no other file gets its inode number
                result = _read(path, file)
                if _version(path) == before:
                    return result
        except CheckpointError:
            if _version(path) == before:
                raise
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror}). Check its permissions.") from error
    raise CheckpointError(f"{path}: another process wrote the file {_ATTEMPTS} times while it was read. Read it later.")


def _version(path: Path) -> tuple[int, ...]:
    """Values that change when the file is replaced; none without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path, file: BinaryIO) -> RawCheckpoint:
    try:
        container = _container(file, path)
        tensors, hints = _READERS[container](path)
        broken = _check_tensors(path, tensors, compressed=container == "numpy")
        digest = sha256(path)
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
    return RawCheckpoint(tensors, hints, container, digest)


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
    with open_zip(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], compressed: bool) -> list[str]:
    """Names of tensors with NaN or infinity; refuses tensors that are not dense or larger than an uncompressed file."""
    size = path.stat().st_size
    total = 0
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            raise UnsupportedCheckpointError(
                f"{path}: {name} is not a plain tensor (it is sparse, nested, quantized or without content). Save "
                "dense weights in float32 or float16."
            )
        total += value.numel() * value.itemsize
        if not compressed and total > _MOST_SHARED * size:  # a file may hold a network under several names
            raise DamagedCheckpointError(
                f"{path}: the tensors up to {name} take {total} bytes, more than {_MOST_SHARED} times the whole file; "
                "they repeat the same numbers. Take the file from another place."
            )
    return [name for name, value in tensors.items() if not _is_finite(value)]


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    if value.itemsize == 1:  # no operation reads float8
        return all(bool(part.float().isfinite().all()) for part in value.flatten().split(1 << 20))
    return bool(torch.stack(value.aminmax()).isfinite().all())  # NaN propagates; no copy of the tensor is made


def _read_safetensors(path: Path) -> Content:
    metadata = read_metadata(path)
    try:
        # load_file maps the file; the copies release it, so that it can be replaced on Windows.
        mapped = safetensors.torch.load_file(path)
        return {name: value.clone() for name, value in mapped.items()}, metadata
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}). Copy it again.") from error


def _read_numpy(path: Path) -> Content:
    arrays: dict[str, Any] = {}
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            arrays["array"] = _read_array(path, file, path.stat().st_size)
    else:
        with open_zip(path) as archive:
            members = archive.infolist()
            if sum(info.file_size for info in members) > path.stat().st_size + _MOST_UNPACKED:
                raise UnsupportedCheckpointError(
                    f"{path}: its arrays take {_MOST_UNPACKED >> 20} MiB more than the file. Save them uncompressed."
                )
            for info in members:
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _read_array(path, member, info.file_size)
    numeric = {name: value for name, value in arrays.items() if value.dtype.kind in "fiub"}
    tensors = {
        name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
        for name, value in numeric.items()
    }
    texts = {name: value for name, value in arrays.items() if value.dtype.kind in "US" and value.size <= _MOST_TEXTS}
    return tensors, {name: value.tolist() for name, value in texts.items()}


def _read_array(path: Path, file: Any, size: int) -> Any:
    """Read an array of a file of `size` bytes. numpy would allocate what the header claims before it reads."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if version > (3, 0) or length > _LONGEST_HEADER:
        raise DamagedCheckpointError(f"{path}: no array of numpy: version {version}, header of {length} bytes.")
    file.seek(npy.MAGIC_LEN)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise UnsafeCheckpointError(
            f"{path}: holds pickled objects, which were not opened. Save plain arrays: one per file (.npy), or several "
            "by name (.npz). The latents.npy of ReStyle is a dict from image name to one latent per iteration; if you "
            "trust the file, save the last one of an image: numpy.save('one.npy', numpy.load('latents.npy', "
            "allow_pickle=True).item()['NAME.jpg'][-1])."
        )
    if math.prod(shape) * dtype.itemsize > size:
        raise DamagedCheckpointError(
            f"{path}: an array of shape {list(shape)} in {size} bytes. Download or copy the file again."
        )
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


_READERS: dict[str, Callable[[Path], Content]] = {
    "safetensors": _read_safetensors,
    "torch": read_torch,
    "nvidia-pickle": read_pickle,
    "numpy": _read_numpy,
}
