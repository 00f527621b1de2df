"""The number of CPU threads of PyTorch, chosen by measurement and restored afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_CALLS, _SECONDS = 3, 1.0  # a number of threads is measured by so many calls, or until so much time has passed
_MOST_SLOWDOWN = 3  # more threads whose first call takes longer, relative to the best number, are not measured again
_GAIN = 0.9  # more threads must take at most this share of the time, because other work may need the processors


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Run PyTorch with this number of threads and restore the caller's number on exit; 0 changes nothing."""
    before = torch.get_num_threads()
    try:
        if number:
            torch.set_num_threads(number)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def quickest_threads(work: Callable[[], object], most: int | None = None) -> int:
    """Measure `work` with 1, 2, 4, ... threads, up to `most`, until more threads bring no gain.

    More threads are not always quicker: beside other work, two may take several times as long as one.

    Args:
        work: a sample of the work, without side effects.
        most: the caller's number of threads by default.
    """
    most = most or torch.get_num_threads()
    best, shortest = 1, math.inf
    for number in sorted({*(1 << power for power in range(most.bit_length())), most} if most > 1 else ()):
        with cpu_threads(number):
            seconds = _seconds_per_call(work, _MOST_SLOWDOWN * shortest)
        if number > 1 and seconds > _GAIN * shortest:
            break
        best, shortest = number, seconds
    return best


def _seconds_per_call(work: Callable[[], object], limit: float) -> float:
    start = time.perf_counter()
    work()  # the first call allocates memory and starts threads
    if (seconds := time.perf_counter() - start) > limit:
        return seconds
    start, calls = time.perf_counter(), 0
    while calls < _CALLS and (not calls or time.perf_counter() - start < _SECONDS):
        work()
        calls += 1
    return (time.perf_counter() - start) / calls
