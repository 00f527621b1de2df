"""One training by several processes, on one machine or more (data-parallel SGD, Goyal et al., arXiv:1706.02677, 2.3).

Every process draws the whole batch from the same seed and takes its share of it, so that a batch is the same batch
however many share it. Embeddings meet in every process, gradients are added up: the step is that of one process, up to
the order of sums. Alone, all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 is the one that writes files and speaks."""
    return dist.get_rank() if world_size() > 1 else 0


def shard(batch: Tensor) -> Tensor:
    """This process's part of a batch that all have drawn; it may be empty."""
    return batch if world_size() == 1 else batch.tensor_split(world_size())[rank()]


def check_batch_size(batch: int) -> None:
    """Raises ValueError for a batch that the processes cannot share evenly."""
    if batch % world_size():
        raise ValueError(
            f"got a batch of {batch} for {world_size()} processes, expected one that they can share evenly; "
            "make it a multiple of their number."
        )


def all_gather(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Every tensor [n, D] with those of the other processes, [count n, D]; only the own rows carry gradients."""
    if world_size() == 1:
        return tuple(parts)
    whole = []
    for own in parts:
        rows = [torch.empty_like(own, requires_grad=False) for _ in range(world_size())]
        dist.all_gather(rows, own.detach().contiguous())
        rows[rank()] = own
        whole.append(torch.cat(rows))
    return tuple(whole)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by the sum over the processes; they agree on it to the bit."""
    if world_size() > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message instead of a hundred
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank: for decisions that must not depend on a rank's rounding."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Inside, the processes that torchrun has started know of each other; gives the device this one works on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"Got local rank {local_rank} on a machine with {gpus} GPUs, expected one GPU a process; "
                "start at most as many processes as there are GPUs."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
