"""Arithmetic of fewer bits for generators (mixed precision training, Micikevicius et al., arXiv:1710.03740).

fp32 is exact. tf32 rounds the factors of products to 10 bits on NVIDIA GPUs that can, and is fp32 elsewhere. bf16 and
fp16 hold the images between layers in half the bits; factors, the last block and the picture stay in float32.
Guides know nothing of it: differences of nearly equal unit vectors would drown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Name to the type of the images between layers.
PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def gradient_scale(precision: str, resolution: int) -> float:
    """What a loss is multiplied by and gradients are divided by. The more pixels, the smaller the gradient of each, and
    float16 cannot tell small numbers from zero nor hold large ones; 1 at 64 pixels a side, a power of 2 elsewhere."""
    return (resolution / 64) ** 2 if PRECISIONS[precision] == torch.float16 else 1.0


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, generators run in `precision`; afterwards all switches are as they were."""
    dtype = PRECISIONS[precision]
    with tf32(precision == "tf32"), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, products of float32 on an NVIDIA GPU are rounded or exact, whatever torch's own switches say."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
