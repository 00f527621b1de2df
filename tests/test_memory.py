"""Freed memory stays in the process while something trains, and no longer."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nada_core import adapt, edit_by_text, invert, tune
from nada_core.runtime import allocator as memory

ROOT = Path(__file__).parents[1]
GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="another C library than glibc has no such switches")
def test_training_keeps_freed_memory_and_gives_it_back() -> None:
    """Page faults and resident pages tell, in a process of its own: this one's memory is everybody's."""
    program = """
import resource, torch
from nada_core.runtime.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
@keep_freed_memory()
def inside():
    with keep_freed_memory():
        faults()
    return faults(), resident()
faults()
outside, start = faults(), resident()
kept, held = inside()
print(outside, kept, held - start, resident() - start)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    outside, kept, held, left = map(int, run.stdout.split())
    assert kept < outside / 10
    assert held > 2**25 > left


@pytest.mark.parametrize("function", [adapt, invert, tune, edit_by_text])
def test_whatever_trains_keeps_freed_memory(function: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(memory.sys, "platform", "linux")
    library = SimpleNamespace(mallopt=lambda *_: seen.append(1), malloc_trim=lambda _: seen.append(0))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    with pytest.raises(Exception):  # noqa: B017 (called with nothing useful, it ends after it has begun)
        function(None, None, None)
    assert seen[0] == 1 and seen[-1] == 0
