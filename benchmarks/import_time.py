"""Print how long importing the core (every public name) takes after `import torch`.

    python -m benchmarks.import_time
    python -m benchmarks.import_time --runs 9

Each run is a new process. The table shows the minimum and the median over the runs, as wall time and as CPU time. The
tests check which modules the import loads (tests/test_house.py) and assert on no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, sys, time
def timed(name):
    wall, cpu = time.perf_counter(), time.process_time()
    module = __import__(name)
    [getattr(module, public) for public in getattr(module, "__all__", ()) if name == "nada_core"]
    return [time.perf_counter() - wall, time.process_time() - cpu]
sys.stdout.write(json.dumps({name: timed(name) for name in ("torch", "nada_core")}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes to start (%(default)s)")
    args = parser.parse_args()
    command = [sys.executable, "-c", PROGRAM]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(args.runs)
    ]
    sys.stdout.write("| import | wall, minimum | wall, median | CPU, minimum | CPU, median |\n|---|---|---|---|---|\n")
    for name in ("torch", "nada_core"):
        columns = zip(*(run[name] for run in runs), strict=True)
        cells = (f"{min(times):.3f} s | {statistics.median(times):.3f} s" for times in columns)
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
