"""Numbers from the device. Every copy makes the CPU wait for the GPU, so a step makes one."""

from __future__ import annotations

import torch
from torch import Tensor


def fetch(*tensors: Tensor) -> list[list[float]]:
    """Return the values of small tensors on one device as flat lists, by a single copy to the CPU."""
    values = torch.cat([tensor.detach().flatten().float() for tensor in tensors]).tolist()
    ends = [sum(tensor.numel() for tensor in tensors[: index + 1]) for index in range(len(tensors))]
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
