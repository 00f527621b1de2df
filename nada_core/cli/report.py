"""The text that commands print: tables, measures and descriptions of files. Everything is returned, not printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..adaptation.config import AdaptConfig
from ..adaptation.resume import read_progress
from ..guidance.metrics import direction, diversity, quality
from ..guidance.prompts import fill
from ..guidance.reconstruction import psnr
from ..guidance.shifts import TextShift
from ..io.checkpoint_file import RawCheckpoint
from ..io.metadata import read_metadata, read_object
from ..models.clip import ClipGuide
from ..models.clip_config import fitting_architectures
from ..models.clip_transformers import clip_tensors, vision_size
from ..models.generator import Generator
from ..models.lpips import Perceptual
from ..models.onnx_export import KIND as ONNX_KIND
from ..models.summary import describe_generator


def table(rows: Sequence[Sequence[object]]) -> str:
    """Align columns under a heading row; columns of numbers are aligned to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    lines = [""] * len(texts)
    for column in zip(*texts, strict=True):
        width = max(map(len, column))
        side = ">" if all(re.fullmatch(r"[-+]?[\d,.]*", cell) for cell in column[1:]) else "<"
        lines = [f"{line}{cell:{side}{width}}  " for line, cell in zip(lines, column, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def listing(files: Sequence[Path]) -> str:
    return "\n".join(f"wrote {path}" for path in files)


def verdict(row: Mapping[str, float], passed: bool, target: str) -> str:
    """The judge's measures with their references. row: the fields of the built-in world's Verdict."""
    rows = [
        ("judge of the built-in world", "measured", "reference"),
        (f"images recognized as {target}", f"{row['judge']:.2f}", "1: every image"),
        ("attributes kept (correlation)", f"{row['attributes']:.2f}", f"{row['source_attributes']:.2f} before"),
        ("distance to the true image", f"{row['distance']:.3f}", f"{row['source_distance']:.3f} before"),
        ("diversity", f"{row['diversity']:.2f}", "1: that of the true images"),
    ]
    return f"{table(rows)}\nAll four together {'pass' if passed else 'FAIL'} the threshold used for every target.\n"


def figures(guide: ClipGuide, shift: TextShift, features: Mapping[str, Tensor]) -> str:
    """CLIP measures of every generator from its image embeddings [N, D]; the first is the source."""
    text_direction = shift.direction(guide).cpu()
    phrases = guide.encode_text(fill(shift.target, shift.templates)).cpu()
    (first, before), *rest = features.items()
    own = max(diversity(before), 1e-9)
    rows = [("generator", "quality", "direction", "diversity"), (first, f"{quality(before, phrases):.3f}", "", "1.00")]
    for label, after in rest:
        change = direction(before, after, text_direction)
        rows.append((label, f"{quality(after, phrases):.3f}", f"{change:.3f}", f"{diversity(after) / own:.2f}"))
    return f"{len(before)} images measured by {guide.name}, from {shift.source} to {shift.target}\n{table(rows)}"


def closeness(images: Tensor, targets: Tensor, perceptual: Perceptual | None = None, steps: Sequence[int] = ()) -> str:
    """How close images [N, 3, R, R] are to their targets, one line each. steps: the optimization steps of each."""
    lines = []
    for index, (image, target) in enumerate(zip(images.split(1), targets.split(1), strict=True)):
        line = f"picture {index}: {psnr(image, target).item():.1f} dB"
        if perceptual is not None:
            device = next(perceptual.parameters()).device
            with torch.no_grad():
                distance = perceptual.distance(image.to(device), target.to(device)).item()
            line += f", {perceptual.label} {distance:.3f}"
        lines.append(f"{line}, after {steps[index]} steps" if steps else line)
    return "\n".join(lines)


def about_generator(generator: Generator, raw: RawCheckpoint) -> str:
    """Sizes, and one row for each layer with the name that `--layers-names` takes."""
    counts = {name: weight.numel() for name, weight in generator.named_parameters()}
    rows: list[tuple[object, ...]] = [("layer", "resolution", "row", "kind", "parameters")]
    for layer in generator.layers():
        count = sum(counts[name] for name in layer.parameters)
        row = "" if layer.w_index is None else layer.w_index
        rows.append((layer.name, layer.resolution, row, layer.kind, f"{count:,}"))
    return f"{describe_generator(generator)}\nsha256 {raw.sha256} ({raw.container} file)\n\n{table(rows)}"


def about_guide(name: str, guide: ClipGuide) -> str:
    height, width = guide.size
    count = sum(weight.numel() for weight in guide.parameters())
    return (
        f"{name}: a built-in CLIP model, {height} x {width} pixels, {guide.dim} dimensions, {count:,} parameters\n"
        f"use it with --guide {name}"
    )


def about_clip(path: Path, raw: RawCheckpoint) -> str:
    state = clip_tensors(raw)
    part = "" if any(not name.startswith(("visual.", "logit_")) for name in state) else "the image tower of "
    fits = fitting_architectures(vision_size(state)) if "visual.class_embedding" in state else []
    names = f"; these fit: {', '.join(fits)}" if fits else ""
    return (
        f"weights of {part}a CLIP model, {_numbers(raw):,} numbers ({raw.container} file)\nsha256 {raw.sha256}\n"
        f"use it with --guide ARCHITECTURE:{path}, where ARCHITECTURE is open_clip's name of the model or a config "
        f"file (.json){names}"
    )


def about_run(path: Path, raw: RawCheckpoint) -> str:
    steps, history, _ = read_progress(path, raw.hints, raw.tensors)
    last = history[-1].get("loss") if history else None
    loss = f", loss {last:.4f}" if isinstance(last, float) else ""
    return (
        f"autosave of an adaptation after {steps} steps{loss}\n"
        f"continue with the command that started it and --autosave {path} --resume"
    )


def about_domain(path: Path, raw: RawCheckpoint) -> str:
    return (
        f"a domain (the weight changes of an adaptation): {_numbers(raw):,} numbers in {len(raw.tensors)} parameters\n"
        f"fits generators with the mapping network {raw.hints.get('space', '')[:12]}; apply it with "
        f"load_domain(generator, '{path}', strength=1.0)"
    )


def about_onnx(path: Path, metadata: Mapping[str, str]) -> str:
    """Sizes, inputs and outputs of a model of `export_onnx`; producer and metadata of any other."""
    opset = f"opset {metadata.get('opset')}"
    if metadata.get("kind") != ONNX_KIND:
        names = ", ".join(sorted(set(metadata) - {"producer", "opset"})) or "none"
        return f"an ONNX model of {metadata.get('producer') or 'an unknown program'}, {opset}\nmetadata: {names}"
    spec, inputs, outputs = (read_object(path, metadata, name) for name in ("spec", "inputs", "outputs"))
    side, rows = spec.get("resolution"), metadata.get("rows")
    network = f"{metadata.get('network')} network of a {spec.get('family')} generator"
    lines = (
        f"{network} as ONNX, {side} x {side} pixels, {opset}",
        f"z {spec.get('z_dim')}, w {spec.get('w_dim')}, {rows} rows of W+, {spec.get('c_dim') or 'no'} classes",
        *(f"input {name} {_shape(shape)}" for name, shape in inputs.items()),
        *(f"output {name} {_shape(shape)}" for name, shape in outputs.items()),
        f"mapping network {metadata.get('space', '')[:12]}",
    )
    return "\n".join(lines)


def _shape(sizes: object) -> str:
    return f"[{', '.join(map(str, sizes))}]" if isinstance(sizes, list) else "?"


def how_to_resume(autosave: Path) -> str:
    """What an interrupted run has saved, and how to continue it."""
    hints = read_metadata(autosave) if autosave.is_file() else {}
    if "run" not in hints:
        return "Stopped before the end of the first step; nothing was written."
    steps = read_object(autosave, hints, "run").get("index", 0)
    return f"Stopped. {steps} steps are saved in {autosave}; continue with the same command and --resume."


def speed(
    generator: Generator,
    guides: Sequence[str],
    config: AdaptConfig,
    device: torch.device,
    parts: Mapping[str, float],
    peak: int | None,
) -> str:
    """Steps a second, the share of every part in a step, and the peak of memory in bytes."""
    seconds = sum(parts.values())
    where = f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    side = generator.resolution
    lines = [
        f"{side} x {side} pixels, batch {config.batch}, {config.precision}, guides {', '.join(guides)}; {where}",
        f"{1 / seconds:.2f} steps a second, {seconds * 1e3:.0f} ms a step",
        *(f"  {part:<10} {share * 1e3:8.1f} ms {share / seconds:6.1%}" for part, share in parts.items()),
    ]
    return "\n".join(lines + ([] if peak is None else [f"peak memory {peak / 2**30:.2f} GiB"]))


def _numbers(raw: RawCheckpoint) -> int:
    return sum(tensor.numel() for tensor in raw.tensors.values())
