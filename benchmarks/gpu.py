"""Measure training on a GPU in at most 8 minutes, and write docs/gpu.md and docs/gpu.json.

    python -m benchmarks.gpu            on the GPU that torch finds
    python -m benchmarks.gpu --toy      tiny networks, also on a CPU: checks that every part runs

The weights are random: StyleGAN2 config F and CLIP models of the sizes ViT-B/32 and ViT-B/16. Both files are rewritten
after every row. A row that fails, such as one that does not fit into the memory, does not end the others. The most
important rows come first; those for which no time is left are skipped and listed as such.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_page
from benchmarks.gpu_parts import (
    REAL,
    SIDES,
    TOY,
    OutOfTimeError,
    Sizes,
    card,
    ceiling,
    lending,
    parts,
    pictures,
    run,
    speed,
    steps_parity,
    throughput,
)
from nada_core.runtime.precision import PRECISIONS

_OUT_OF_TIME = "no time was left"


@dataclass
class Report:
    """The rows of all sections, in files that are rewritten after each of them."""

    folder: Path
    card: dict[str, Any]
    deadline: float  # of time.monotonic
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, section: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one row unless the time is over."""
        try:
            if time.monotonic() > self.deadline:
                raise OutOfTimeError
            row = measure()
        except OutOfTimeError:
            row = {"skipped": _OUT_OF_TIME}
        except torch.cuda.OutOfMemoryError:
            row = {"failed": "out of memory"}
        except Exception as error:
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0], "unexpected": True}
        self.rows.append({"section": section, "name": name, **row})
        sys.stdout.write(f"{section}, {name}: {gpu_page.short(row)}\n")
        sys.stdout.flush()
        self.write()
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Write the figures and the page."""
        content = {"card": self.card, "rows": self.rows}
        (self.folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (self.folder / "gpu.md").write_text(gpu_page.page(content), encoding="utf-8")

    @property
    def is_sound(self) -> bool:
        """Whether no row failed for another reason than memory."""
        return not any("unexpected" in row for row in self.rows)


def measure_all(report: Report, sizes: Sizes, device: torch.device) -> None:
    """Measure everything, the most important rows first."""
    guides, stop = [sizes.guide(index) for index in range(2)], report.deadline
    small, largest = sizes.resolutions[0], sizes.resolutions[-1]

    for precision in PRECISIONS:
        report.add("throughput", precision, partial(throughput, precision, sizes, device))
    peaks = {row["name"]: max(row.get("matmul", 0.0), row.get("conv", 0.0)) for row in report.rows}
    for resolution in (small, largest):
        report.add("pictures", f"{resolution} px", partial(pictures, sizes.generator(resolution), device))
    report.add("training", f"{small} px", partial(steps_parity, sizes.generator(small), guides[0], device))

    for index, setup in enumerate(sizes.setups()):
        for side in SIDES:
            measure = partial(speed, setup, side, guides, sizes, device, peaks, stop)
            report.add("speed", f"{setup.name}, {side.name}", measure)
        if index:
            continue
        report.add("parts", setup.name, partial(parts, setup, guides[0], sizes, device))
        report.add("run", f"{largest} px", partial(run, guides[0], sizes, device, stop))
        for gigabytes in sizes.ceilings:
            for batch in (2, 8):
                limited = partial(ceiling, guides[0], sizes, device, gigabytes, batch, stop)
                report.add("ceiling", f"{gigabytes} GB, {largest} px, batch {batch}", limited)
        report.add("lending", f"{small} px", partial(lending, sizes.generator(small), guides[0], device))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--toy", action="store_true", help="tiny networks, on a CPU if there is no GPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of gpu.md and gpu.json (%(default)s)")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not args.toy:
        sys.stderr.write("PyTorch finds no GPU; nothing was measured, nothing was written. --toy runs on a CPU.\n")
        return 2
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if args.toy and args.out == parser.get_default("out"):
        parser.error("--toy needs --out, because its figures are not for the documentation")
    started = time.monotonic()
    report = Report(args.out, {**card(device), "toy": args.toy}, started + 60 * args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    measure_all(report, TOY if args.toy else REAL, device)
    report.card["minutes"] = (time.monotonic() - started) / 60
    report.write()
    return 0 if report.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
