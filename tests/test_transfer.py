"""Numbers from the device in one copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nada_core.runtime.transfer import fetch


def test_fetch_returns_the_values_of_every_tensor() -> None:
    tensors = torch.tensor(1.5, requires_grad=True), torch.tensor([True, False]), torch.zeros(0), torch.ones(2, 1) * 3
    assert fetch(*tensors) == [[1.5], [1.0, 0.0], [], [3.0, 3.0]]


def test_fetch_copies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: copied.append(self) or tolist(self))
    fetch(*torch.ones(5))
    assert len(copied) == 1
