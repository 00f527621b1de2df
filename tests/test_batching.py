"""Batch sizes that adapt to the memory of the GPU."""

from __future__ import annotations

import weakref

import pytest
import torch

from nada_core.runtime.batching import MicroBatcher


@pytest.mark.parametrize(("size", "tried"), [(8, [8, 4, 2, 1]), (5, [5, 3, 2, 1]), (1, [1])])
def test_micro_batcher_halves_down_to_one(size: int, tried: list[int]) -> None:
    asked: list[tuple[str, int]] = []

    def act(word: str, count: int) -> None:
        asked.append((word, count))
        raise torch.cuda.OutOfMemoryError("full\nof details")

    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"one latent at a time \(full\)\. Use a smaller CLIP model"):
        MicroBatcher(size).run(act, "x")
    assert asked == [("x", count) for count in tried]


def test_micro_batcher_remembers_its_size_and_passes_other_errors() -> None:
    batcher = MicroBatcher(8)

    def act(count: int) -> int:
        if count > 3:
            raise torch.cuda.OutOfMemoryError
        return count

    assert batcher.run(act) == batcher.run(act) == batcher.size == 2
    with pytest.raises(ZeroDivisionError):
        batcher.run(lambda count: count // 0)
    assert batcher.size == 2


def test_micro_batcher_releases_the_tensors_of_a_failed_call() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def act(count: int) -> int:
        tensor = torch.zeros(1)
        alive.append(weakref.ref(tensor))
        if count > 1:
            raise torch.cuda.OutOfMemoryError
        return sum(reference() is not None for reference in alive)

    assert MicroBatcher(4).run(act) == 1  # its own


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 8 GB)",
    ],
)
def test_micro_batcher_halves_for_errors_of_libraries(message: str) -> None:
    def act(count: int) -> int:
        if count > 1:
            raise RuntimeError(message)
        return count

    assert MicroBatcher(4).run(act) == 1


def test_micro_batcher_passes_other_runtime_errors() -> None:
    def act(count: int) -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        MicroBatcher(4).run(act)
