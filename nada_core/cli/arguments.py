"""The flags of every command; those of an adaptation are read from the dataclasses of its settings.

What `parse` returns has one attribute a flag, and `command`, the name of the sub-command.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import __version__, portraits
from ..adaptation.config import AdaptConfig, LayerChoice
from ..adaptation.recipes import RECIPES, Recipe
from ..latents.inversion import PRESETS, InvertConfig
from ..latents.pivotal_tuning import TuneConfig
from ..latents.text_edit import TextEditConfig
from ..models.checkpoints import BUILTINS
from ..runtime.config import add_flags
from ..runtime.precision import PRECISIONS

ROWS, CELLS = 16, 64  # a larger picture is no longer taken in at a glance

MOST_SEEDS = 10_000


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line. Wrong usage leaves through argparse's SystemExit(2), help and version with code 0."""
    return _parser(_defaults_for(words)).parse_args(words)


class _Defaults(NamedTuple):
    """Which defaults `adapt` and `invert` have: the built-in world's for its own generator, the papers' for others."""

    config: AdaptConfig
    builtin: bool
    recipe: Recipe | None = None
    invert: InvertConfig = PRESETS["default"]
    tune: TuneConfig = TuneConfig()


def _parser(defaults: _Defaults) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nada_core",
        description="Move a StyleGAN2 generator into a new domain by words alone (StyleGAN-NADA).",
        epilog="`python -m nada_core COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", "adapt the built-in generator by text and judge the result", "demo --target 'pencil sketch'"
    )
    demo.add_argument(
        "--target",
        default="joker",
        choices=portraits.TARGETS,
        metavar="TEXT",
        help=f"one of {', '.join(portraits.TARGETS)} (default joker)",
    )
    demo.add_argument("--out", default="out/demo", metavar="DIR", help="folder of the results (default out/demo)")

    info = _command(
        commands, "info", "say what a file is: a generator and its layers, a guide, an autosave", "info portraits"
    )
    info.add_argument("file", metavar="FILE", help="a file of weights, or a built-in name")

    convert = _command(
        commands,
        "convert",
        "rewrite a generator: .safetensors is ours, .pt rosinality's",
        "convert ffhq.pkl ffhq.safetensors",
    )
    convert.add_argument("file", metavar="IN", help="a generator's file, or a built-in name")
    convert.add_argument("out", metavar="OUT", help="what to write; the name's end decides on the format")
    convert.add_argument("--half", action="store_true", help="store the synthesis network as float16")
    convert.add_argument("--force", action="store_true", help="overwrite OUT")

    pictures = _command(
        commands,
        "sample",
        "write a grid of a generator's pictures",
        "sample portraits --seeds 0-15 --psi 0.7 --out out/grid.png",
    )
    pictures.add_argument("generator", metavar="GENERATOR", help="a generator's file, or a built-in name")
    _latent_flags(pictures, "0-15", f"; the grid shows the first {CELLS}")
    pictures.add_argument("--separate", metavar="DIR", help="also write every picture on its own, in full size")

    _adapt_flags(
        _command(
            commands,
            "adapt",
            "move a generator into a new domain; `torchrun --nproc-per-node N -m "
            "nada_core adapt` lets N processes share each batch",
            "adapt portraits --target zombie --out out",
            "adapt ffhq.pkl --guide ViT-B-32:openai --guide ViT-B-16:openai --target zombie --out out",
            "adapt portraits --recipe style --target 'pencil sketch' --out out",
        ),
        defaults,
    )

    compare = _command(
        commands,
        "compare",
        "show the same latents through several generators, side by side",
        "compare ffhq.pkl zombie.safetensors --seeds 0-7 --out out/compare.png",
        "compare portraits zombie.safetensors --guide portraits --target zombie --out ab.png",
    )
    compare.add_argument("first", metavar="GEN_A", help="whose latents are shown; figures are relative to it")
    compare.add_argument("others", metavar="GEN_B", nargs="+", help="generators adapted from it")
    _latent_flags(compare, "0-7", f"; the grid shows the first {ROWS}, the figures use all")
    figures = compare.add_argument_group(
        "figures",
        "quality, direction and diversity of every generator as guides see them; papers take 500 to 1000 seeds",
    )
    figures.add_argument("--guide", action="append", metavar="NAME", help="a guide to judge by; may be repeated")
    figures.add_argument("--source", default="photo", metavar="TEXT", help="what GEN_A makes (default photo)")
    figures.add_argument("--target", metavar="TEXT", help="what the others should make")
    bench = _command(
        commands,
        "bench",
        "say how fast a training runs here and what takes the time",
        "bench",
        "bench ffhq.pkl --guide ViT-B-32:openai --precision bf16",
    )
    bench.add_argument(
        "generator",
        metavar="GENERATOR",
        nargs="?",
        default="portraits",
        help="a generator's file, or a built-in name (default portraits)",
    )
    bench.add_argument(
        "--guide", action="append", metavar="NAME", help="may be repeated (default: those that lead the demo)"
    )
    bench.add_argument(
        "--steps", type=_positive, default=22, metavar="N", help="two of them are not timed (default 22)"
    )
    bench.add_argument("--batch", type=_positive, metavar="N", help="latents a step (default: as the training's)")
    bench.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="(default fp32)")
    _photo_commands(commands, defaults)
    return parser


def _photo_commands(commands: Any, defaults: _Defaults) -> None:
    """What is done with pictures from outside, and with latents."""
    align = _command(
        commands,
        "align",
        "cut a face out of a photo as FFHQ was cut",
        "align photo.jpg --out face.png --points '120,150 180,150 125,220 175,220'",
    )
    align.add_argument("photo", metavar="PHOTO", help="an image file")
    align.add_argument("--size", type=_positive, default=1024, metavar="N", help="pixels a side (default 1024)")
    align.add_argument(
        "--points",
        metavar="TEXT",
        help="left eye, right eye, [nose,] left and right corner of the "
        "mouth, as x,y in pixels of the photo (default: found by mtcnn-runtime)",
    )
    align.add_argument("--face", type=int, default=0, metavar="N", help="which face: 0 the largest (default 0)")
    align.add_argument("--middle", action="store_true", help="without a face take the middle square as it is")
    _result(align, "PNG", "the face to write")

    encode = _command(
        commands,
        "encode",
        "turn photos into latents by a trained encoder",
        "encode e4e_ffhq_encode.pt face.png --out face.safetensors",
    )
    encode.add_argument("encoder", metavar="ENCODER", help="a pSp, e4e or ReStyle checkpoint")
    _photo_flags(encode)
    encode.add_argument("--generator", metavar="FILE", help="whose latents they shall be (default: the encoder's own)")
    encode.add_argument(
        "--iterations", type=_positive, default=5, metavar="N", help="looks of a ReStyle encoder (default 5)"
    )
    _result(encode, "FILE", "the latents to write, .safetensors; a picture goes beside them")

    invert = _command(
        commands,
        "invert",
        "find the latents of photos, and draw them with adapted generators",
        "invert portraits face.png --out out/face --tune",
        "invert ffhq.pkl face.png --perceptual vgg --identity model_ir_se50.pth --out out/face",
        "invert portraits face.png --adapted zombie.safetensors --out out/face",
    )
    invert.add_argument("generator", metavar="GENERATOR", help="a generator's file, or a built-in name")
    _photo_flags(invert)
    _eyes(invert, defaults.builtin)
    invert.add_argument("--start", metavar="FILE", help="latents to begin with (default: the mean of w)")
    invert.add_argument("--encoder", metavar="FILE", help="an encoder whose latents to begin with")
    invert.add_argument(
        "--adapted",
        action="append",
        metavar="FILE",
        help="also draw them with this generator, which was adapted from the first; may be repeated",
    )
    invert.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="default",
        help="where the flags below start: default, editable (in w), or the founding report's recipe",
    )
    _result(invert, "DIR", "folder of latents.safetensors, inverted.png and, when tuned, tuning.safetensors")
    add_flags(invert.add_argument_group("inversion"), InvertConfig, defaults.invert)  # type: ignore[arg-type]
    tuning = invert.add_argument_group("pivotal tuning", "A small change of the generator draws the photos exactly.")
    tuning.add_argument("--tune", action="store_true", help="tune after the inversion")
    add_flags(tuning, TuneConfig, defaults.tune, "tune")  # type: ignore[arg-type]

    found = _command(
        commands,
        "directions",
        "find directions along which pictures change in one way",
        "directions portraits --method sefa --rows 0-3 --out out/sefa.safetensors",
    )
    found.add_argument("generator", metavar="GENERATOR", help="a generator's file, or a built-in name")
    found.add_argument(
        "--method",
        choices=("sefa", "pca"),
        default="sefa",
        help="sefa: from the weights; pca: where w varies most, GANSpace (default sefa)",
    )
    found.add_argument("--count", type=_positive, default=10, metavar="N", help="how many (default 10)")
    found.add_argument("--rows", type=_rows, metavar="A-B", help="rows they move, both included (default: all)")
    found.add_argument("--seed", type=int, default=0, metavar="N", help="of the picture that is shown (default 0)")
    found.add_argument("--label", type=int, metavar="N", help="class of a conditional generator")
    _result(found, "FILE", "the directions to write, .safetensors; a picture goes beside them")

    edit = _command(
        commands,
        "edit",
        "move latents along a direction or by words",
        "edit portraits face.safetensors --direction sefa.safetensors --name 2 --out e.safetensors",
        "edit portraits face.safetensors --text 'photo with glasses' --out e.safetensors",
    )
    edit.add_argument("generator", metavar="GENERATOR", help="a generator's file, or a built-in name")
    edit.add_argument("latents", metavar="LATENTS", help="a file of latents")
    edit.add_argument("--direction", metavar="FILE", help="ours, InterFaceGAN's or GANSpace's")
    edit.add_argument("--name", default="0", metavar="TEXT", help="its name, or its number from 0 (default 0)")
    edit.add_argument("--strength", type=float, default=2.0, metavar="X", help="how far along it (default 2)")
    edit.add_argument("--rows", type=_rows, metavar="A-B", help="rows that move, both included (default: all)")
    edit.add_argument("--text", metavar="TEXT", help="what the pictures shall show")
    edit.add_argument("--source", default="photo", metavar="TEXT", help="what they show now (default photo)")
    edit.add_argument(
        "--guide",
        type=_weighted,
        action="append",
        metavar="NAME[=WEIGHT]",
        help="who reads the text (default portraits)",
    )
    edit.add_argument("--identity", metavar="NAME", help="a face recogniser, for the id term")
    _result(edit, "FILE", "the latents to write, .safetensors; a picture goes beside them")
    add_flags(edit.add_argument_group("by words"), TextEditConfig)  # type: ignore[arg-type]


def _photo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="image files")
    parser.add_argument("--align", action="store_true", help="cut the largest face out of every photo first")


def _eyes(parser: argparse.ArgumentParser, builtin: bool) -> None:
    """The networks that tell how alike two pictures are."""
    parser.add_argument(
        "--perceptual",
        metavar="NAME",
        help="the network of the lpips term: vgg, alex or squeeze, alone or with :imagenet, :random or :FILE",
    )
    parser.add_argument(
        "--identity",
        metavar="NAME",
        default="portraits" if builtin else None,
        help="the recogniser of the id term: a file such as model_ir_se50.pth, or portraits"
        + (" (default portraits)" if builtin else ""),
    )


def _result(parser: argparse.ArgumentParser, metavar: str, told: str) -> None:
    parser.add_argument("--out", required=True, metavar=metavar, help=told)
    parser.add_argument("--force", action="store_true", help="overwrite an earlier result")


def _command(commands: Any, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
        epilog="\n".join(["example:", *(f"  python -m nada_core {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute; auto takes a GPU if there is one (default auto)",
    )
    machine.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.set_defaults(command=name)
    return parser


def _latent_flags(parser: argparse.ArgumentParser, seeds: str, note: str = "") -> None:
    parser.add_argument(
        "--seeds",
        type=_seeds,
        default=_seeds(seeds),
        metavar="LIST",
        help=f"such as 0-15 or 1,5,9 (default {seeds}){note}",
    )
    parser.add_argument(
        "--psi",
        type=float,
        default=0.7,
        metavar="X",
        help="truncation: 1 all variety, 0 the mean picture (default 0.7)",
    )
    parser.add_argument("--label", type=int, metavar="N", help="class of a conditional generator")
    parser.add_argument("--latents", metavar="FILE", help="latents of a file in place of seeds")
    parser.add_argument("--out", required=True, metavar="PNG", help="the grid to write")


def _adapt_flags(parser: argparse.ArgumentParser, defaults: _Defaults, required: bool = True) -> None:
    parser.add_argument(
        "generator", metavar="GENERATOR", nargs=None if required else "?", help="a generator's file, or a built-in name"
    )
    leading = " and ".join(f"{name}={weight:g}" for name, weight in portraits.GUIDES)
    usual = f" (default {leading})" if defaults.builtin else ""
    parser.add_argument(
        "--guide",
        type=_weighted,
        action="append",
        metavar="NAME[=WEIGHT]",
        required=required and not defaults.builtin,
        help="a built-in name, ARCHITECTURE:TAG (downloaded on first use) or ARCHITECTURE:FILE; may be "
        "repeated" + usual,
    )
    source = "photo" if defaults.recipe is None or defaults.builtin else defaults.recipe.source
    parser.add_argument("--source", default=source, metavar="TEXT", help=f"what it makes now (default {source})")
    parser.add_argument("--target", metavar="TEXT", help="what it shall make")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture whose look it shall take on, instead of --target or with it; up to ten",
    )
    parser.add_argument(
        "--image-weight",
        type=float,
        default=0.5,
        metavar="X",
        help="share of the pictures where there is a text too (default 0.5, from 0 to 1)",
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        metavar="NAME",
        help="change the defaults below to what suits a kind of target: "
        + "; ".join(f"{name}, {recipe.about}" for name, recipe in RECIPES.items()),
    )
    parser.add_argument(
        "--judge", metavar="NAME", help="a guide that leads nothing and chooses the step to keep, with --keep-every"
    )
    _eyes(parser, False)
    parser.add_argument(
        "--out", required=required, metavar="PATH", help="a .safetensors file, or a folder for TARGET.safetensors"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an earlier result")
    parser.add_argument(
        "--autosave",
        metavar="FILE",
        help="what a stopped run goes on from; removed with the result saved (default: beside it)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the autosave; give all other flags as before")
    whose = (
        f"the recipe's for {defaults.recipe.about}"
        if defaults.recipe
        else "the built-in world's recipe"
        if defaults.builtin
        else "the paper's, for published generators; `adapt portraits --help` shows the built-in world's"
    )
    # An argument group takes arguments like a parser, but argparse has no public name for what both are.
    training = parser.add_argument_group("training", f"The defaults are {whose}.")
    add_flags(training, AdaptConfig, defaults.config)  # type: ignore[arg-type]
    layers = parser.add_argument_group("trained layers")
    add_flags(layers, LayerChoice, defaults.config.layers, "layers")  # type: ignore[arg-type]


def _defaults_for(words: Sequence[str]) -> _Defaults:
    """The defaults depend on generator and recipe, so the command line is first read for these names alone."""
    paper = _Defaults(AdaptConfig(), False)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    if words[:1] == ["adapt"]:
        _adapt_flags(first, paper, required=False)
    elif words[:1] == ["invert"]:
        first.add_argument("generator", nargs="?")
        first.add_argument("--preset", choices=tuple(PRESETS), default="default")
    else:
        return paper
    try:
        known, _ = first.parse_known_args(words[1:])
    except argparse.ArgumentError:  # the whole parser finds it again and reports it with its own usage
        return paper
    builtin = known.generator in BUILTINS
    if words[0] == "adapt":
        recipe, base = RECIPES.get(known.recipe), portraits.RECIPE if builtin else paper.config
        return _Defaults(recipe.config(base) if recipe else base, builtin, recipe)
    preset = portraits.INVERT if builtin and known.preset == "default" else PRESETS[known.preset]
    return _Defaults(paper.config, builtin, None, preset, portraits.TUNE if builtin else TuneConfig())


def _rows(text: str) -> tuple[int, int]:
    """Rows as a person counts them, both ends included -> the first and the one after the last."""
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if high < low:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a row or a range of them, as in 4 or 0-3.")
    return low, high + 1


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
