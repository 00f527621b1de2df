"""The command line: `python -m nada_core demo | info | convert | sample | adapt | compare | bench | align |
encode | invert | directions | edit`.

Every sub-command is a thin call of the public functions, and its flags are read from the same dataclasses. What a
person can cause ends in one line and exit code 2, an interrupt in exit code 130; a traceback is a bug of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import (
    Adaptation,
    AdaptConfig,
    Generator,
    ImageShift,
    Latents,
    LayerChoice,
    MixedShift,
    Step,
    TextShift,
    __version__,
    adapt,
    compare_grid,
    export_rosinality,
    grid,
    load_generator,
    load_guide,
    load_image,
    load_latents,
    load_perceptual,
    plot_heat,
    plot_lines,
    portraits,
    read_provenance,
    render,
    sample,
    save_generator,
    save_image,
)
from ..guidance.metrics import embed
from ..guidance.prompt_check import check_prompts
from ..io.checkpoint_file import RawCheckpoint, read_checkpoint
from ..io.images import square
from ..models.arcface import load_identity
from ..models.checkpoints import BUILTINS
from ..models.clip_loading import built_in_guides
from ..portraits.content import Content
from ..runtime.config import from_flags
from ..runtime.distributed import process_group, rank
from . import photo_commands as photos
from . import report as wording
from .arguments import CELLS, ROWS, parse
from .profile import measure
from .progress import device_of, prepare, progress, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. Wrong usage leaves through argparse's SystemExit(2)."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = parse(words)
    try:
        if args.threads:
            torch.set_num_threads(args.threads)
        _COMMANDS[args.command](args)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{stop or 'Stopped.'}\n")
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _demo(args: argparse.Namespace) -> None:
    device, path = device_of(args.device), Path(args.out) / f"{_slug(args.target)}.safetensors"
    prepare(path, force=True)
    config, shift = portraits.RECIPE, TextShift(portraits.SOURCE, args.target)
    source = load_generator("portraits").to(device)
    guides = [(load_guide(name, device=device), weight) for name, weight in portraits.GUIDES]
    judge, content = portraits.Judge.load(), Content.load()
    with progress(config.steps) as tick:
        result = adapt(source, guides, shift, config, _told(tick))

    latents = sample(source, range(6), psi=1.0)
    columns = {
        f"before: {shift.source}": render(source, latents),
        f"after: {shift.target}": render(result.generator, latents),
        "the true picture": portraits.render(content(latents.ws), shift.target),
    }
    picture = compare_grid(columns, title=f"The same latents, from {shift.source} to {shift.target} by words alone")
    files = _save_result(result, path, _provenance("portraits", result), picture)
    verdict = portraits.examine(judge, content, source.cpu(), result.generator.cpu(), shift.target)
    say(wording.verdict(verdict.as_row(), verdict.passed, shift.target), wording.listing(files))


def _adapt(args: argparse.Namespace) -> None:
    with process_group(device_of(args.device)) as device:
        _adapt_on(device, args)


def _adapt_on(device: torch.device, args: argparse.Namespace) -> None:
    path = _result_path(args.out, args.target or Path((args.image or ["adapted"])[0]).stem)
    autosave = Path(args.autosave) if args.autosave else path.with_suffix(".autosave.safetensors")
    prepare(path, args.force)
    config = replace(from_flags(AdaptConfig, args), layers=from_flags(LayerChoice, args, "layers"))
    source = load_generator(args.generator).to(device)
    shift = _shift(args, source.resolution)
    named = args.guide or portraits.GUIDES
    guides = [(load_guide(name, device=device), weight) for name, weight in named]
    judge = load_guide(args.judge, device=device) if args.judge else None
    perceptual = load_perceptual(args.perceptual, device) if args.perceptual else None
    identity = load_identity(args.identity, device) if args.identity else None
    for doubt in (doubt for guide, _ in guides for doubt in check_prompts(guide, shift)):
        sys.stderr.write(f"warning: {doubt}\n" if not rank() else "")
    if args.resume and not autosave.exists():
        sys.stderr.write(f"There is no autosave at {autosave}; starting at the first step.\n")
    try:
        with progress(config.steps) as tick:
            told = None if rank() else _told(tick)
            result = adapt(source, guides, shift, config, told, autosave, args.resume, judge, perceptual, identity)
        if rank():  # process 0 has the same weights, and says so
            return
        latents = sample(source, range(8), label=config.label)
        before, after = render(source, latents), render(result.generator, latents)
        target = args.target or f"{len(args.image)} pictures"
        columns = {f"before: {args.source}" if args.target else "before": before, f"after: {target}": after}
        picture = compare_grid(columns, [f"seed {seed}" for seed in range(8)])
        files = _save_result(result, path, _provenance(args.generator, result), picture)
        autosave.unlink(missing_ok=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(wording.how_to_go_on(autosave)) from None
    say(*([result.chosen_because] if result.chosen_because else []), wording.listing(files))


def _shift(args: argparse.Namespace, size: int) -> TextShift | ImageShift | MixedShift:
    """From words, from pictures, or from both."""
    if not args.target and not args.image:
        raise ValueError("Got neither --target nor --image, expected words, pictures or both to adapt to.")
    words = TextShift(args.source, args.target) if args.target else None
    if not args.image:
        assert words is not None
        return words
    style = ImageShift(torch.cat([square(load_image(name), size) for name in args.image]))
    share = args.image_weight
    return style if words is None else MixedShift((words, style), (1 - share, share))


def _bench(args: argparse.Namespace) -> None:
    device = device_of(args.device)
    config = portraits.RECIPE if args.generator in BUILTINS else AdaptConfig()
    config = replace(config, steps=args.steps, precision=args.precision, batch=args.batch or config.batch)
    source = load_generator(args.generator).to(device)
    named = [(name, 1.0) for name in args.guide or ()] or portraits.GUIDES
    guides = [(load_guide(name, device=device), weight) for name, weight in named]
    speed = measure(source, guides, TextShift(portraits.SOURCE, portraits.TARGETS[0]), config)
    say(wording.speed(source, [guide.name for guide, _ in guides], config, device, speed.parts, speed.peak))


def _info(args: argparse.Namespace) -> None:
    if args.file in built_in_guides() and args.file not in BUILTINS:
        return say(wording.about_guide(args.file, load_guide(args.file)))
    path = BUILTINS.get(args.file, Path(args.file))
    raw = read_checkpoint(path)
    if raw.kind == "nada_run":
        return say(wording.about_run(path, raw))
    if raw.kind == "nada_domain":
        say(wording.about_domain(path, raw))
        return _tell_origin(path, raw)
    if any(name.startswith("visual.") for name in raw.tensors):
        return say(wording.about_clip(path, raw))
    say(wording.about_generator(load_generator(path), raw))
    _tell_origin(path, raw)


def _convert(args: argparse.Namespace) -> None:
    path = Path(args.out)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"Got {path.name} to write, expected a name in .safetensors (ours) or .pt (rosinality's).")
    if path.suffix == ".pt" and args.half:
        raise ValueError("--half belongs to .safetensors; readers of rosinality's .pt expect float32.")
    prepare(path, args.force)
    generator = load_generator(args.file)
    if path.suffix == ".pt":
        export_rosinality(generator, path)
    else:
        origin = BUILTINS.get(args.file, Path(args.file))
        known = {"source": {"name": origin.name, "sha256": generator.source}, "version": __version__}
        save_generator(generator, path, _origin(origin, read_checkpoint(origin)) or known, half=args.half)
    say(wording.listing([path]))


def _sample(args: argparse.Namespace) -> None:
    generator = load_generator(args.generator).to(device_of(args.device))
    files: list[Path] = []
    for word, numbers, latents in _portions(generator, args, CELLS):
        images = render(generator, latents)
        if not files:
            files.append(save_image(grid(images, labels=[f"{word} {number}" for number in numbers]), args.out))
        if not args.separate:
            break
        files += [
            save_image(image, Path(args.separate) / f"{word}{number:04d}.png")
            for number, image in zip(numbers, images, strict=True)
        ]
    say(wording.listing(files))


def _portions(
    generator: Generator, args: argparse.Namespace, most: int
) -> Iterator[tuple[str, Sequence[int], Latents]]:
    """The latents that were asked for, a few at a time, for thousands of large pictures fit in no memory; with them
    what they are called: a word and a number each."""
    given = load_latents(args.latents, generator) if args.latents else None
    numbers = args.seeds if given is None else range(len(given))
    for start in range(0, len(numbers), most):
        some = numbers[start : start + most]
        if given is None:
            yield "seed", some, sample(generator, some, args.psi, label=args.label)
        else:
            yield "latent", some, given[start : start + most]


def _compare(args: argparse.Namespace) -> None:
    if args.guide and args.target is None:
        raise ValueError("--guide needs --target, the text the images are held against.")
    device, labels = device_of(args.device), _labels([args.first, *args.others])
    generators = [load_generator(name).to(device) for name in (args.first, *args.others)]
    guides = [load_guide(name, device=device) for name in args.guide or ()]
    shift = TextShift(args.source, args.target) if guides else None

    seen: list[dict[str, list[Tensor]]] = [{label: [] for label in labels} for _ in guides]
    files: list[Path] = []
    for word, numbers, latents in _portions(generators[0], args, ROWS):
        columns = {label: render(one, latents) for label, one in zip(labels, generators, strict=True)}
        if not files:
            files.append(save_image(compare_grid(columns, [f"{word} {number}" for number in numbers]), args.out))
        if not guides:
            break
        for guide, found in zip(guides, seen, strict=True):
            for label, images in columns.items():
                found[label].append(embed(guide, images))
    for guide, found in zip(guides, seen, strict=True):
        assert shift is not None
        say(wording.figures(guide, shift, {label: torch.cat(parts) for label, parts in found.items()}), "")
    say(wording.listing(files))


def _save_result(result: Adaptation, path: Path, told: Mapping[str, Any], picture: Tensor) -> list[Path]:
    """Write pictures and curves, and last the generator: where it is, all of it is."""
    history = result.history
    losses = {"loss": [step["loss"] for step in history]}
    if len(result.config.terms) > 1:
        losses |= {name: [step["terms"][name] for step in history] for name in result.config.terms}
    layers = result.generator.layers()
    rows = [layer.name if layer.w_index is None else f"{layer.name}  row {layer.w_index}" for layer in layers]
    chosen = [[float(layer.name in step["layers"]) for step in history] for layer in layers]
    beside = f"{path.with_suffix('')}-"
    files = [
        save_image(picture, f"{beside}before-after.png"),
        save_image(plot_lines(losses, "Loss", smooth=0.9), f"{beside}loss.png"),
        save_image(plot_heat(chosen, rows, "Layers trained at each step"), f"{beside}layers.png"),
    ]
    save_generator(result.generator, path, told)
    return [*files, path]


def _provenance(name: str, result: Adaptation) -> dict[str, Any]:
    """What the run knows of itself, with the name of the file it started from."""
    known = result.domain.provenance
    return {**known, "source": {"name": Path(name).name, **known["source"]}, "version": __version__}


def _tell_origin(path: Path, raw: RawCheckpoint) -> None:
    if told := _origin(path, raw):
        say(f"\nprovenance\n{json.dumps(told, indent=2, ensure_ascii=False)}")


def _origin(path: Path, raw: RawCheckpoint) -> dict[str, Any]:
    return read_provenance(path) if raw.container == "safetensors" else {}


def _result_path(out: str, target: str) -> Path:
    path = Path(out)
    return path if path.suffix == ".safetensors" else path / f"{_slug(target)}.safetensors"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60] or "adapted"


def _labels(names: Sequence[str]) -> list[str]:
    """Short column labels, which must tell the generators apart."""
    for labels in ([Path(name).stem for name in names], list(names)):
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError(f"Got {', '.join(names)}, expected generators that differ; one is named twice.")


def _told(tick: Callable[[int, str], None]) -> Callable[[Step], None]:
    """A progress bar's tick as an on_step: loss and the first layers trained."""

    def on_step(step: Step) -> None:
        more = "…" if len(step.layers) > 3 else ""
        tick(step.index + 1, f"loss {step.loss:.3f}, {' '.join(step.layers[:3])}{more}")

    return on_step


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "info": _info,
    "convert": _convert,
    "sample": _sample,
    "adapt": _adapt,
    "compare": _compare,
    "align": photos.align_command,
    "encode": photos.encode_command,
    "invert": photos.invert_command,
    "directions": photos.directions_command,
    "edit": photos.edit_command,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
