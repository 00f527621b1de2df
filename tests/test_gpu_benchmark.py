"""`benchmarks.gpu` at toy size on a CPU: every part runs, and a row that fails does not end the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from benchmarks import gpu, gpu_parts
from benchmarks.gpu_parts import TOY, Meter, OutOfTimeError
from benchmarks.speed import Counter

SECTIONS = {"throughput", "pictures", "training", "speed", "parts", "run", "ceiling", "lending"}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def rows_of(folder: Path) -> dict[tuple[str, str], dict]:
    return {(row["section"], row["name"]): row for row in json.loads((folder / "gpu.json").read_text())["rows"]}


@pytest.mark.usefixtures("no_gpu")
def test_every_part_runs(tmp_path: Path) -> None:
    assert gpu.main(["--toy", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert {section for section, _ in rows} == SECTIONS
    assert not any("failed" in row or "skipped" in row for row in rows.values())
    assert all(row["met"] for row in rows.values() if "met" in row)
    setup = TOY.setups()[0].name
    beside, half = rows["speed", f"{setup}, fp32"], rows["speed", f"{setup}, fp16"]
    assert beside["ratio"] == pytest.approx(beside["naive_seconds"] / beside["seconds"])
    assert beside["operations"] == pytest.approx(half["operations"], rel=0.02) and "ratio" not in half
    assert rows["run", "32 px"]["steps"] == TOY.run_steps
    assert rows["ceiling", "1 GB, 32 px, batch 8"]["latents"] == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "Toy sizes" in text and text.count("\n| ") > len(rows)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "docs")]) == 2
    assert "no GPU" in capsys.readouterr().err and not (tmp_path / "docs").exists()


def test_toy_figures_stay_out_of_the_documentation() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--toy"])


def test_failed_rows_do_not_end_the_others(tmp_path: Path) -> None:
    def full() -> dict:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 20 GiB.")

    report = gpu.Report(tmp_path, {"name": "card"}, time.monotonic() + 60)
    report.add("run", "large", full)
    assert report.is_sound
    report.add("speed", "broken", lambda: {"seconds": 1 / 0})
    report.add("speed", "whole", lambda: {"seconds": 0.5})
    report.deadline = 0.0
    report.add("parts", "late", lambda: {"parts": {}})
    rows = rows_of(tmp_path)
    assert rows["run", "large"]["failed"] == "out of memory"
    assert "ZeroDivisionError" in rows["speed", "broken"]["failed"] and not report.is_sound
    assert rows["speed", "whole"]["seconds"] == 0.5 and "skipped" in rows["parts", "late"]
    text = (tmp_path / "gpu.md").read_text()
    assert "| whole | 0.5 s |" in text and "| large | out of memory |" in text and "not measured: no time" in text


def test_row_ends_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    device, steps = torch.device("cpu"), 0

    def naive() -> None:
        nonlocal steps
        steps += 1

    meter = Meter(device, time.monotonic() + 60)
    meter.add_naive(lambda: naive)
    meter.start()
    meter(None)
    assert steps == 2 and len(meter.seconds) == len(meter.naive_seconds) == 1
    meter.deadline = 0.0
    with pytest.raises(OutOfTimeError):
        meter(None)


def test_counter_is_closed_when_a_step_fails() -> None:
    meter = Meter(torch.device("cpu"), time.monotonic() + 60, Counter())
    with pytest.raises(torch.cuda.OutOfMemoryError), meter.counting:
        meter.start()
        meter(None)
        assert _get_current_dispatch_mode_stack() == [meter.counter]
        raise torch.cuda.OutOfMemoryError("full")
    assert not _get_current_dispatch_mode_stack()


def test_plain_implementation_that_does_not_fit_is_left_out() -> None:
    def full() -> None:
        raise torch.cuda.OutOfMemoryError("full")

    meter = Meter(torch.device("cpu"), time.monotonic() + 60)
    meter.add_naive(lambda: full)
    assert meter.naive is None
    meter.naive = full
    meter.start()
    meter(None)
    assert meter.naive is None and len(meter.seconds) == 1 and not meter.naive_seconds


def test_memory_of_both_sides_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes belong to both sides, 30 to the plain implementation and 50 to the run."""
    now, peak = {"bytes": 100}, {"bytes": 0}
    monkeypatch.setattr(gpu_parts, "allocated", lambda _: now["bytes"])
    monkeypatch.setattr(gpu_parts, "peak_allocated", lambda _: peak["bytes"])

    def naive() -> None:
        peak["bytes"] = now["bytes"] + 7

    def build() -> object:
        now["bytes"] += 30
        return naive

    meter = Meter(torch.device("cpu"), time.monotonic() + 60)
    meter.add_naive(build)
    now["bytes"] += 50
    meter.start()
    peak["bytes"] = now["bytes"] + 9
    meter(None)
    assert (meter.peak, meter.naive_peak) == (100 + 50 + 9, 100 + 30 + 7)
