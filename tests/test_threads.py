"""The number of CPU threads: its measurement, and that a run and its resumed parts use one number."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import changed, generator, guide

from nada_core.adaptation import threads
from nada_core.adaptation.adapt import Step, adapt
from nada_core.adaptation.config import AdaptConfig
from nada_core.guidance.shifts import TextShift
from nada_core.runtime.threads import cpu_threads, quickest_threads

SHIFT = TextShift("photo", "sketch", ("a {} of a face",))
CONFIG = AdaptConfig(steps=4, warmup=0, pool=2)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with cpu_threads(4):
        yield
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    "seconds, best",
    [({1: 10, 2: 6, 4: 4}, 4), ({1: 10, 2: 60, 4: 4}, 1), ({1: 10, 2: 6, 4: 7}, 2), ({1: 10, 2: 9.5, 4: 4}, 1)],
)
def test_measurement_stops_where_more_threads_bring_no_gain(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], best: int
) -> None:
    now = [0.0]

    def work() -> None:
        now[0] += seconds[torch.get_num_threads()]

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert quickest_threads(work) == best


def test_number_that_is_much_slower_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def work() -> None:
        calls.append(torch.get_num_threads())
        now[0] += {1: 0.1, 2: 5.0}[calls[-1]]

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert quickest_threads(work) == 1 and calls == [1, 1, 1, 1, 2]


def test_single_thread_is_not_measured() -> None:
    def work() -> None:
        raise AssertionError("measured")

    assert quickest_threads(work, most=1) == 1


def test_threads_are_restored_after_an_exception() -> None:
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickest_threads(work)
    assert torch.get_num_threads() == 4


def test_measurement_does_not_change_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "quickest_threads", lambda work: (work(), 2)[1])
    source = generator()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    measured = adapt(source, guide(), SHIFT, CONFIG, threads=0)
    assert measured.domain.provenance["threads"] == 2 and not changed(before, source.state_dict())
    assert all(p.grad is None for p in source.parameters())
    given = adapt(generator(), guide(), SHIFT, CONFIG, threads=2)
    assert not changed(measured.generator.state_dict(), given.generator.state_dict())


@pytest.mark.parametrize("asked", [None, 0, 1])
def test_resumed_run_uses_the_number_of_its_autosave(tmp_path: Path, asked: int | None) -> None:
    used: list[int] = []
    path = tmp_path / "run.safetensors"

    def interrupt(step: Step) -> None:
        used.append(torch.get_num_threads())
        if step.index == 1:
            raise KeyboardInterrupt

    def run(on_step: Any, threads: int | None) -> Any:
        return adapt(generator(), guide(), SHIFT, CONFIG, on_step, path, resume=path.exists(), threads=threads)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, 3)
    result = run(lambda _: used.append(torch.get_num_threads()), asked)
    assert used == [3] * 4 and result.domain.provenance["threads"] == 3


def test_callers_number_is_not_recorded_in_the_provenance() -> None:
    assert "threads" not in adapt(generator(), guide(), SHIFT, CONFIG).domain.provenance
