"""Work that does not fit into memory, done again in smaller portions; and memory that a process keeps for itself."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_keepers = 0  # how many want freed memory kept now

_counting = threading.Lock()


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside, the process keeps the memory it frees for the next image of that size: asked for anew, every page of it
    comes with a fault and is filled with zeros first. Afterwards what is free goes back to the system, and the
    allocator is left as any process finds it that has freed large blocks. May be nested, and decorates functions.

    It helps most in the main thread: the memory of other threads lies in pieces of 64 MiB, and what outgrows them comes
    and goes, unless the process was started with MALLOC_ARENA_MAX=1. Does nothing where the C library is not glibc.
    """
    global _keepers
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        yield
        return
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # M_TRIM_THRESHOLD and so on, in malloc.h
    with _counting:
        _keepers += 1
        for option, value in ((trim_threshold, -1), (top_pad, 64 << 20), (mmap_max, 0)):
            mallopt(option, value)
    try:
        yield
    finally:
        with _counting:
            _keepers -= 1
            if not _keepers:
                # Where glibc's own adjustment ends; it stops adjusting once any of these was set.
                for option, value in (
                    (mmap_max, 1 << 16),
                    (mmap_threshold, 32 << 20),
                    (trim_threshold, 64 << 20),
                    (top_pad, 128 << 10),
                ):
                    mallopt(option, value)
                ctypes.CDLL(None).malloc_trim(0)
