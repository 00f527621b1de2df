"""Settings of malloc: freed memory is retained while something trains on the CPU, and returned afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import generator, guide

from nada_core import AdaptConfig, InvertConfig, TextShift, TuneConfig, adapt, edit_by_text, invert, sample, tune
from nada_core.runtime import allocator
from nada_core.runtime.allocator import keep_freed_memory

ROOT = Path(__file__).parents[1]
GLIBC = platform.libc_ver()[0] == "glibc"
CPU = torch.device("cpu")
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4


@pytest.mark.skipif(not GLIBC, reason="only glibc has these options")
def test_freed_memory_is_retained_inside_and_returned_afterwards() -> None:
    """Counts page faults and resident pages in a process of its own."""
    program = """
import resource, sys, torch
from nada_core.runtime.allocator import keep_freed_memory
cpu = torch.device("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
faults()
outside, start = faults(), resident()
with keep_freed_memory(cpu):
    with keep_freed_memory(cpu):
        faults()
    inside, retained = faults(), resident()
sys.stdout.write(f"{outside} {inside} {retained - start} {resident() - start}")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    outside, inside, retained, left = map(int, run.stdout.split())
    assert inside < outside / 10
    assert retained > 2**25 > left


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The options set so far, by number, without touching the real allocator; number 0 counts malloc_trim."""
    values = {0: 0}
    libc = SimpleNamespace(mallopt=values.__setitem__, malloc_trim=lambda _: values.update({0: values[0] + 1}))
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: libc)
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"):
        monkeypatch.delenv(name, raising=False)
    return values


def test_options_return_to_those_of_the_environment(options: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with keep_freed_memory(CPU):
        assert options == {0: 0, TRIM_THRESHOLD: -1, TOP_PAD: 64 << 20, MMAP_MAX: 0}
    assert options == {0: 1, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "many")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=8192")
    with pytest.raises(KeyError), keep_freed_memory(CPU), keep_freed_memory(CPU):
        raise KeyError
    assert options == {0: 2, TRIM_THRESHOLD: 8192, TOP_PAD: 4096, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}


def test_options_stay_for_a_gpu_and_other_systems(options: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with keep_freed_memory(torch.device("cuda")):
        assert options == {0: 0}
    monkeypatch.setattr(allocator.sys, "platform", "win32")
    with keep_freed_memory(CPU):
        assert options == {0: 0}
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: SimpleNamespace())
    with keep_freed_memory(CPU):
        assert options == {0: 0}


class _ReachedError(Exception):
    pass


@pytest.mark.parametrize("function", [adapt, invert, tune, edit_by_text])
def test_training_functions_retain_memory_on_the_generators_device(
    function: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(device: torch.device) -> None:
        raise _ReachedError(device.type)

    monkeypatch.setitem(function.__globals__, "keep_freed_memory", reached)
    source, shift = generator(), TextShift("photo", "sketch")
    images = torch.zeros(1, 3, 16, 16)
    arguments: dict[object, tuple[object, ...]] = {
        adapt: (guide(), shift, AdaptConfig(steps=1)),
        invert: (images, InvertConfig(lpips=0.0, id=0.0)),
        tune: (images, sample(source, [0]), TuneConfig(lpips=0.0)),
        edit_by_text: (sample(source, [0]), guide(), shift),
    }
    with pytest.raises(_ReachedError, match="cpu"):
        function(source, *arguments[function])
