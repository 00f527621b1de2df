"""Seeds and the generators of random numbers."""

from __future__ import annotations

import pytest
import torch

from nada_core.runtime.seeds import MAX_SEED, generator_on, seeded


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, True, 1.0, "0"])
def test_seed_outside_the_range_is_refused(seed: object) -> None:
    with pytest.raises(ValueError, match=repr(seed)):
        seeded(seed)  # type: ignore[arg-type]


def test_numbers_on_the_cpu_come_from_the_run() -> None:
    rng = seeded(3)
    assert generator_on(torch.device("cpu"), rng) is rng


def test_numbers_on_a_device_follow_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        """Stands for the generator of a device that this machine does not have."""

        def __init__(self, device: torch.device) -> None:
            self.device = device

        def manual_seed(self, seed: int) -> tuple[torch.device, int]:
            return self.device, seed

    device, first, again, other = torch.device("cuda"), seeded(3), seeded(3), seeded(4)
    monkeypatch.setattr(torch, "Generator", Recorder)
    results = [generator_on(device, rng) for rng in (first, first, again, other)]
    assert results[0] == results[2] and len({seed for _, seed in results}) == 3  # type: ignore[misc]
