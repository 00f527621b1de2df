"""Compiled guides see what plain ones see, and a compiler that fails costs nothing but a line."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch import Tensor

from nada_core import load_guide
from nada_core.models.compiling import Compiled


def looked_at(compiled: bool) -> tuple[Tensor, Tensor]:
    guide = load_guide("portraits-vit", compiled=compiled)
    x = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    out = guide.encode_images(x)
    (slope,) = torch.autograd.grad(out[:, :3].sum(), x)
    return out.detach(), slope


@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing here to compile with")
@pytest.mark.parametrize("works", [True, False])
def test_a_compiled_guide_sees_what_a_plain_one_sees(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.compiler.reset()
    if not works:
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
        monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    for got, wanted in zip(looked_at(True), looked_at(False), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert ("Compiling failed" in caplog.text) is not works
    assert load_guide("portraits-vit").fingerprint == load_guide("portraits-vit", compiled=True).fingerprint


def test_a_compiler_that_fails_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", lambda module: fails)
    module = Compiled(torch.nn.Linear(2, 1))
    x = torch.ones(1, 2)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(module(x), module.module(x)) and torch.equal(module(x), module.module(x))
    assert caplog.text.count("Compiling failed, going on without (RuntimeError: no compiler)") == 1


def test_memory_that_runs_out_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", lambda module: fails)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Compiled(torch.nn.Linear(2, 1))(torch.ones(1, 2))
