"""The native convolution against torch's, what chooses between them, and that nothing depends on a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core.models.ops import styled_conv, winograd

ROOT = Path(__file__).parents[1]
KNOWN = torch.backends.cpu.get_cpu_capability() in winograd._MEASURED
COMPILER = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++")))
compiled = pytest.mark.skipif(not (KNOWN and COMPILER), reason="no C++ compiler, or not a processor it is for")
known = pytest.mark.skipif(not KNOWN, reason="not a processor it is for")

# N, I, O, H, W: whole tiles and parts of them, panels full and not, one chunk and several, more than a panel of tiles.
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


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution_and_its_gradients(shape: tuple[int, ...], threads: int) -> None:
    n, i, o, h, w = shape
    native = winograd.kernel()
    x, weight, grad = draw(n, i, h, w), draw(o, i, 3, 3) / (9 * i) ** 0.5, draw(n, o, h, w)
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(x64, weight64, padding=1)
    expected.backward(grad.double())
    assert x64.grad is not None and weight64.grad is not None
    given = x.clone(), weight.clone(), grad.clone()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = native.convolve(x, weight, False), native.convolve(grad, weight, True), native.weight_gradient(x, grad)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, (expected.detach(), x64.grad, weight64.grad), strict=True):
        assert one.shape == other.shape
        scale = float(other.square().mean().sqrt())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4 * scale)
    assert all(map(torch.equal, given, (x, weight, grad)))


@compiled
def test_equal_runs_are_equal_whatever_the_threads() -> None:
    x, weight = draw(1, 64, 40, 40), draw(64, 64, 3, 3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(winograd.kernel().convolve(x, weight, False))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


class Spy:
    def __init__(self) -> None:
        self.called: list[str] = []

    def convolve(self, x: Tensor, weight: Tensor, back: bool) -> Tensor:
        self.called.append("back" if back else "there")
        return F.conv_transpose2d(x, weight, padding=1) if back else F.conv2d(x, weight, padding=1)

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        self.called.append("weight")
        return torch.nn.grad.conv2d_weight(x, (grad.shape[1], x.shape[1], 3, 3), grad, padding=1)


def test_a_layer_goes_through_it_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    monkeypatch.setattr(winograd, "kernel", lambda: spy)

    def layer(size: int, width: int, dtype: torch.dtype, needed: bool = True) -> list[Tensor]:
        given = [draw(2, width, size, size), draw(width, width, 3, 3), draw(2, width), draw(size, size), draw(width)]
        x, weight, style, noise, bias = (one.to(dtype).requires_grad_(needed) for one in given)
        spy.called.clear()
        out = styled_conv(x, weight, style, noise, bias, up=False, clamp=None)
        if needed:
            out.square().sum().backward()
        return [one.grad for one in (x, weight, style, noise, bias) if one.grad is not None]

    large = layer(84, 64, torch.float32)
    assert spy.called == ["there", "back", "weight"]
    monkeypatch.setattr(winograd, "kernel", lambda: None)
    for one, other in zip(large, layer(84, 64, torch.float32), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.std()))
    monkeypatch.setattr(winograd, "kernel", lambda: spy)
    layer(84, 64, torch.float32, needed=False)
    assert spy.called == ["there"]
    for size, width, dtype in ((16, 64, torch.float32), (84, 48, torch.float32), (84, 64, torch.float64)):
        layer(size, width, dtype, needed=False)
        assert not spy.called


PROGRAM = """
import logging, sys, torch
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
from nada_core.models.ops.winograd import conv3x3, kernel
x, weight = torch.randn(2, 64, 84, 84), torch.randn(64, 64, 3, 3)
for _ in range(2):
    difference = conv3x3(x, weight) - torch.nn.functional.conv2d(x, weight, padding=1)
print("native" if kernel() else "torch", bool(difference.abs().max() < 1e-2))
"""


def run(folder: Path, **environment: str) -> list[str]:
    """What a process of its own logs and prints."""
    given = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@known
def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    *told, result = run(tmp_path, CXX="/no/such/compiler")
    assert result == "torch True" and told[0] == "Building the native convolution for this processor"
    assert len(told) == 2 and told[1].startswith("No native convolution, torch's own is used (")
    assert not list(tmp_path.iterdir())


def test_other_processors_go_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(winograd, "_build", lambda _: pytest.fail("built all the same"))
    assert winograd._load.__wrapped__() is None


def test_it_can_be_done_without(tmp_path: Path) -> None:
    assert run(tmp_path, NADA_NATIVE="0", CXX="/no/such/compiler") == ["torch True"]


@compiled
def test_what_is_built_is_kept(extensions: Path) -> None:
    assert winograd.kernel()
    assert [path.suffix for path in extensions.iterdir()] == [".so"]
    assert run(extensions, CXX="/no/such/compiler") == ["native True"]


@known
def test_a_broken_library_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(winograd, "_build", lambda library: library.write_bytes(b"no library"))
    winograd._load.__wrapped__()
    (library,) = tmp_path.iterdir()
    (told,) = run(tmp_path)[:-1]
    assert told.startswith("No native convolution") and library.name in told
