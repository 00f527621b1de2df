"""The runner of `benchmarks.versions`: its versions, and what it reads from pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import versions

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("output", "cells"),
    [
        ("....\n4217 passed, 3 skipped, 1 warning in 264.35s (0:04:24)\n", "4217 | 0 | 3"),
        ("F\nFAILED x\n2 failed, 5 passed in 1.00s\n", "5 | 2 | 0"),
        ("\n1 passed, 2 errors in 1.00s\n", "1 | 2 | 0"),
        ("Segmentation fault", "0 | no summary | 0"),
    ],
)
def test_summary_of_pytest_is_read(output: str, cells: str) -> None:
    assert versions.counts(output) == cells


def test_missing_interpreter_is_reported_and_sets_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "interpreter", lambda python: None)
    monkeypatch.setattr(sys, "argv", ["versions", "--python", "3.10"])
    assert versions.main() == 3 and "no python3.10" in capsys.readouterr().out


@pytest.mark.parametrize(("output", "status"), [("", 0), ("FAILED", 1)])
def test_failure_sets_the_exit_status(monkeypatch: pytest.MonkeyPatch, output: str, status: int) -> None:
    monkeypatch.setattr(versions, "interpreter", lambda python: python)
    monkeypatch.setattr(versions, "environment", lambda *_: "python")
    monkeypatch.setattr(versions, "run_tests", lambda *_: ("cells", output))
    monkeypatch.setattr(sys, "argv", ["versions"])
    assert versions.main() == status


def test_pins_are_among_the_versions() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(versions.TORCHES["2.11"]) <= set(pinned)


def test_oldest_torch_is_that_of_the_workflow() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert " ".join(versions.TORCHES["2.6"]) in workflow
