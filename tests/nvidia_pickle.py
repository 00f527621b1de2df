"""Writes pickles of the shape NVlabs/stylegan2-ada-pytorch gives them, without any of its code."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nada_core.models.stylegan2 import Convolution, Linear, StyleGAN2, ToRGB


class Global:
    """Pickled as a reference to module.name, whether or not such a thing exists here."""

    def __init__(self, module: str, name: str) -> None:
        self.reference = f"{module}\n{name}\n".encode()

    def __call__(self) -> None:
        raise AssertionError("only its name is used")


class Call:
    """Pickled as a call: the reader is asked to evaluate function(*arguments)."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        raise AssertionError("only its result is called, by the reader")


def foreign_class(module: str, name: str) -> type:
    """A class that is pickled as module.name, which does not exist here. Its instances store what is set on them."""
    return type(name, (), {"reference": Global(module, name).reference})


class EasyDict(dict[str, Any]):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return Global("dnnlib.util", "EasyDict"), (), None, None, iter(self.items())


_PurePython: Any = pickle._Pickler


class _Pickler(_PurePython):
    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Global) or (isinstance(obj, type) and "reference" in vars(obj)):
            return self.write(pickle.GLOBAL + obj.reference)
        return super().save(obj, save_persistent_id)


def dump(content: object, path: Path) -> Path:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=3).dump(content)
    path.write_bytes(buffer.getvalue())
    return path


def persistent(class_name: str, state: dict[str, Any], source: str) -> Call:
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


def network(module: nn.Module, clamp: float | None = None, source: str = "raise SystemExit") -> Call:
    """A module of ours, pickled as NVIDIA's would be. `source` is what their loader would execute."""
    buffers: OrderedDict[str, Any] = OrderedDict(module._buffers)
    state: dict[str, Any] = {"training": False, "_parameters": OrderedDict(module._parameters), "_buffers": buffers}
    if isinstance(module, Convolution):
        buffers["resample_filter"] = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8] * 2)
    if isinstance(module, Convolution | ToRGB):
        state["conv_clamp"] = clamp
    if isinstance(module, Linear):
        state |= {"bias_gain": module.lr, "weight_gain": np.float64(0.5)}  # theirs is a numpy scalar, too
    if isinstance(module, StyleGAN2):
        state |= {"_init_args": (), "_init_kwargs": EasyDict(z_dim=module.z_dim, synthesis_kwargs=EasyDict(a=1))}
    children = ((name, child) for name, child in module.named_children())
    state["_modules"] = OrderedDict((name, network(child, clamp, source)) for name, child in children)
    return persistent("Generator" if isinstance(module, StyleGAN2) else type(module).__name__, state, source)
