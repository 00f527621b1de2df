"""Arithmetic of a run: TF32 switches through either API of torch, and precisions a device does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import generator, guide

from nada_core.adaptation.adapt import adapt
from nada_core.adaptation.config import AdaptConfig
from nada_core.guidance.shifts import TextShift
from nada_core.runtime.precision import check_precision, no_autocast, tf32

ROOT = Path(__file__).parents[1]
NEW_API = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9

#: What a host may have set, in a process of its own: these settings are the process's.
HOSTS = {
    "default": "",
    "legacy": "torch.backends.cuda.matmul.allow_tf32 = True",
    "medium": "torch.set_float32_matmul_precision('medium')",
    **({"generic": "b.fp32_precision = 'tf32'", "new": "b.cuda.matmul.fp32_precision = 'tf32'"} if NEW_API else {}),
}
PROGRAM = """
import sys, torch
sys.path.insert(0, "tests")
from tiny import generator, guide
from nada_core import AdaptConfig, TextShift, adapt
from nada_core.runtime.precision import tf32
b = torch.backends
{host}
def state():
    if not hasattr(b.cuda.matmul, "fp32_precision"):
        return [b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32]
    ops = (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.mkldnn, b.mkldnn.matmul, b.mkldnn.conv)
    return [op.fp32_precision for op in ops] + [legacy()]
def legacy():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses where the host has used the new API
        return "mixed"
before, inside = state(), []
adapt(generator(), guide(), TextShift("photo", "sketch"), AdaptConfig(steps=1), lambda _: inside.append(state()))
assert state() == before, (before, state())
matmul = inside[0][1] if len(before) > 2 else inside[0][0]
assert matmul in ("ieee", False), inside
if {probe}:
    b.fp32_precision = "ieee"  # what followed the parent follows it again
    assert b.cuda.matmul.fp32_precision == "ieee", state()
"""


@pytest.mark.parametrize("host", HOSTS)
def test_run_is_exact_and_leaves_the_process_settings_unchanged(host: str) -> None:
    program = PROGRAM.format(host=HOSTS[host], probe=host == "generic")
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.skipif(not NEW_API, reason="the flags of torch before 2.9 have no names for these")
def test_tf32_is_allowed_on_gpus_only() -> None:
    backends: Any = torch.backends
    with tf32(True):
        assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "tf32"
        assert backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"


def test_settings_are_restored_after_an_error() -> None:
    backends: Any = torch.backends
    name = "fp32_precision" if NEW_API else "allow_tf32"
    before = getattr(backends.cuda.matmul, name)
    with pytest.raises(KeyboardInterrupt), tf32(True):
        raise KeyboardInterrupt
    assert getattr(backends.cuda.matmul, name) == before


def test_half_precision_is_refused_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda _: False)
    check_precision("fp32", torch.device("cpu"))
    with pytest.raises(ValueError, match="bf16"):
        adapt(generator(), guide(), TextShift("photo", "sketch"), AdaptConfig(precision="bf16"))
    with no_autocast(torch.device("cpu")):
        assert torch.ones(1).item() == 1.0


def test_autocast_of_the_host_is_switched_off() -> None:
    with torch.autocast("cpu", torch.bfloat16), no_autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
