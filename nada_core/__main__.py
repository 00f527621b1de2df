"""Run the command line: `python -m nada_core`."""

import os
import sys

if __name__ == "__main__":
    # Threads that wait sleep instead of spinning, which leaves the CPU to others. OpenMP reads it when PyTorch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .cli.main import main

    sys.exit(main())
