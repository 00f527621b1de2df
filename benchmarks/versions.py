"""Run the tests with several versions of Python and torch, each in an environment of its own.

    python -m benchmarks.versions
    python -m benchmarks.versions --python 3.10 --torch 2.6 -- tests/test_nodes.py

Environments are kept in out/versions and used again; what they lack is installed by pip, without the pins of
constraints.txt. Interpreters are found by name (python3.10, ...). What follows `--` goes to pytest.

Exit status: 0 if every pair has passed, 1 if tests failed, 3 if an interpreter is missing and nothing failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.13")
TORCHES = {
    "2.6": ("torch==2.6.0", "torchvision==0.21.0"),
    "2.11": ("torch==2.11.0", "torchvision==0.26.0"),
    "2.14": ("torch==2.14.1", "torchvision==0.29.1"),
}
TOOLS = ("-r", "requirements.txt", "pytest", "pytest-xdist", "comfy-cli", "onnx", "onnxruntime", "optuna")

_VERSIONS = "import sys, torch; sys.stdout.write(f'{sys.version.split()[0]} | {torch.__version__}')"


def interpreter(python: str) -> str | None:
    """The path of an interpreter of this version, None where there is none that runs."""
    path = shutil.which(f"python{python}")
    runs = path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0  # a shim may have no target
    return path if runs else None


def environment(python: str, torch: str) -> str:
    """The interpreter of an environment with these versions; creates the environment if there is none."""
    folder = ROOT / "out" / "versions" / f"py{python}-torch{torch}"
    executable = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if not Path(executable).exists():
        subprocess.run([str(interpreter(python)), "-m", "venv", str(folder)], check=True)
    install = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TORCHES[torch], *TOOLS]
    subprocess.run(install, cwd=ROOT, check=True)
    return executable


def run_tests(executable: str, workers: int, words: Sequence[str]) -> tuple[str, str]:
    """Run the tests, and return the cells of the table, and the output if they have failed."""
    command = [executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadfile"]
    found = subprocess.run([executable, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
    start = time.monotonic()
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    cells = f"{found} | {counts(done.stdout)} | {(time.monotonic() - start) / 60:.1f} min"
    return cells, done.stdout + done.stderr if done.returncode else ""


def counts(output: str) -> str:
    """The cells passed, failed and skipped of the summary that pytest prints last."""
    summary = output.strip().rpartition("\n")[2]
    numbers = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)}
    failed = numbers.get("failed", 0) + numbers.get("error", 0)
    return f"{numbers.get('passed', 0)} | {failed if numbers else 'no summary'} | {numbers.get('skipped', 0)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="may be repeated (all)")
    parser.add_argument("--torch", action="append", choices=tuple(TORCHES), help="may be repeated (all)")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the tests (%(default)s)")
    parser.add_argument("words", nargs="*", help="for pytest, after --")
    args = parser.parse_args()
    status = 0
    sys.stdout.write("| Python | torch | passed | failed | skipped | time |\n|---|---|---|---|---|---|\n")
    for python in args.python or PYTHONS:
        if interpreter(python) is None:
            sys.stdout.write(f"| {python} | - | not run: no python{python} | - | - | - |\n")
            status = status or 3
            continue
        for torch in args.torch or TORCHES:
            cells, output = run_tests(environment(python, torch), args.workers, args.words)
            sys.stdout.write(f"| {cells} |\n")
            sys.stdout.flush()
            if output:
                status = 1
                sys.stderr.write(output)
    return status


if __name__ == "__main__":
    sys.exit(main())
