"""The only opener of model files. A file is recognised by its content; nothing a file holds is ever run.

Containers: safetensors; PyTorch archives, new (zip) and old, read with `weights_only=True`; pickles of
NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3, read by an unpickler that knows a short list of harmless globals;
numpy's .npy and .npz, of numbers only. Those pickles carry the source text of their own classes for their loader to
execute: here it stays text.
"""

import argparse
import codecs
import hashlib
import io
import json
import os
import pickle
import re
import secrets
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

BUILTIN = Path(__file__).parent / "portraits" / "weights"

_OLD_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_ARRAYS = 4 << 30  # bytes of a packed .npz; a small file may promise any number of them


class CheckpointError(ValueError):
    """A model file cannot be used. The message says what was found and what to do next."""


class DamagedCheckpointError(CheckpointError):
    """Not the file it was meant to be: cut short, a web page, a pointer, weights that are not numbers."""


class UnsafeCheckpointError(CheckpointError):
    """Reading it would mean calling something that is not on the list of harmless things."""


class UnsupportedCheckpointError(CheckpointError):
    """Sound, but of a kind that is not read here."""


@dataclass(frozen=True)
class RawCheckpoint:
    """What a file holds, before anybody asked which network it is."""

    tensors: dict[str, Tensor]  # nested names joined by dots: "g_ema.conv1.conv.weight"; on the CPU, as stored
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
        raise DamagedCheckpointError(f"{path}: damaged or cut short ({type(error).__name__}: {error}). "
                                     "Download or copy it again.") from error
    if broken:
        raise DamagedCheckpointError(f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, the first "
                                     f"is {broken[0]}. The training that wrote it diverged; take an earlier snapshot.")
    return RawCheckpoint(tensors, hints, container, sha256(path))


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


def read_description(path: str | Path, raw: RawCheckpoint, newest: int) -> dict[str, Any]:
    """What a file of ours says about itself, its `provenance` as a dict. newest: the latest version that is known.

    Raises CheckpointError for a description that cannot be read and for a newer version.
    """
    try:
        version, told = json.loads(raw.hints["version"]), dict(json.loads(raw.hints.get("provenance", "{}")))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{path}: its description cannot be read ({type(error).__name__}: {error}). The "
                                     "file was changed; copy it again.") from error
    if not isinstance(version, int) or version > newest:
        raise UnsupportedCheckpointError(f"{path}: the file has format version {version}, known is {newest}. Update "
                                         "this package.")
    return {**raw.hints, "provenance": told}


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: `path` holds either what it held before or all of the new file."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with _replacing(Path(path)) as temporary:  # save_file would keep the file from all users but one
        temporary.write_bytes(safetensors.torch.save(content, metadata=dict(metadata)))


def write_torch(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a PyTorch archive of tensors and plain values atomically, for programs that read nothing else."""
    with _replacing(Path(path)) as temporary:
        torch.save(dict(content), temporary)


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
        raise DamagedCheckpointError(f"{path}: a web page, not a model. The download answered with an error or a "
                                     "confirmation page; open the address in a browser and download again.")
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK\x03\x04") and _is_npz(path)):
        return "numpy"
    if head.startswith((b"PK\x03\x04", _OLD_TORCH_MAGIC)):
        return "torch"
    if head.startswith(b"\x80"):
        return "nvidia-pickle"
    raise UnsupportedCheckpointError(f"{path}: neither safetensors, nor a PyTorch archive, nor a pickle, nor arrays "
                                     f"of numpy; it begins with {head[:8]!r}. Expected a .safetensors, .pt, .pkl, "
                                     ".npy or .npz file.")


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
            raise UnsupportedCheckpointError(f"{path}: {name} is not a plain tensor (it is sparse, nested, quantised "
                                             "or without content). Save dense weights in float32 or float16.")
        if whole and value.numel() * value.itemsize > size:
            raise DamagedCheckpointError(f"{path}: {name} claims {list(value.shape)} numbers, more than the whole file "
                                         "holds; it was not read. Take the file from another place.")
        if value.is_floating_point():
            numbers = value.float() if value.itemsize == 1 else value  # float8 has few operations of its own
            broken += [] if numbers.isfinite().all() else [name]
    return broken


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return safetensors.torch.load_file(path), read_metadata(path)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}). Copy it again.") from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            if not zipfile.is_zipfile(path):
                raise DamagedCheckpointError(f"{path}: a zip archive that was cut short. Download or copy it again.")
            with zipfile.ZipFile(path) as archive:
                names = [name.partition("/")[2] for name in archive.namelist()]
            if "data.pkl" not in names:
                raise UnsupportedCheckpointError(f"{path}: a zip archive without weights in PyTorch's format. "
                                                 "If it is a packed download, unpack it first.")
            if "constants.pkl" in names:
                raise UnsupportedCheckpointError(f"{path}: a TorchScript program (as OpenAI's CLIP files are), "
                                                 "not a file of weights. Give the state-dict version of the model.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if not blocked:
            raise DamagedCheckpointError(f"{path}: holds something that is not weights ({error}).") from error
        raise UnsafeCheckpointError(_blocked(path, blocked[1])) from error
    tensors: dict[str, Tensor] = {}
    hints: dict[str, Any] = {}
    _flatten("", content, tensors, hints)
    return tensors, hints


def _flatten(name: str, value: object, tensors: dict[str, Tensor], hints: dict[str, Any]) -> None:
    """Sort a tree of dicts into tensors and the rest. Optimiser states are left behind: they weigh more than the rest
    of the file and nobody reads them."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
    elif isinstance(value, argparse.Namespace):
        hints[name] = vars(value)
    elif isinstance(value, Mapping):
        for key, child in value.items():
            if name or "optim" not in str(key):
                _flatten(f"{name}.{key}" if name else str(key), child, tensors, hints)
    else:
        hints[name] = value


def _read_numpy(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import numpy

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > _LARGEST_ARRAYS:
                raise UnsupportedCheckpointError(f"{path}: packed arrays of more than {_LARGEST_ARRAYS >> 30} GiB. "
                                                 "Save only those that are needed.")
    try:
        with path.open("rb") as file:
            content = numpy.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, numpy.lib.npyio.NpzFile) else {"array": content}
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise UnsafeCheckpointError(f"{path}: holds pickled objects beside numbers, and those were not opened. Save "
                                    "plain arrays: one a file (.npy), or several by name (.npz).") from error
    plain = {name: value for name, value in arrays.items() if value.dtype.kind in "fiub"}
    tensors = {name: torch.from_numpy(value.astype(value.dtype.newbyteorder("="))) for name, value in plain.items()}
    return tensors, {name: value.tolist() for name, value in arrays.items() if name not in plain}


class _Record:
    """A pickled module, as data: `state` is its __dict__."""

    class_name = ""
    state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Settings(dict[str, Any]):
    """Stands in for dnnlib's EasyDict."""

    def __setstate__(self, state: object) -> None:
        """Its items are its whole state."""


class _Dtype(_Record):
    """Stands in for numpy.dtype, of which only the code is of use: "f8"."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code


class _Unpickler(pickle.Unpickler):
    """Knows the globals in `_harmless` and refuses all others. The file can call those, and nothing else."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path
        self.harmless = _harmless()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("dnnlib.tflib.network", "Network"):
            raise UnsupportedCheckpointError(f"{self.path}: a TensorFlow StyleGAN2 pickle. Convert it first with "
                                             "legacy.py of NVlabs/stylegan2-ada-pytorch, then load the result.")
        if module.startswith("torch.nn.modules."):
            return _Record
        if (found := self.harmless.get((module, name))) is None:
            raise UnsafeCheckpointError(_blocked(self.path, f"{module}.{name}"))
        return found


def _harmless() -> dict[tuple[str, str], Any]:
    """The allow list. Our functions are made anew for each file, so that no file can leave a mark on the next."""

    def revive(meta: Mapping[str, Any]) -> _Record:  # the original compiles and runs meta["module_src"] here
        record = _Record()
        record.class_name, record.state = str(meta["class_name"]), meta["state"]
        return record

    def storage(content: bytes) -> Any:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def tensor(stored: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
        empty = torch.empty(0, dtype=stored.dtype)
        return empty.set_(stored._untyped_storage, offset, size, stride)  # torch checks the bounds

    def parameter(data: Tensor, *_: object) -> Tensor:
        return data

    def encode(text: str, _: str = "latin1") -> bytes:  # how pickles of protocol 2 spell bytes
        return codecs.latin_1_encode(text)[0]

    def scalar(kind: _Dtype, content: bytes) -> float:  # numpy's own would take pickled objects as well
        letter = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}[kind.code]
        return float(struct.unpack(f"<{letter}", content)[0])

    def array(*_: object) -> _Record:  # no network keeps weights in numpy arrays
        return _Record()

    allowed: dict[tuple[str, str], Any] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): revive,
        ("torch.storage", "_load_from_bytes"): storage,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("_codecs", "encode"): encode,
        ("dnnlib.util", "EasyDict"): _Settings,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("torch", "Size"): tuple,
        ("torch", "device"): str,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Record,
    }
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
        allowed |= {(home, "scalar"): scalar, (home, "_reconstruct"): array}
    for kind in ("float16", "float32", "float64", "bfloat16", "int32", "int64", "uint8", "bool"):
        allowed["torch", kind] = kind
    return allowed


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        content = _Unpickler(file, path).load()
    if not isinstance(content, dict) or not any(isinstance(value, _Record) for value in content.values()):
        raise UnsupportedCheckpointError(f"{path}: a pickle of {type(content).__name__} without networks in it. "
                                         "Expected the G_ema, G, D of an NVIDIA training run.")
    tensors: dict[str, Tensor] = {}
    hints: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, _Record):
            attributes: dict[str, Any] = {}
            _walk(str(key), value, tensors, attributes)
            hints[str(key)] = {"class_name": value.class_name, "init_args": value.state.get("_init_args", ()),
                               "init_kwargs": value.state.get("_init_kwargs", {}), "attributes": attributes}
        else:
            hints[str(key)] = value
    return tensors, hints


def _walk(name: str, record: _Record, tensors: dict[str, Tensor], attributes: dict[str, Any]) -> None:
    """Collect the tensors of a pickled module under their usual names, and its plain settings beside them."""
    for group in ("_parameters", "_buffers"):
        for key, value in record.state.get(group, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value.detach()
    for key, value in record.state.items():
        if value is None or isinstance(value, bool | int | float | str):
            attributes[f"{name}.{key}".partition(".")[2]] = value
    for key, value in record.state.get("_modules", {}).items():
        if isinstance(value, _Record):
            _walk(f"{name}.{key}", value, tensors, attributes)


def _blocked(path: Path, name: str) -> str:
    return (f"{path}: the file asks for {name}, which is not on the list of harmless globals; it was not called. "
            "If you trust the file, open it with the program that wrote it and save the weights as safetensors.")


_READERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]]] = {
    "safetensors": _read_safetensors, "torch": _read_torch, "nvidia-pickle": _read_pickle,
    "numpy": _read_numpy}
