"""docs/speed.md: the tables of `benchmarks.speed`, and the rows of earlier runs that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

SHORT, FULL = "## Short run", "## All cases"

SHORT_COLUMNS = ("case", "vectors", "side", "CPU time per step", "ratio to naive", "share of peak")
FULL_COLUMNS = (
    "case",
    "processor",
    "side",
    "CPU time per step",
    "ratio",
    "goal",
    "largest (mean) error",
    "peak memory",
    "GFLOP",
    "share of matmul's peak",
    "seconds by part",
)


def head(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def stored(path: Path) -> tuple[str, list[str]]:
    """Return the short section of a page, and the rows of the table of all cases."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    short = text.partition(SHORT)[2].partition(FULL)[0].strip()
    lines = text.partition(FULL)[2].splitlines()
    return short, [line for line in lines if line.startswith("| ") and not line.startswith("| case |")]


def merged(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Replace the rows of each case that was measured again on the same processor, in its place, and append others."""
    by_case: dict[tuple[str, ...], list[str]] = {}
    for lines in (old, new):
        fresh = {_case(line): [] for line in lines} if lines is new else {}
        by_case |= fresh
        for line in lines:
            by_case.setdefault(_case(line), []).append(line)
    return [line for lines in by_case.values() for line in lines]


def _case(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.split("|")[1:3])


def page(short: str, rows: Sequence[str]) -> Iterator[str]:
    """The text of docs/speed.md, section by section."""
    yield f"""# Time and memory of a training step

Printed by `python -m benchmarks.speed`; its docstring describes the method. One CPU thread, torch {torch.__version__}.
For GPUs see [gpu.md](gpu.md).

- **naive**: `benchmarks/naive.py`, a plain implementation of the papers.
- **fp32**: this package with the native convolution (`nada_core/models/ops/winograd.cpp`, built by
  `python -m nada_core build-native`). It keeps freed memory during the run (`nada_core.runtime.allocator`).
- **fp32, torch alone**: the same without the native convolution (`NADA_NATIVE=0`).
- **fp32, known latents**: a step whose latents come from the `pool` for the second time, so that the embeddings of the
  source images are cached. The naive side always gets new latents.
- **AVX2**: PyTorch, oneDNN and MKL limited to AVX2 by environment variables, and the native convolution compiled for
  it, on the same processor. Processors that have AVX2 only differ in their clock and caches.
- **GFLOP**: operations of one step, counted as direct convolutions need them. Winograd's convolution needs a quarter of
  the multiplications, so that it can exceed 100 % of a peak.
"""
    yield f"""{SHORT}

{short}
"""
    yield f"""{FULL}

`python -m benchmarks.speed --full`. Rows that were not measured again stay, with the processor that they were measured
on.

- **largest (mean) error**: difference to the naive side's images for equal latents and noise; in brackets its mean as a
  share of the images' standard deviation. bf16 trades accuracy for speed.
- **share of matmul's peak**: relative to a 2048 x 2048 float32 matrix product timed after the steps. Convolutions can
  exceed 100 %, because they are faster than matrix products on this processor.

{head(FULL_COLUMNS)}
""" + "\n".join(rows)
    yield """
ComfyUI runs a training in a worker thread. There the C library keeps freed memory only if ComfyUI was started with
`MALLOC_ARENA_MAX=1` in its environment.

Negative result: Winograd's F(4x4, 3x3) in plain torch is no faster than torch's own convolution.
"""


def write(path: Path, short: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join(page(short, rows)), encoding="utf-8")
