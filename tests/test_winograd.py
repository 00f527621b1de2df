"""The native convolution against PyTorch's, when it is used, and that nothing compiles by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.models.ops import styled_conv, winograd

ROOT = Path(__file__).parents[1]
SUPPORTED = winograd._obstacle() is None
supported = pytest.mark.skipif(not SUPPORTED, reason="not a supported machine")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> winograd.BuildResult:
    """The only compilation of a test run, in a cache of its own: other tests run without it."""
    if not SUPPORTED or not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        pytest.skip("no C++ compiler, or not a supported machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("native ядро")))
        return winograd.build()


@pytest.fixture
def native(built: winograd.BuildResult, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built.library.parent))
    return winograd.kernel()


# N, I, O, H, W: whole and partial tiles and panels, one chunk and several, more tiles than a panel holds.
SHAPES = [
    (1, 1, 1, 4, 4),
    (2, 3, 5, 7, 9),
    (1, 64, 64, 32, 32),
    (3, 70, 33, 13, 30),
    (1, 17, 130, 6, 131),
    (2, 40, 300, 66, 65),
    (1, 2, 2, 1, 1),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_convolution_and_gradients_match_pytorch(native: Any, shape: tuple[int, ...], threads: int) -> None:
    n, i, o, h, w = shape
    x, weight, grad = draw(n, i, h, w), draw(o, i, 3, 3) / (9 * i) ** 0.5, draw(n, o, h, w)
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(x64, weight64, padding=1)
    expected.backward(grad.double())
    assert x64.grad is not None and weight64.grad is not None
    given = x.clone(), weight.clone(), grad.clone()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = (
            native.convolve(x, weight, False),
            native.convolve(grad, weight, True),
            native.weight_gradient(x, grad),
        )
    finally:
        torch.set_num_threads(before)
    for result, reference in zip(results, (expected.detach(), x64.grad, weight64.grad), strict=True):
        assert result.shape == reference.shape
        scale = float(reference.square().mean().sqrt())
        torch.testing.assert_close(result.double(), reference, rtol=0, atol=1e-4 * scale)
    assert all(map(torch.equal, given, (x, weight, grad)))


def test_native_convolution_is_equal_for_any_thread_count(native: Any) -> None:
    x, weight = draw(1, 64, 40, 40), draw(64, 64, 3, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(native.convolve(x, weight, False))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])


class Spy:
    def __init__(self) -> None:
        self.called: list[str] = []

    def convolve(self, x: Tensor, weight: Tensor, back: bool) -> Tensor:
        self.called.append("backward" if back else "forward")
        return F.conv_transpose2d(x, weight, padding=1) if back else F.conv2d(x, weight, padding=1)

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        self.called.append("weight")
        return torch.nn.grad.conv2d_weight(x, (grad.shape[1], x.shape[1], 3, 3), grad, padding=1)


def test_styled_conv_uses_native_kernel_for_large_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    monkeypatch.setattr(winograd, "kernel", lambda: spy)

    def layer(size: int, width: int, dtype: torch.dtype, needed: bool = True) -> list[Tensor]:
        inputs = [draw(2, width, size, size), draw(width, width, 3, 3), draw(2, width), draw(size, size), draw(width)]
        x, weight, style, noise, bias = (one.to(dtype).requires_grad_(needed) for one in inputs)
        spy.called.clear()
        out = styled_conv(x, weight, style, noise, bias, up=False, clamp=None)
        if needed:
            out.square().sum().backward()
        return [one.grad for one in (x, weight, style, noise, bias) if one.grad is not None]

    large = layer(84, 64, torch.float32)
    assert spy.called == ["forward", "backward", "weight"]
    monkeypatch.setattr(winograd, "kernel", lambda: None)
    for one, other in zip(large, layer(84, 64, torch.float32), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))
    monkeypatch.setattr(winograd, "kernel", lambda: spy)
    layer(84, 64, torch.float32, needed=False)
    assert spy.called == ["forward"]
    for size, width, dtype in ((16, 64, torch.float32), (84, 48, torch.float32), (84, 64, torch.float64)):
        layer(size, width, dtype, needed=False)
        assert not spy.called


PROGRAM = """
import logging, sys, torch
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
from nada_core.models.ops import styled_conv, winograd
assert not hasattr(torch.ops.nada_winograd, "convolve")  # nothing is loaded at import
x, weight = torch.randn(2, 64, 84, 84, requires_grad=True), torch.randn(64, 64, 3, 3)
for _ in range(2):
    styled_conv(x, weight, torch.ones(2, 64), None, torch.zeros(64), up=False, clamp=None).sum().backward()
print("native" if winograd.kernel() else "torch")
"""


def run(folder: Path, **environment: str) -> list[str]:
    """The lines that a training step of large convolutions logs and prints in a process of its own."""
    variables = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@supported
def test_missing_library_is_suggested_once_and_never_built(tmp_path: Path) -> None:
    hint, result = run(tmp_path)
    assert result == "torch" and "build-native" in hint
    assert not list(tmp_path.iterdir())


def test_native_kernel_is_off_by_environment(tmp_path: Path) -> None:
    assert run(tmp_path, NADA_NATIVE="0") == ["torch"]


def test_built_library_is_used_by_other_processes(built: winograd.BuildResult) -> None:
    assert [path.suffix for path in built.library.parent.iterdir()] == [".so"]
    assert built.torch_seconds > 0 and built.native_seconds > 0
    assert run(built.library.parent, CXX="/no/such/compiler") == ["native"]
    assert run(built.library.parent, NADA_NATIVE="0") == ["torch"]


def test_built_library_is_not_built_again(built: winograd.BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built.library.parent))
    monkeypatch.setattr(winograd, "_compile", lambda library: pytest.fail(f"compiled {library} again"))
    assert winograd.build().library == built.library


@supported
def test_broken_library_falls_back_to_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    library = winograd._library_path()
    library.write_bytes(b"no library")
    assert any(library.name in line for line in run(tmp_path)[:-1])
    with pytest.raises(winograd.BuildError, match=library.name):
        winograd.build()


@supported
def test_build_without_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(winograd.BuildError, match="CXX"):
        winograd.build()


@supported
def test_failed_compilation_leaves_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (compiler := shutil.which("false")):
        pytest.skip("no program that fails")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(winograd.BuildError, match=compiler):
        winograd.build()
    assert not list(tmp_path.iterdir())


@supported
def test_first_error_of_the_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "In file included from winograd.cpp:13:\nATen.h:5:2: error: too old\n" + "Generator.h: note: here\n" * 99
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    result = subprocess.CompletedProcess([], 1, "", output)
    monkeypatch.setattr(winograd, "subprocess", SimpleNamespace(run=lambda *_, **__: result))
    with pytest.raises(winograd.BuildError, match="ATen.h:5:2: error: too old;"):
        winograd.build()


def test_unsupported_processor_uses_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert winograd.kernel() is None
    with pytest.raises(winograd.BuildError, match="DEFAULT"):
        winograd.build()


def test_windows_uses_pytorch_and_is_not_told_to_build(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(winograd, "sys", SimpleNamespace(platform="win32"))
    winograd._suggest_build.__wrapped__()
    assert winograd.kernel() is None and not caplog.records
    with pytest.raises(winograd.BuildError, match="got Windows"):
        winograd.build()
