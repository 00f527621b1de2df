"""Networks of the TensorFlow code bases: `dnnlib.tflib.network.Network` of stylegan, stylegan2 and stylegan2-ada.

Such a network is stored as its settings (`static_kwargs`), its variables as (name, numpy array), the networks it
consists of (`components`) and the source text that built it, which is never run.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .unpickler import Array, Record


def is_network(record: Record) -> bool:
    """Whether a pickled object is a TensorFlow network."""
    return {"static_kwargs", "variables"} <= record.attributes.keys()


def collect_network(name: str, record: Record, tensors: dict[str, Tensor], hints: dict[str, Any]) -> None:
    """Add a network's variables as `NAME.synthesis/4x4/Conv/weight`, and its settings as the hint NAME."""
    attributes = record.attributes
    plain = {key: attributes.get(key) for key in ("version", "name", "build_func_name")}
    hints[name] = {"class_name": "Network", "static_kwargs": dict(attributes["static_kwargs"]), **plain}
    prefix = f"{name}." if name else ""
    for path, network in _networks("", record):
        for variable, value in network.attributes["variables"]:
            if isinstance(value, Array) and value.tensor is not None:
                tensors[f"{prefix}{path}{variable}"] = value.tensor
            elif isinstance(value, int | float):  # a numpy scalar, such as a noise_strength
                tensors[f"{prefix}{path}{variable}"] = torch.tensor(float(value))


def _networks(path: str, record: Record, depth: int = 0) -> list[tuple[str, Record]]:
    """The network and its components, each with the path that precedes its variables."""
    if depth > 4:
        raise ValueError("components within components within components; no StyleGAN is built like that")
    result = [(path, record)]
    components = record.attributes.get("components") or {}
    if not isinstance(components, Mapping):
        raise ValueError(f"the components of a network are {reprlib.repr(components)}, expected a dict")
    for key, component in components.items():
        if isinstance(component, Record) and is_network(component):
            result += _networks(f"{path}{key}/", component, depth + 1)
    return result
