"""The flags of every command; those of an adaptation are read from the dataclasses of its settings.

What `parse` returns has one attribute a flag, and `command`, the name of the sub-command.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import __version__, portraits
from .adapt import AdaptConfig
from .checkpoints import BUILTINS
from .layers import LayerChoice
from .precision import PRECISIONS
from .settings import add_flags

ROWS, CELLS = 16, 64  # a larger picture is no longer taken in at a glance
MOST_SEEDS = 10_000


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line. Wrong usage leaves through argparse's SystemExit(2), help and version with code 0."""
    return _parser(_adapt_defaults(words)).parse_args(words)


class _Defaults(NamedTuple):
    """Which defaults `adapt` has: the built-in world's for its own generator, the paper's for every other."""

    config: AdaptConfig
    builtin: bool


def _parser(defaults: _Defaults) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nada_core",
        description="Move a StyleGAN2 generator into a new domain by words alone (StyleGAN-NADA).",
        epilog="`python -m nada_core COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(commands, "demo", "adapt the built-in generator by text and judge the result",
                    "demo --target 'pencil sketch'")  # fmt: skip
    demo.add_argument("--target", default="joker", choices=portraits.TARGETS, metavar="TEXT",
                      help=f"one of {', '.join(portraits.TARGETS)} (default joker)")  # fmt: skip
    demo.add_argument("--out", default="out/demo", metavar="DIR", help="folder of the results (default out/demo)")

    info = _command(commands, "info", "say what a file is: a generator and its layers, a guide, an autosave",
                    "info portraits")  # fmt: skip
    info.add_argument("file", metavar="FILE", help="a file of weights, or a built-in name")

    convert = _command(commands, "convert", "rewrite a generator: .safetensors is ours, .pt rosinality's",
                       "convert ffhq.pkl ffhq.safetensors")  # fmt: skip
    convert.add_argument("file", metavar="IN", help="a generator's file, or a built-in name")
    convert.add_argument("out", metavar="OUT", help="what to write; the name's end decides on the format")
    convert.add_argument("--half", action="store_true", help="store the synthesis network as float16")
    convert.add_argument("--force", action="store_true", help="overwrite OUT")

    pictures = _command(commands, "sample", "write a grid of a generator's pictures",
                        "sample portraits --seeds 0-15 --psi 0.7 --out out/grid.png")  # fmt: skip
    pictures.add_argument("generator", metavar="GENERATOR", help="a generator's file, or a built-in name")
    _latent_flags(pictures, "0-15", f"; the grid shows the first {CELLS}")
    pictures.add_argument("--separate", metavar="DIR", help="also write every picture on its own, in full size")

    _adapt_flags(_command(commands, "adapt", "move a generator into a new domain; `torchrun --nproc-per-node N -m "
                          "nada_core adapt` lets N processes share each batch",
                          "adapt portraits --target zombie --out out",
                          "adapt ffhq.pkl --guide ViT-B-32:openai --guide ViT-B-16:openai --target zombie --out out",
                          ), defaults)  # fmt: skip

    compare = _command(commands, "compare", "show the same latents through several generators, side by side",
                       "compare ffhq.pkl zombie.safetensors --seeds 0-7 --out out/compare.png",
                       "compare portraits zombie.safetensors --guide portraits --target zombie --out ab.png")
    compare.add_argument("first", metavar="GEN_A", help="whose latents are shown; figures are relative to it")
    compare.add_argument("others", metavar="GEN_B", nargs="+", help="generators adapted from it")
    _latent_flags(compare, "0-7", f"; the grid shows the first {ROWS}, the figures use all")
    figures = compare.add_argument_group("figures", "quality, direction and diversity of every generator as guides see "
                                                    "them; papers take 500 to 1000 seeds")  # fmt: skip
    figures.add_argument("--guide", action="append", metavar="NAME", help="a guide to judge by; may be repeated")
    figures.add_argument("--source", default="photo", metavar="TEXT", help="what GEN_A makes (default photo)")
    figures.add_argument("--target", metavar="TEXT", help="what the others should make")

    bench = _command(commands, "bench", "say how fast a training runs here and what takes the time", "bench",
                     "bench ffhq.pkl --guide ViT-B-32:openai --precision bf16")  # fmt: skip
    bench.add_argument("generator", metavar="GENERATOR", nargs="?", default="portraits",
                       help="a generator's file, or a built-in name (default portraits)")  # fmt: skip
    bench.add_argument("--guide", action="append", metavar="NAME", help="may be repeated (default portraits)")
    bench.add_argument("--steps", type=_positive, default=22, metavar="N",
                       help="two of them are not timed (default 22)")  # fmt: skip
    bench.add_argument("--batch", type=_positive, metavar="N", help="latents a step (default: as the training's)")
    bench.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="(default fp32)")
    return parser


def _command(commands: Any, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False,
        epilog="\n".join(["example:", *(f"  python -m nada_core {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                         help="where to compute; auto takes a GPU if there is one (default auto)")  # fmt: skip
    machine.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.set_defaults(command=name)
    return parser


def _latent_flags(parser: argparse.ArgumentParser, seeds: str, note: str = "") -> None:
    parser.add_argument("--seeds", type=_seeds, default=_seeds(seeds), metavar="LIST",
                        help=f"such as 0-15 or 1,5,9 (default {seeds}){note}")  # fmt: skip
    parser.add_argument("--psi", type=float, default=0.7, metavar="X",
                        help="truncation: 1 all variety, 0 the mean picture (default 0.7)")  # fmt: skip
    parser.add_argument("--label", type=int, metavar="N", help="class of a conditional generator")
    parser.add_argument("--out", required=True, metavar="PNG", help="the grid to write")


def _adapt_flags(parser: argparse.ArgumentParser, defaults: _Defaults, required: bool = True) -> None:
    parser.add_argument("generator", metavar="GENERATOR", nargs=None if required else "?",
                        help="a generator's file, or a built-in name")  # fmt: skip
    parser.add_argument("--guide", type=_weighted, action="append", metavar="NAME[=WEIGHT]",
                        required=required and not defaults.builtin,
                        help="a built-in name, ARCHITECTURE:TAG (downloaded on first use) or ARCHITECTURE:FILE; may be "
                             "repeated" + (" (default portraits)" if defaults.builtin else ""))  # fmt: skip
    parser.add_argument("--source", default="photo", metavar="TEXT", help="what it makes now (default photo)")
    parser.add_argument("--target", required=required, metavar="TEXT", help="what it shall make")
    parser.add_argument("--out", required=required, metavar="PATH",
                        help="a .safetensors file, or a folder for TARGET.safetensors")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite an earlier result")
    parser.add_argument("--autosave", metavar="FILE",
                        help="what a stopped run goes on from; removed with the result saved (default: beside it)")
    parser.add_argument("--resume", action="store_true", help="go on from the autosave; give all other flags as before")
    whose = ("the built-in world's recipe" if defaults.builtin else
             "the paper's, for published generators; `adapt portraits --help` shows the built-in world's")  # fmt: skip
    # An argument group takes arguments like a parser, but argparse has no public name for what both are.
    training = parser.add_argument_group("training", f"The defaults are {whose}.")
    add_flags(training, AdaptConfig, defaults.config)  # type: ignore[arg-type]
    layers = parser.add_argument_group("trained layers")
    add_flags(layers, LayerChoice, defaults.config.layers, "layers")  # type: ignore[arg-type]


def _adapt_defaults(words: Sequence[str]) -> _Defaults:
    """The defaults depend on the generator, so the command line is first read for its name alone."""
    paper = _Defaults(AdaptConfig(), False)
    if words[:1] != ["adapt"]:
        return paper
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _adapt_flags(first, paper, required=False)
    try:
        known, _ = first.parse_known_args(words[1:])
    except argparse.ArgumentError:  # the whole parser finds it again and reports it with its own usage
        return paper
    return _Defaults(portraits.RECIPE, True) if known.generator in BUILTINS else paper


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:\s*-\s*(\d{1,10}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if high < low or high - low + len(found) >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to {MOST_SEEDS} numbers, as in 0-15 or 1,5,9.")
        found.extend(range(low, high + 1))
    return found


def _weighted(text: str) -> tuple[str, float]:
    name, mark, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if mark else (text, 1.0)
    except ValueError:  # a path may hold an equals sign of its own
        return text, 1.0


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1.")
    return int(text)
