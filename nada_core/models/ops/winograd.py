"""3x3 convolution by Winograd's minimal filtering F(4x4, 3x3) on the CPU (Lavin and Gray, arXiv:1509.09308).

The native operators of winograd.cpp are optional. `build` compiles them once; from then on convolutions of many
channels use them. Without a built library, or with NADA_NATIVE=0 in the environment, PyTorch's convolution runs.

Shapes: N batch, I input channels, O output channels, H height, W width.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-fPIC", "-shared")  # without OpenMP it runs on one thread

#: Measured to be faster from here: multiplications of the direct method, channels on both sides, vector extensions.
_MIN_MULTIPLICATIONS, _MIN_CHANNELS = 500_000_000, 64
_CAPABILITIES = ("AVX2", "AVX512")

_log = logging.getLogger(__name__)


class BuildError(OSError):
    """The native convolution could not be compiled on this machine."""


class BuildResult(NamedTuple):
    """Seconds of one 3x3 convolution, forward and backward: x [1, 128, 128, 128], weight [128, 128, 3, 3]."""

    library: Path
    torch_seconds: float
    native_seconds: float


def build() -> BuildResult:
    """Compile the native convolution for this processor and measure what it gains.

    The library is stored under TORCH_EXTENSIONS_DIR or ~/.cache/torch_extensions, where every later process finds it.
    An existing one is reused.

    Returns:
        The path of the library, and the seconds of a representative convolution with and without it.

    Raises:
        BuildError: the machine is not supported, there is no C++ compiler, or compiling or loading failed.
    """
    if obstacle := _obstacle():
        raise BuildError(f"{obstacle}; PyTorch's convolution is used.")
    library = _library_path()
    if not library.exists():
        _compile(library)
        _load.cache_clear()
    if (native := _load(library)) is None:
        raise BuildError(f"{library} does not load; delete it and build again.")
    return BuildResult(library, _seconds(None), _seconds(native))


def kernel() -> Any:
    """Return torch.ops.nada_winograd from the built library, or None where there is none or it is disabled."""
    if os.environ.get("NADA_NATIVE") == "0" or _obstacle():
        return None
    return _load(_library_path())


def _obstacle() -> str | None:
    """What this machine lacks to run the native operators."""
    if sys.platform == "win32":  # torch's libraries need Microsoft's compiler, which the source is not written for
        return "got Windows, expected Linux"
    if (capability := torch.backends.cpu.get_cpu_capability()) not in _CAPABILITIES:
        return f"got a processor with {capability}, expected one with {' or '.join(_CAPABILITIES)}"
    return None


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve x [N, I, H, W] with weight [O, I, 3, 3], padding 1 -> [N, O, H, W]; not differentiable by autograd."""
    return _forward(kernel() if _is_faster(x, weight) else None, x, weight)


def conv3x3_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and weight, where needed, from that of the output, grad [N, O, H, W]."""
    native = None
    if _is_faster(x, weight):
        native = kernel()
        if native is None:
            _suggest_build()
    return _backward(native, grad, x, weight, need_x, need_weight)


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    """Decide by type and shape alone, so that equal runs use equal kernels."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= _MIN_CHANNELS
        and weight.numel() * len(x) * x.shape[2] * x.shape[3] >= _MIN_MULTIPLICATIONS
    )


def _forward(native: Any, x: Tensor, weight: Tensor) -> Tensor:
    if native is None:
        return F.conv2d(x, weight, padding=1)
    out: Tensor = native.convolve(x.contiguous(), weight.contiguous(), False)
    return out


def _backward(
    native: Any, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    if native is None:
        mask = [need_x, need_weight, False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )
        return grad_x, grad_weight
    grad = grad.contiguous()
    return (
        native.convolve(grad, weight.contiguous(), True) if need_x else None,
        native.weight_gradient(x.contiguous(), grad) if need_weight else None,
    )


@functools.cache
def _suggest_build() -> None:
    if os.environ.get("NADA_NATIVE") != "0" and not _obstacle():
        _log.warning("`python -m nada_core build-native` would speed up training on this CPU (needs a C++ compiler).")


@functools.cache
def _load(library: Path) -> Any:
    if not library.exists():
        return None
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        _log.warning("The native convolution %s does not load (%s); PyTorch's is used.", library, error)
        return None
    return torch.ops.nada_winograd


def _library_path() -> Path:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    return root / f"nada_winograd_{_build_key()}.so"


@functools.cache
def _build_key() -> str:
    """Identify source, torch and processor: machines of different processors may share a home directory."""
    key = (_SOURCE.read_bytes(), torch.__version__, _FLAGS, platform.machine(), _processor())
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the instruction sets that -march=native selects by, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _compile(library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise BuildError("found no C++ compiler; install g++ or clang++, or name one in CXX.")
    root = Path(torch.__file__).parent
    headers = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    linked = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    library.parent.mkdir(parents=True, exist_ok=True)
    # Built elsewhere, then moved: another process sees the whole library or none.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_FLAGS, abi, *headers, str(_SOURCE), "-o", str(made), *linked]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = next((line for line in result.stderr.splitlines() if "error: " in line), result.stderr[-500:])
            raise BuildError(
                f"{compiler} failed with exit code {result.returncode}: {reason.strip()}; expected a C++20 compiler; "
                "name one in CXX."
            )
        made.replace(library)


def _seconds(native: Any) -> float:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 128, 128, 128, generator=rng)
    weight = torch.randn(128, 128, 3, 3, generator=rng)

    return min(
        timeit.repeat(lambda: _backward(native, _forward(native, x, weight), x, weight, True, True), number=1, repeat=4)
    )
