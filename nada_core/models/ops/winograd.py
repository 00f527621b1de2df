"""3x3 convolutions of one pixel's border, by the native kernel of winograd.cpp where that pays and a C++ compiler is
there, else by torch's own (Winograd's minimal filtering: Lavin and Gray, arXiv:1509.09308).

The kernel is built when it is first wanted, which takes some seconds, and kept for the next process under
TORCH_EXTENSIONS_DIR or ~/.cache/torch_extensions. NADA_NATIVE=0 in the environment does without it.

Letters: N batch, I input channels, O output channels, H height, W width.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SOURCE = Path(__file__).with_suffix(".cpp")

_FLAGS = ("-O3", "-march=native")

#: It pays from about here: multiplications of the direct method, and channels on both sides.
_MULTIPLICATIONS, _CHANNELS = 500_000_000, 64

#: Processors it is known to pay on; elsewhere torch's own way may be the quicker one.
_MEASURED = ("AVX2", "AVX512")

_ONE_AT_A_TIME = threading.Lock()


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, I, H, W] with weight [O, I, 3, 3] -> [N, O, H, W]. Not differentiable where the native kernel is."""
    if native := _native_for(x, weight):
        out: Tensor = native.convolve(x.contiguous(), weight.contiguous(), False)
        return out
    return F.conv2d(x, weight, padding=1)


def conv3x3_back(
    grad: Tensor, x: Tensor, weight: Tensor, to_x: bool, to_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """From the gradient of `conv3x3`'s result [N, O, H, W], those of x and of weight, each where it is wanted."""
    if native := _native_for(x, weight):
        grad = grad.contiguous()
        return (
            native.convolve(grad, weight.contiguous(), True) if to_x else None,
            native.weight_gradient(x.contiguous(), grad) if to_weight else None,
        )
    slope, slopes, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [to_x, to_weight, False]
    )
    return slope, slopes


def _native_for(x: Tensor, weight: Tensor) -> Any:
    """The kernel, if it is the better way for these. By shape alone, so that equal runs go equal ways."""
    pays = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= _CHANNELS
        and weight.numel() * len(x) * x.shape[2] * x.shape[3] >= _MULTIPLICATIONS
    )
    return kernel() if pays else None


def kernel() -> Any:
    """torch.ops.nada_winograd, built if need be; None, after a line in the log, where that fails."""
    with _ONE_AT_A_TIME:
        return _load()


@functools.cache
def _load() -> Any:
    if os.environ.get("NADA_NATIVE") == "0" or torch.backends.cpu.get_cpu_capability() not in _MEASURED:
        return None
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    # A library is for one source, torch and processor: a home may be shared by several machines.
    told = (_SOURCE.read_bytes(), torch.__version__, _FLAGS, platform.machine(), _processor())
    library = root / f"nada_winograd_{hashlib.sha256(repr(told).encode()).hexdigest()[:16]}.so"
    try:
        if library.exists():
            torch.ops.load_library(str(library))
        else:
            _build(library)
        return torch.ops.nada_winograd
    except Exception as error:  # a compiler has many ways to fail, and none is worth a run
        reason = " ".join(str(error).split())
        logging.getLogger(__name__).warning(
            "No native convolution, torch's own is used (%s: %.200s)", type(error).__name__, reason
        )
        return None


def _build(library: Path) -> None:
    """Build and load. In a folder of its own: what another process builds at the same time, or left half done, is of no
    concern, and the library appears whole or not at all."""
    logging.getLogger(__name__).info("Building the native convolution for this processor")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, ignore_cleanup_errors=True) as folder, _ninja_at_hand():
        from torch.utils import cpp_extension

        cpp_extension.load(
            "nada_winograd", [str(_SOURCE)], extra_cflags=list(_FLAGS), build_directory=folder, is_python_module=False
        )
        built = next(path for path in Path(folder).iterdir() if path.suffix in (".so", ".pyd", ".dll"))
        try:
            os.replace(built, library)
        except OSError:  # Windows does not let a loaded library move; the next process builds again
            logging.getLogger(__name__).info("The native convolution cannot be kept")


@contextmanager
def _ninja_at_hand() -> Iterator[None]:
    """The package's ninja is found even where the Python of a virtual environment was started by its path; and torch
    does not tell of a CUDA that nobody asked for."""
    import ninja

    before, log = os.environ.get("PATH", ""), logging.getLogger("torch.utils.cpp_extension")
    loudness = log.level
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, before))
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        os.environ["PATH"] = before
        log.setLevel(loudness)


def _processor() -> str:
    """What -march=native goes by, as far as it can be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()
