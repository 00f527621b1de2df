"""What a pickle holds, as tensors by dotted names and plain values: state dicts, whole modules, TensorFlow networks.

Pickles of NVlabs/stylegan2-ada-pytorch and stylegan3 carry the source text of their own classes for their loader to
execute. Here it stays text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import UnsupportedCheckpointError, brief
from .inert_objects import Array, Record, Settings
from .pickle_machine import Budget
from .tensorflow_pickle import collect_network, is_network
from .unpickler import Unpickler

# In one file, long texts counting more: a small pickle can refer to the same branch over and over.
_MOST_VALUES = 200_000


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a .pkl: the networks of a training run, or one of them."""
    with path.open("rb") as file:
        content = Unpickler(file, Budget(path, path.stat().st_size)).load()
    tensors, hints = flatten(content)
    if not tensors:
        raise UnsupportedCheckpointError(
            f"{path}: a pickle of {type(content).__name__} without networks in it. "
            "Expected the G_ema, G, D of an NVIDIA training run, or one of them."
        )
    return tensors, hints


def flatten(content: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Sort what was unpickled into tensors and everything else, both by dotted names.

    A tuple of three networks is (G, D, G_ema), as training programs write it.
    """
    collector = _Collector()
    if isinstance(content, list | tuple) and any(isinstance(value, Record | Mapping) for value in content):
        networks = [value for value in content if isinstance(value, Record)]
        last = "Gs" if all(map(is_network, networks)) else "G_ema"
        names = ("G", "D", last) if len(content) == len(networks) == 3 else range(len(content))
        content = {str(name): value for name, value in zip(names, content, strict=True)}
    collector.add("", content)
    return collector.tensors, collector.hints


class _Collector:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.hints: dict[str, Any] = {}
        self.count = 0

    def add(self, name: str, value: object) -> None:
        self._count_one(name)
        if isinstance(value, Tensor):
            self.tensors[name] = value.detach()
        elif isinstance(value, Array):
            if value.tensor is not None:
                self.tensors[name] = value.tensor
        elif isinstance(value, Record):
            self._add_record(name, value)
        elif isinstance(value, Settings) and not any(isinstance(item, Tensor | Record) for item in value.values()):
            self.hints[name] = self._tree(value)
        elif isinstance(value, Mapping):
            for key, child in value.items():
                # Optimizer states weigh more than the rest of a file and are not used.
                if name or "optim" not in _join("", key):
                    self.add(_join(name, key), child)
        else:
            self.hints[name] = self._tree(value)

    def _add_record(self, name: str, record: Record) -> None:
        attributes = record.attributes
        if is_network(record):
            settings, variables = collect_network(record, self._count_one)
            self.hints[name] = self._tree(settings)
            self.tensors |= {_join(name, variable): value for variable, value in variables.items()}
        elif "_parameters" in attributes or "_modules" in attributes:
            attributes_of_modules: dict[str, Any] = {}
            self._add_module(name, "", record, attributes_of_modules)
            self.hints[name] = {
                "class_name": record.class_name,
                "init_args": self._tree(attributes.get("_init_args", ())),
                "init_kwargs": self._tree(attributes.get("_init_kwargs", {})),
                "attributes": attributes_of_modules,
            }
        elif record.class_name == "Namespace":
            self.hints[name] = self._tree(attributes)
        else:
            self.add(name, {**record.items, **attributes})

    def _add_module(self, name: str, inner: str, record: Record, settings: dict[str, Any]) -> None:
        """Collect the tensors of a module under the names of its state dict, and its plain settings beside them."""
        self._count_one(inner)
        for group in ("_parameters", "_buffers"):
            for key, value in record.attributes.get(group, {}).items():
                self._count_one(inner)
                if isinstance(value, Tensor):
                    self.tensors[_join(name, _join(inner, key))] = value.detach()
        for key, value in record.attributes.items():
            if value is None or isinstance(value, bool | int | float | str):
                settings[_join(inner, key)] = self._tree(value)
        for key, value in record.attributes.get("_modules", {}).items():
            if isinstance(value, Record):
                self._add_module(name, _join(inner, key), value, settings)

    def _tree(self, value: object) -> Any:
        """Copy containers, so that each is in one place only and printing the result takes bounded time."""
        self._count_one(value if isinstance(value, str) else "")
        if isinstance(value, Mapping):
            return {key: self._tree(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            children = [self._tree(child) for child in value]
            return tuple(children) if isinstance(value, tuple) else children
        return value

    def _count_one(self, text: str) -> None:
        self.count += 1 + len(text) // 16
        if self.count > _MOST_VALUES:
            raise ValueError("too many values in one file")


def _join(name: str, part: object) -> str:
    """A name with one more part; keys of a dict may be any objects, such as the tensors of old optimizer states."""
    key = str(part) if isinstance(part, str | int | tuple) else brief(part)
    return f"{name}.{key}" if name and key else name or key
