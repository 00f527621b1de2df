"""The page and the settings of the speed benchmark; its measurements are not part of the suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import processor
from benchmarks.speed import CASES, random_generator
from benchmarks.speed_page import FULL_COLUMNS, merged, row, stored, write
from nada_core.adaptation.layer_selection import selectable_layers


def line(case: str, machine: str, seconds: str) -> str:
    return row((case, machine, "fp32", seconds, *("-" for _ in FULL_COLUMNS[4:])))


def test_speed_page_keeps_rows_and_section(tmp_path: Path) -> None:
    rows, section = [line("64 px", "AVX512", "1 s"), line("128 px", "AVX512", "2 s")], "the short run\n\n| a | b |"
    write(tmp_path / "speed.md", section, rows)
    assert stored(tmp_path / "speed.md") == (section, rows)
    assert stored(tmp_path / "absent.md") == ("", [])


def test_speed_rows_replace_those_of_the_same_case_and_processor() -> None:
    old = [line("64 px", "AVX512", "1 s"), line("64 px", "AVX512", "2 s"), line("128 px", "AVX512", "3 s")]
    new = [line("64 px", "AVX512", "4 s"), line("128 px", "AVX2", "5 s")]
    assert merged(old, new) == [new[0], old[2], new[1]]
    assert merged(old, []) == old


def test_limit_of_vectors_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_build_native", lambda folder, architecture: None)
    monkeypatch.setattr(processor, "capability", lambda: "AVX512")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    before = dict(os.environ)
    assert processor.instruction_sets() == ["AVX512", "AVX2"]
    with processor.vectors("AVX2", tmp_path):
        assert {name: os.environ[name] for name in processor.AVX2} == processor.AVX2
    assert dict(os.environ) == before
    with processor.vectors("AVX512", tmp_path):
        assert dict(os.environ) == before | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "AVX512")}


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_choose_its_layers(name: str) -> None:
    case = CASES[name]
    layers = selectable_layers(case.layers, random_generator(case.resolution, channel_max=8))
    expected = {"off": case.layers.mode == "all", "real": case.layers.count < len(layers)}
    assert expected.get(case.select, case.layers.count == len(layers))
