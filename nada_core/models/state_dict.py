"""State dicts: sizes from shapes, and strict loading with errors that name the tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..io.errors import CheckpointError

_SAME_NAMES: Mapping[str, str] = MappingProxyType({})

_MOST_REPEATED = 16 << 20  # bytes of the noise maps of a network without noise, which are one zero


def shape(state: Mapping[str, Tensor], name: str, axes: int, names: Mapping[str, str] = _SAME_NAMES) -> tuple[int, ...]:
    """Return the shape of a required tensor.

    Args:
        names: our name -> the name in the file, for messages.

    Raises:
        CheckpointError: the tensor is missing, empty, or has another number of axes.
    """
    if name not in state or state[name].ndim != axes or not state[name].numel():
        got = f"of shape {list(state[name].shape)}" if name in state else "missing"
        raise CheckpointError(
            f"{names.get(name, name)} is {got}, expected a tensor with {axes} axes. "
            "The file is incomplete, or an unsupported variant."
        )
    return tuple(state[name].shape)


def check_finite(tensors: Mapping[str, Tensor], half: bool) -> None:
    """Raise ValueError if tensors hold NaN or infinity. half: they were converted to float16."""
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{broken[0]} and {len(broken) - 1} more hold NaN or infinity{' in float16' if half else ''}; nothing was "
            f"written. Save an earlier state{' or without half' if half else ''}."
        )


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str] = _SAME_NAMES,
    optional: Collection[str] = (),
) -> None:
    """Load weights into a module on the meta device: float32 copies, frozen, in evaluation mode.

    Names and shapes are checked before anything of the size that the file claims is allocated.

    Args:
        names: our name -> the name in the file, for messages.
        optional: tensors that may be missing; they stay on the meta device.

    Raises:
        CheckpointError: tensors are missing, unexpected, or have another shape.
    """
    expected = module.state_dict()
    problems = {
        "missing are": [
            names.get(name, name)
            for name in expected.keys() - state.keys() - set(optional)
            if not name.endswith("num_batches_tracked")  # absent in files of old PyTorch versions
        ],
        "unexpected are": [names.get(name, name) for name in state.keys() - expected.keys()],
        "ill-shaped are": [
            f"{names.get(name, name)} {list(state[name].shape)} where {list(expected[name].shape)} was expected"
            for name in state.keys() & expected.keys()
            if state[name].shape != expected[name].shape
        ],
    }
    listed = [
        f"{problem} {', '.join(sorted(tensors)[:4])}" + (f" and {len(tensors) - 4} more" if len(tensors) > 4 else "")
        for problem, tensors in problems.items()
        if tensors
    ]
    if listed:
        raise CheckpointError(
            f"the tensors do not fit the network: {'; '.join(listed)}. "
            "The file is incomplete, or an unsupported variant."
        )
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    size = sum(value.numel() * value.itemsize for value in state.values())
    if size > sum(storages.values()) + _MOST_REPEATED:
        raise CheckpointError(f"the tensors take {size} bytes, of which {sum(storages.values())} differ.")
    # Copies: the tensors of a file may be half precision, share storage, or be memory-mapped.
    copies = {
        name: value.detach().to(expected[name].dtype, memory_format=torch.contiguous_format, copy=True)
        for name, value in state.items()
    }
    module.load_state_dict(copies, strict=False, assign=True)
    module.eval().requires_grad_(False)
