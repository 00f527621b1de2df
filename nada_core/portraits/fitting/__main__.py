"""Fit the weights of the built-in world: about four and a half hours on a CPU core.

    python -m nada_core.portraits.fitting                      everything, into nada_core/portraits/weights
    python -m nada_core.portraits.fitting judge --minutes 20   one part

Each part has a budget in minutes, so a faster machine gives better weights, and no two runs give the same bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...io.checkpoint_file import BUILTIN
from . import generator as fit_generator
from . import guide as fit_guide
from . import identity as fit_identity
from . import judge as fit_judge

PARTS: dict[str, tuple[Callable[..., None], float]] = {
    "guide": (fit_guide.fit, 64.0),
    "guide-64": (partial(fit_guide.fit, name="guide-64", seed=100), 64.0),
    "guide-vit": (partial(fit_guide.fit, name="guide-vit", seed=200), 66.0),
    "generator": (fit_generator.fit, 34.0),
    "judge": (fit_judge.fit, 20.0),
    "identity": (fit_identity.fit, 16.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nada_core.portraits.fitting", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--minutes", type=float, help="time budget of each part")
    parser.add_argument("--out", type=Path, default=BUILTIN, help="folder for the weights (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="file to append the losses to")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"got {', '.join(unknown)}, expected {', '.join(PARTS)}")
    for part in args.parts or PARTS:
        fit, minutes = PARTS[part]
        fit(args.out, minutes=args.minutes or minutes, log=args.log)


if __name__ == "__main__":
    main()
