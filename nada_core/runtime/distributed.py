"""Data-parallel training by several processes (synchronous SGD, Goyal et al., arXiv:1706.02677, section 2.3).

Every process draws the whole batch from the same seed and takes its shard, so that the batch does not depend on the
number of processes. Embeddings are gathered and gradients summed: a step equals that of a single process up to the
order of sums. In a single process all of this does nothing.
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
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process; 0 writes files and prints."""
    return dist.get_rank() if world_size() > 1 else 0


def shard(batch: Tensor) -> Tensor:
    """Return this process's rows of a batch; there may be none."""
    return batch if world_size() == 1 else batch.tensor_split(world_size())[rank()]


def check_batch_size(batch: int) -> None:
    """Raise ValueError unless the processes can share a batch evenly."""
    if batch % world_size():
        raise ValueError(f"Got a batch of {batch} for {world_size()} processes, expected a multiple of their number.")


def all_gather(shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Concatenate every tensor [n, D] with those of the other processes; only the own rows carry gradients."""
    if world_size() == 1:
        return tuple(shards)
    gathered = []
    for own in shards:
        rows = [torch.empty_like(own, requires_grad=False) for _ in range(world_size())]
        dist.all_gather(rows, own.detach().contiguous())
        rows[rank()] = own
        gathered.append(torch.cat(rows))
    return tuple(gathered)


def all_reduce(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over the processes, which is bit-identical in all of them."""
    if world_size() > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message for all tensors
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
    """Join the processes that torchrun started; yields the device of this one."""
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
