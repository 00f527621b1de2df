"""The processor of a measurement: name, vector extension and peak, and how PyTorch runs with a narrower extension."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]

#: Variables that limit PyTorch, oneDNN and MKL to AVX2. They are read when PyTorch is loaded.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def capability() -> str:
    """The vector extension that PyTorch uses in this process, such as AVX2 or AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def model() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def load() -> str:
    """How many other processes compete for the processors, where the system tells it."""
    return f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown load"


def instruction_sets() -> list[str]:
    """The vector extensions to measure: that of the processor, and AVX2 if it has a wider one."""
    return [capability(), "AVX2"] if capability() == "AVX512" else [capability()]


@contextmanager
def vectors(name: str, libraries: Path) -> Iterator[None]:
    """Let processes that start within use this vector extension, with a native convolution built for it.

    Args:
        libraries: folder of the built libraries, apart from those of the user.
    """
    folder = libraries.resolve() / name
    changes = {"TORCH_EXTENSIONS_DIR": str(folder), **(AVX2 if name != capability() else {})}
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        _build_native(folder, "-march=native" if name == capability() else "-march=x86-64-v3")
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _build_native(folder: Path, architecture: str) -> None:
    """Compile the native convolution with another -march, whose last mention counts. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = folder / "compiler.sh"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" {architecture}\n', encoding="utf-8")
    compiler.chmod(0o755)
    command = [sys.executable, "-m", "nada_core", "build-native"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "CXX": str(compiler)}, stdout=sys.stderr, check=True)


def matmul_peak(size: int = 2048) -> float:
    """Floating-point operations per second of CPU time of a large float32 matrix product, on one thread."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _shortest(lambda: a @ b)


def convolution_peak(channels: int = 512, side: int = 64) -> float:
    """The same of PyTorch's 3x3 convolution, which is faster on some processors."""
    x, weight = torch.randn(1, channels, side, side), torch.randn(channels, channels, 3, 3)
    return 18 * channels**2 * side**2 / _shortest(lambda: F.conv2d(x, weight, padding=1))


def measured_peak() -> float:
    """The faster one of both, measured in a new process, which uses the extension of `vectors`."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak)


def _peak() -> float:
    torch.set_num_threads(1)
    return max(matmul_peak(), convolution_peak())


def _shortest(work: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)
