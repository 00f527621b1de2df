"""The only opener of model files. A file is recognised by its content; nothing a file holds is ever run.

Containers: safetensors; PyTorch archives, new (zip) and old, read with `weights_only=True`; pickles of
NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3, read by an unpickler that knows a short list of harmless globals;
numpy's .npy and .npz, of numbers only. Those pickles carry the source text of their own classes for their loader to
execute: here it stays text.
"""

import codecs
import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import UnsafeCheckpointError, UnsupportedCheckpointError, _blocked


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
            raise UnsupportedCheckpointError(
                f"{self.path}: a TensorFlow StyleGAN2 pickle. Convert it first with "
                "legacy.py of NVlabs/stylegan2-ada-pytorch, then load the result."
            )
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
        raise UnsupportedCheckpointError(
            f"{path}: a pickle of {type(content).__name__} without networks in it. "
            "Expected the G_ema, G, D of an NVIDIA training run."
        )
    tensors: dict[str, Tensor] = {}
    hints: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, _Record):
            attributes: dict[str, Any] = {}
            _walk(str(key), value, tensors, attributes)
            hints[str(key)] = {
                "class_name": value.class_name,
                "init_args": value.state.get("_init_args", ()),
                "init_kwargs": value.state.get("_init_kwargs", {}),
                "attributes": attributes,
            }
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
