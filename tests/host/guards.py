"""Checks that a node changes neither its inputs nor global state, and that its outputs are usable by other nodes.

ComfyUI does not check this; the effects appear later, in another node or another run. Here they raise `Violation`.
"""

from __future__ import annotations

import hashlib
import math
import random
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Violation(AssertionError):  # noqa: N818
    """A node broke a rule of ComfyUI or of this pack."""


# ---- reachable values -- -----------------------------------------------------------------------------------------

PRIMITIVES = (int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device)
OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def leaves(value: Any, path: str = "", module: bool = False, visited: dict[int, Any] | None = None) -> Iterator[Any]:
    """Yield (path, leaf, whether it belongs to an nn.Module) for all tensors and plain values reachable from `value`.

    Follows the parameters, buffers and flags of modules, dataclasses, mappings, sequences, sets and attributes, but not
    functions, classes and Python modules.
    """
    visited = {} if visited is None else visited
    if isinstance(value, (*PRIMITIVES, np.ndarray, torch.Generator)):
        yield path, value, module
        return
    if id(value) in visited or isinstance(value, OPAQUE):
        return
    visited[id(value)] = value  # a reference, so that no other object gets this id
    if isinstance(value, Tensor):
        yield path, value, module
        if value.is_leaf and value.grad is not None:
            yield from leaves(value.grad, f"{path}.grad", module, visited)
        return
    inside = module or isinstance(value, nn.Module)
    for step, part in parts(value):
        yield from leaves(part, path + step, inside, visited)


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield ".length", len(value)
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{{{index}}}", part) for index, part in enumerate(sorted(value, key=repr)))
    slots = (name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()))
    if isinstance(value, (list, tuple, Mapping, set, frozenset)) and not hasattr(value, "__dict__"):
        return
    yield from ((f".{name}", getattr(value, name)) for name in slots if name != "__dict__" and hasattr(value, name))
    yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))


def content(tensor: Tensor) -> str:
    """Hash the bytes of a tensor."""
    if tensor.device.type == "meta":
        return "meta"
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.blake2b(flat.view(torch.uint8).numpy() if flat.numel() else b"", digest_size=16).hexdigest()


def described(leaf: Any) -> tuple[Any, ...]:
    """Describe everything about a leaf that a node must not change."""
    if isinstance(leaf, Tensor):
        facts = (tuple(leaf.shape), leaf.dtype, str(leaf.device), leaf.requires_grad, leaf.is_inference())
        return ("content", content(leaf), "shape, dtype, device, requires_grad or inference mode", facts)
    if isinstance(leaf, torch.Generator):
        return ("random state", content(leaf.get_state()))
    if isinstance(leaf, np.ndarray):
        return ("content", leaf.dtype, leaf.shape, leaf.tobytes())
    return ("value", repr(leaf))


def snapshot(value: Any) -> dict[str, tuple[Any, ...]]:
    return {path: described(leaf) for path, leaf, _ in leaves(value)}


def differences(before: Mapping[str, tuple[Any, ...]], after: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Describe the changes between two snapshots.

    A new plain value is allowed: it is a cache, such as that of a tokenizer. A new tensor is not: it was probably made
    in inference mode, and a later training with it would fail.
    """
    changes = []
    for path in dict.fromkeys([*before, *after]):
        if path not in after:
            changes.append(f"{path} is gone")
        elif path not in before:
            changes += [f"{path} is new"] if after[path][0] != "value" else []
        elif before[path] != after[path]:
            what = [a for a, b, c in zip(before[path], before[path][1:], after[path][1:], strict=False) if b != c]
            changes.append(f"{path}: {what[0]} changed")
    return changes


# ---- global state -------------------------------------------------------------------------------------------------


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return (kind, keys.tobytes(), *rest)


def _set_numpy_state(state: tuple[Any, ...]) -> None:
    kind, keys, *rest = state
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))


def _cuda_state() -> list[bytes]:
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if ready else []


def _set_cuda_state(states: list[bytes]) -> None:
    torch.cuda.set_rng_state_all([torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states])


def _flag(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


GLOBALS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "torch's random state": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8).clone()),
    ),
    "torch's random state on CUDA": (_cuda_state, _set_cuda_state),
    "Python's random state": (random.getstate, random.setstate),
    "numpy's random state": (_numpy_state, _set_numpy_state),
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "cudnn.enabled": _flag(torch.backends.cudnn, "enabled"),
    "cudnn.benchmark": _flag(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _flag(torch.backends.cudnn, "deterministic"),
    "cudnn.allow_tf32": _flag(torch.backends.cudnn, "allow_tf32"),
    "cuda.matmul.allow_tf32": _flag(torch.backends.cuda.matmul, "allow_tf32"),
}


def global_state() -> dict[str, Any]:
    return {name: get() for name, (get, _) in GLOBALS.items()}


def restore(before: Mapping[str, Any]) -> list[str]:
    """Restore global state and return the names of what had changed, so that one faulty node fails one test only."""
    changed = []
    for name, (get, put) in GLOBALS.items():
        if get() != before[name]:
            changed.append(name)
            put(before[name])
    return changed


# ---- outputs ------------------------------------------------------------------------------------------------------


def check_output(value: Any, io_type: str, where: str) -> None:
    """Raise Violation if other nodes that accept this type could not use the value."""
    if value is None:
        raise Violation(f"{where} is None")
    if io_type in CHECKS:
        CHECKS[io_type](value, where)
    for path, leaf, in_module in leaves(value):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.device.type != "cpu":
            raise Violation(f"{where}{path} is on {leaf.device}, expected cpu: outputs are cached.")
        if in_module and leaf.is_inference():
            raise Violation(f"{where}{path} was made in inference mode, so this module cannot be trained.")
        if not in_module and leaf.requires_grad:
            raise Violation(f"{where}{path} requires grad, expected a detached tensor.")


def _tensor(value: Any, where: str, shape: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.dim() != len(shape):
        actual = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise Violation(f"{where}: expected a float32 tensor [{', '.join(shape)}], got {actual}")
    if value.numel() == 0:
        raise Violation(f"{where}: the tensor {tuple(value.shape)} is empty")
    if value.device.type == "cpu":  # other devices raise a better message below
        low, high = value.min().item(), value.max().item()
        if not (0 <= low and high <= 1):  # also for NaN
            raise Violation(f"{where}: expected values in 0..1, got {low:.3g} .. {high:.3g}")


def _image(value: Any, where: str) -> None:
    _tensor(value, where, "BHWC")
    if value.shape[-1] not in (3, 4):
        raise Violation(f"{where}: expected 3 or 4 channels at the end, got {tuple(value.shape)}")


def _mask(value: Any, where: str) -> None:
    _tensor(value, where, "BHW")


def _of(*kinds: type) -> Callable[[Any, str], None]:
    def check(value: Any, where: str) -> None:
        if type(value) not in kinds:  # a bool is not an int here
            raise Violation(f"{where}: expected {' or '.join(k.__name__ for k in kinds)}, got {type(value).__name__}")

    return check


def _losses(value: Any, where: str) -> None:
    values = value.get("loss") if isinstance(value, dict) else None
    if not isinstance(values, list) or not all(type(one) in (int, float) and math.isfinite(one) for one in values):
        raise Violation(f"{where}: expected {{'loss': [finite numbers]}}, got {value!r}")


CHECKS: dict[str, Callable[[Any, str], None]] = {
    "IMAGE": _image,
    "MASK": _mask,
    "LOSS_MAP": _losses,
    "INT": _of(int),
    "FLOAT": _of(float, int),
    "STRING": _of(str),
    "BOOLEAN": _of(bool),
}
