"""Networks of the TensorFlow code bases: `dnnlib.tflib.network.Network` of stylegan, stylegan2 and stylegan2-ada.

Such a network is stored as its settings (`static_kwargs`), its variables as (name, numpy array), the networks it
consists of (`components`) and the source text that built it, which is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import brief
from .inert_objects import Array, Record


def is_network(record: Record) -> bool:
    """Whether a pickled object is a TensorFlow network."""
    return {"static_kwargs", "variables"} <= record.attributes.keys()


def collect_network(record: Record, count: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings of a network, and its variables by names like `synthesis/4x4/Conv/weight`.

    Args:
        count: called with every name; may raise to stop.
    """
    attributes = record.attributes
    plain = {key: attributes.get(key) for key in ("version", "name", "build_func_name")}
    tensors = {}
    for path, network in _networks("", record, count):
        for variable, value in network.attributes["variables"]:
            name = f"{path}{brief(variable) if not isinstance(variable, str) else variable}"
            count(name)
            if isinstance(value, Array) and value.tensor is not None:
                tensors[name] = value.tensor
            elif isinstance(value, int | float):  # a numpy scalar, such as a noise_strength
                tensors[name] = torch.tensor(float(value))
    return {"class_name": "Network", "static_kwargs": attributes["static_kwargs"], **plain}, tensors


def _networks(path: str, record: Record, count: Callable[[str], None], depth: int = 0) -> Iterator[tuple[str, Record]]:
    """Yield the network and its components, each with the path that precedes its variables."""
    if depth > 4:
        raise ValueError("components within components within components; no StyleGAN is built like that")
    count(path)
    yield path, record
    components = record.attributes.get("components") or {}
    if not isinstance(components, Mapping):
        raise ValueError(f"the components of a network are {brief(components)}, expected a dict")
    for key, component in components.items():
        if isinstance(key, str) and isinstance(component, Record) and is_network(component):
            yield from _networks(f"{path}{key}/", component, count, depth + 1)
