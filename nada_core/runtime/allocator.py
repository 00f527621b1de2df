"""Settings of glibc's malloc for training on a CPU (mallopt(3)): freed memory is reused instead of returned."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# name: (number in malloc.h, value while memory is retained, glibc's value once it has adjusted itself to large blocks)
_OPTIONS = {
    "trim_threshold": (-1, -1, 64 << 20),
    "top_pad": (-2, 64 << 20, 128 << 10),
    "mmap_threshold": (-3, None, 32 << 20),
    "mmap_max": (-4, 0, 1 << 16),
}
_active = 0
_lock = threading.Lock()


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Retain freed memory within the process for work on the CPU, which saves page faults and zero-filling.

    On exit, free memory is returned and the options get the values of the environment (MALLOC_*, GLIBC_TUNABLES) or
    else glibc's own. May be nested. Threads other than the main one profit less: their arenas are limited to 64 MiB,
    unless the process starts with MALLOC_ARENA_MAX=1.

    Args:
        device: where the work runs; nothing changes unless it is the CPU and the C library is glibc.
    """
    global _active
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    with _lock:
        _active += 1
        for number, value, _ in _OPTIONS.values():
            if value is not None:
                libc.mallopt(number, value)
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if not _active:
                for name, (number, _, default) in _OPTIONS.items():
                    libc.mallopt(number, _configured(name, default))
                libc.malloc_trim(0)


def _configured(name: str, default: int) -> int:
    """The value of an option in the environment; mallopt has no way to read the current one."""
    pairs = [pair.partition("=") for pair in os.environ.get("GLIBC_TUNABLES", "").split(":")]
    tunables = {key: value for key, _, value in pairs}
    text = tunables.get(f"glibc.malloc.{name}", os.environ.get(f"MALLOC_{name.upper()}_", ""))
    return int(text) if text.isdecimal() else default
