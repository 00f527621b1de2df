"""What commands say: tables, figures, files described in words. Everything is returned as text; nothing is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..adaptation.config import AdaptConfig
from ..guidance.metrics import direction, diversity, quality
from ..guidance.prompts import fill
from ..guidance.reconstruction import psnr
from ..guidance.shifts import TextShift
from ..io.checkpoint_file import RawCheckpoint
from ..io.metadata import read_metadata
from ..models.clip import ClipGuide
from ..models.generator import Generator
from ..models.lpips import Perceptual


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns under a heading row; those of numbers are aligned at their right."""
    texts = [[str(cell) for cell in row] for row in rows]
    lines = [""] * len(texts)
    for column in zip(*texts, strict=True):
        width = max(map(len, column))
        numeric = all(re.fullmatch(r"[-+]?[\d,.]*", cell) for cell in column[1:])
        lines = [
            f"{line}{cell:>{width}}  " if numeric else f"{line}{cell:<{width}}  "
            for line, cell in zip(lines, column, strict=True)
        ]
    return "\n".join(line.rstrip() for line in lines)


def listing(files: Sequence[Path]) -> str:
    """The files a command wrote, one a line."""
    return "\n".join(f"wrote {path}" for path in files)


def verdict(row: Mapping[str, float], passed: bool, target: str) -> str:
    """The judge's figures, each beside what it is held against. row: the fields of the built-in world's Verdict."""
    rows = [
        ("the judge of the built-in world", "found", "held against"),
        (f"pictures it takes for {target}", f"{row['judge']:.2f}", "1, every picture"),
        ("attributes kept (correlation)", f"{row['attributes']:.2f}", f"{row['source_attributes']:.2f} before"),
        ("distance to the true picture", f"{row['distance']:.3f}", f"{row['source_distance']:.3f} before"),
        ("diversity", f"{row['diversity']:.2f}", "1, the true pictures' own"),
    ]
    word = "meet" if passed else "MISS"
    return f"{table(rows)}\nAll four together {word} the bar every target is held to.\n"


def figures(guide: ClipGuide, shift: TextShift, seen: Mapping[str, Tensor]) -> str:
    """quality, direction and diversity of every generator; the first is what the others are held against."""
    goal, phrases = shift.direction(guide).cpu(), guide.encode_text(fill(shift.target, shift.templates)).cpu()
    (first, before), *rest = seen.items()
    own = diversity(before)
    rows = [("generator", "quality", "direction", "diversity"), (first, f"{quality(before, phrases):.3f}", "", "1.00")]
    for label, after in rest:
        spread = diversity(after) / max(own, 1e-9)
        rows.append((label, f"{quality(after, phrases):.3f}", f"{direction(before, after, goal):.3f}", f"{spread:.2f}"))
    return f"as {guide.name} sees {len(before)} images, from {shift.source} to {shift.target}\n{table(rows)}"


def closeness(images: Tensor, targets: Tensor, perceptual: Perceptual | None = None, steps: Sequence[int] = ()) -> str:
    """How close pictures [N, 3, R, R] came to their targets, a line a picture. steps: that each of them took."""
    lines = [f"{value:.1f} dB" for value in psnr(images, targets).tolist()]
    if perceptual is not None:
        device = next(perceptual.parameters()).device
        with torch.no_grad():
            pairs = zip(images.split(1), targets.split(1), strict=True)
            unlike = [perceptual.distance(one.to(device), other.to(device)).item() for one, other in pairs]
        lines = [f"{line}, {perceptual.label} {value:.3f}" for line, value in zip(lines, unlike, strict=True)]
    if steps:
        lines = [f"{line}, after {count} steps" for line, count in zip(lines, steps, strict=True)]
    return "\n".join(f"picture {index}: {line}" for index, line in enumerate(lines))


def about_generator(generator: Generator, raw: RawCheckpoint) -> str:
    """Sizes, and one row a layer: what `info` says of a generator and `--layers-names` takes."""
    weights = dict(generator.named_parameters())
    synthesis = sum(weights[name].numel() for layer in generator.layers() for name in layer.parameters)
    total = sum(value.numel() for value in weights.values())
    side, classes = generator.resolution, f"{generator.c_dim or 'no'} classes"
    about = f"{generator.family} generator, {side} x {side} pixels ({raw.container} file)"
    sizes = f"z {generator.z_dim}, w {generator.w_dim}, {generator.num_ws} rows of W+, {classes}"
    rows: list[tuple[object, ...]] = [("layer", "resolution", "row", "kind", "parameters")]
    for layer in generator.layers():
        count = sum(weights[name].numel() for name in layer.parameters)
        row = "" if layer.w_index is None else layer.w_index
        rows.append((layer.name, layer.resolution, row, layer.kind, f"{count:,}"))
    parts = f"{total:,} parameters, {synthesis:,} of them in the layers below\nsha256 {raw.sha256}"
    return f"{about}\n{sizes}\n{parts}\n\n{table(rows)}"


def about_guide(name: str, guide: ClipGuide) -> str:
    """What `info` says of a built-in guide."""
    count = sum(value.numel() for value in guide.parameters())
    seen = f"sees {guide.size[0]} x {guide.size[1]} pixels, embeds in {guide.dim} dimensions, {count:,} parameters"
    return f"{name}: a guide (CLIP) that ships with the pack\n{seen}\nuse it with --guide {name}"


def about_clip(path: Path, raw: RawCheckpoint) -> str:
    """What `info` says of a file of CLIP weights."""
    count = sum(value.numel() for value in raw.tensors.values())
    return (
        f"weights of a guide (CLIP), {count:,} numbers ({raw.container} file)\nsha256 {raw.sha256}\n"
        f"use it with --guide ARCHITECTURE:{path}, where ARCHITECTURE is open_clip's name of the model or a "
        "config file (.json)"
    )


def about_run(path: Path, raw: RawCheckpoint) -> str:
    """What `info` says of an autosave."""
    run = json.loads(raw.hints["run"])
    loss = f", loss {run['history'][-1]['loss']:.4f}" if run["history"] else ""
    return (
        f"autosave of an adaptation after {run['index']} steps{loss}\n"
        f"go on with the command that began it and --autosave {path} --resume"
    )


def about_domain(path: Path, raw: RawCheckpoint) -> str:
    """What `info` says of a domain."""
    count = sum(value.numel() for value in raw.tensors.values())
    return (
        f"a domain, which is what an adaptation changed: {count:,} numbers in {len(raw.tensors)} parameters\n"
        f"it fits the generators with the mapping network {raw.hints['space'][:12]}; apply it with "
        f"load_domain(generator, '{path}', strength=1.0)"
    )


def how_to_go_on(autosave: Path) -> str:
    """What to tell whoever stopped a run: how far it is safe, and where."""
    told = read_metadata(autosave) if autosave.is_file() else {}
    if "run" not in told:
        return "Stopped before the first autosave; nothing was written."
    steps = json.loads(told["run"])["index"]
    return f"Stopped. {steps} steps are safe in {autosave}; go on with the same command and --resume."


def speed(
    generator: Generator,
    guides: Sequence[str],
    config: AdaptConfig,
    device: torch.device,
    parts: Mapping[str, float],
    peak: int | None,
) -> str:
    """A measured training: steps a second, the share of every part in a step's seconds, the peak of memory in bytes."""
    seconds = sum(parts.values())
    where = f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    lines = [
        f"{generator.resolution} x {generator.resolution} pixels, batch {config.batch}, {config.precision}, seen by "
        f"{', '.join(guides)}; on {where}",
        f"{1 / seconds:.2f} steps a second, {seconds * 1e3:.0f} ms a step",
        *(f"  {part:<10} {share * 1e3:8.1f} ms {share / seconds:6.1%}" for part, share in parts.items()),
    ]
    return "\n".join(lines + ([] if peak is None else [f"peak memory {peak / 2**30:.2f} GiB"]))
