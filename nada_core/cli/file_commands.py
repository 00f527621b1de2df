"""The commands for generators and their files: info, convert, sample, compare, build-native."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tyro.conf import FlagCreatePairsOff, Positional

from .. import __version__
from ..guidance.metrics import embed
from ..guidance.shifts import TextShift
from ..io.checkpoint_file import RawCheckpoint, read_checkpoint, sha256
from ..io.grid import compare_grid, grid
from ..io.images import save_image
from ..io.metadata import read_object
from ..io.onnx_metadata import read_onnx_metadata
from ..latents.sampling import Latents, load_latents, render, sample, save_latents
from ..models.checkpoints import BUILTINS, export_rosinality, load_generator, read_provenance, save_generator
from ..models.clip_loading import built_in_guides, load_guide
from ..models.clip_transformers import clip_tensors
from ..models.domain import read_domain
from ..models.generator import Generator, check_latents
from ..models.onnx_export import export_onnx, onnx_paths
from ..models.ops import winograd
from . import report
from .arguments import Command, File, Files, GeneratorName, Seeds, Text, Whole, flag, required
from .pair_files import LATENTS
from .progress import device_of, output_path, prepare, say

MAX_ROWS, MAX_CELLS = 16, 64  # of a grid


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Describe a file: a generator and its layers, a CLIP model, a domain, an autosave or an ONNX model.

    example:
      python -m nada_core info portraits
    """

    file: Positional[str] = required("a file of weights, or a built-in name")

    def run(self) -> None:
        if self.file in built_in_guides() and self.file not in BUILTINS:
            return say(report.about_guide(self.file, load_guide(self.file)))
        path = BUILTINS.get(self.file, Path(self.file))
        if path.suffix == ".onnx":
            metadata = read_onnx_metadata(path)
            return _say_with_origin(report.about_onnx(path, metadata), read_object(path, metadata, "provenance"))
        raw = read_checkpoint(path)
        kind = raw.kind
        if kind == "nada_run":
            return say(report.about_run(path, raw))
        if kind != "nada_domain" and any(name.startswith("visual.") for name in clip_tensors(raw)):
            return say(report.about_clip(path, raw))
        is_domain = kind == "nada_domain"
        text = report.about_domain(path, raw) if is_domain else report.about_generator(load_generator(path), raw)
        _say_with_origin(text, _provenance(path, raw))


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Rewrite a generator as .safetensors (this package's format), .pt (rosinality's) or .onnx.

    ONNX needs the Python package onnx. OUT is then the synthesis network, from latents of W+ to images; the mapping
    network is written to the same folder as NAME-mapping.onnx.

    example:
      python -m nada_core convert ffhq.pkl ffhq.safetensors
      python -m nada_core convert ffhq.pkl zombie.onnx --domain zombie.safetensors
    """

    file: Positional[str] = required("a generator file, or a built-in name")
    out: Positional[str] = required("the file to write; its suffix selects the format")
    domain: File = flag(None, "a domain to apply to the generator first")
    strength: float = flag(1.0, "strength of the domain; 1 is the domain as trained")
    half: FlagCreatePairsOff[bool] = flag(False, "store the synthesis network as float16")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite OUT")

    def run(self) -> None:
        path = Path(self.out)
        if path.suffix not in (".safetensors", ".pt", ".onnx"):
            raise ValueError(f"Got {path.name} to write, expected a name ending in .safetensors, .pt or .onnx.")
        if path.suffix != ".safetensors" and self.half:
            raise ValueError("--half needs a .safetensors file; readers of .pt and .onnx expect float32.")
        paths = onnx_paths(path) if path.suffix == ".onnx" else (path,)
        prepare(*paths, force=self.force)
        generator = load_generator(self.file)
        source = generator.source
        if self.domain:
            generator = read_domain(self.domain).apply(generator, self.strength)
        if path.suffix == ".pt":
            export_rosinality(generator, path)
        elif path.suffix == ".onnx":
            export_onnx(generator, path, self.provenance(source))
        else:
            save_generator(generator, path, self.provenance(source), half=self.half)
        say(report.listing(paths))

    def provenance(self, source: str | None) -> dict[str, Any]:
        """That of the file, or its name and digest, and the domain."""
        origin = BUILTINS.get(self.file, Path(self.file))
        known = {"source": {"name": origin.name, "sha256": source}, "version": __version__}
        result = _provenance(origin, read_checkpoint(origin)) or known
        if not self.domain:
            return result
        used = {"name": Path(self.domain).name, "sha256": sha256(self.domain), "strength": self.strength}
        return {**result, "domain": used}


@dataclass(frozen=True, kw_only=True)
class LatentFlags(Command):
    """Flags of the commands that draw images."""

    seeds: Seeds = field(default_factory=lambda: [*range(8)], metadata={"help": "seeds of the latents"})
    psi: float = flag(0.7, "truncation: 1 keeps all variety, 0 gives the mean image")
    label: Whole = flag(None, "class of a conditional generator")
    latents: File = flag(None, "latents from a file instead of seeds")
    out: str = required("the grid to write, .png")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite earlier images")

    def batches(self, generator: Generator, size: int) -> Iterator[tuple[str, Sequence[int], Latents]]:
        """Latents `size` at a time, which limits memory, with their name: a word and a number each."""
        given = load_latents(self.latents, generator) if self.latents else None
        numbers: Sequence[int] = self.seeds if given is None else range(len(given))
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            if given is None:
                yield "seed", part, sample(generator, part, self.psi, label=self.label)
            else:
                yield "latent", part, given[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Sample(LatentFlags):
    """Write a grid of images of a generator; the grid shows the first 64.

    example:
      python -m nada_core sample portraits --seeds 0-15 --psi 0.7 --out out/grid.png
    """

    generator: GeneratorName
    separate: File = flag(
        None, "folder to which every image is also written, in full size, and the latents of seeds, for adapt --pairs"
    )

    def run(self) -> None:
        out = output_path(self.out, ".png")
        path = Path(self.separate) / LATENTS if self.separate and not self.latents else None
        prepare(out, *([path] if path else []), force=self.force)
        generator = load_generator(self.generator).to(device_of(self.machine.device))
        written: list[Path] = []
        parts: list[torch.Tensor] = []
        for word, numbers, latents in self.batches(generator, MAX_CELLS):
            images = render(generator, latents)
            if not written:
                labels = [f"{word} {number}" for number in numbers]
                written.append(save_image(grid(images, labels=labels), out))
            if not self.separate:
                break
            paths = [Path(self.separate) / f"{word}{number:04d}.png" for number in numbers]
            prepare(*paths, force=self.force)
            written += [save_image(image, path) for image, path in zip(images, paths, strict=True)]
            parts.append(latents.ws)
        if path is not None:
            save_latents(Latents(torch.cat(parts), "const", generator.space()), path, {"seeds": list(self.seeds)})
            written.append(path)
        say(report.listing(written))


@dataclass(frozen=True, kw_only=True)
class Compare(LatentFlags):
    """Draw the same latents with several generators side by side, and measure them with CLIP models.

    The grid shows the first 16 latents. The measures (quality, direction and diversity relative to GEN-A) use all of
    them; papers take 500 to 1000 seeds.

    example:
      python -m nada_core compare ffhq.pkl zombie.safetensors --seeds 0-7 --out out/compare.png
      python -m nada_core compare portraits zombie.safetensors --guide portraits --target zombie --out ab.png
    """

    gen_a: Positional[str] = required("the source generator, whose latents are drawn")
    gen_b: Positional[tuple[str, ...]] = required("generators adapted from it")
    guide: Files = flag((), "a CLIP model to measure with")
    source: str = flag("photo", "text for what GEN-A draws")
    target: Text = flag(None, "text for what the others should draw")

    def run(self) -> None:
        if self.guide and self.target is None:
            raise ValueError("--guide needs --target, the text to compare the images with.")
        out = output_path(self.out, ".png")
        prepare(out, force=self.force)
        names, device = (self.gen_a, *self.gen_b), device_of(self.machine.device)
        labels = column_labels(names)
        generators = {label: load_generator(name).to(device) for label, name in zip(labels, names, strict=True)}
        for label in labels[1:]:
            check_related(generators[labels[0]], generators[label], label)
        guides = [load_guide(name, device=device) for name in self.guide]
        embeddings: list[dict[str, list[Any]]] = [{label: [] for label in labels} for _ in guides]
        written: list[Path] = []
        for word, numbers, latents in self.batches(generators[labels[0]], MAX_ROWS):
            columns = {label: render(generator, latents) for label, generator in generators.items()}
            if not written:
                picture = compare_grid(columns, [f"{word} {number}" for number in numbers])
                written.append(save_image(picture, out))
            if not guides:
                break
            for guide, rows in zip(guides, embeddings, strict=True):
                for label, images in columns.items():
                    rows[label].append(embed(guide, images))
        for guide, rows in zip(guides, embeddings, strict=True):
            features = {label: torch.cat(parts) for label, parts in rows.items()}
            say(report.figures(guide, TextShift(self.source, self.target or ""), features), "")
        say(report.listing(written))


@dataclass(frozen=True, kw_only=True)
class BuildNative(Command):
    """Compile the native convolution for this CPU, once, and measure what it gains; needs a C++ compiler.

    example:
      python -m nada_core build-native
    """

    def run(self) -> None:
        result = winograd.build()
        torch_ms, native_ms = result.torch_seconds * 1e3, result.native_seconds * 1e3
        say(
            f"built {result.library}",
            "a 3x3 convolution of 128 channels at 128 x 128 pixels, forward and backward: "
            f"PyTorch {torch_ms:.1f} ms, native {native_ms:.1f} ms ({torch_ms / native_ms:.2f} times as fast)",
        )


def _say_with_origin(text: str, origin: Mapping[str, Any]) -> None:
    say(text)
    if origin:
        say(f"\nprovenance\n{json.dumps(origin, indent=2, ensure_ascii=False)}")


def _provenance(path: Path, raw: RawCheckpoint) -> dict[str, Any]:
    return read_provenance(path) if raw.container == "safetensors" else {}


def column_labels(names: Sequence[str]) -> list[str]:
    """Distinct column labels: file names where they differ, whole paths otherwise."""
    for labels in ([Path(name).stem for name in names], list(names)):
        if len(set(labels)) == len(labels):
            return labels
    raise ValueError(f"Got {', '.join(names)}, expected generators that differ; one is named twice.")


def check_related(source: Generator, other: Generator, name: str) -> None:
    """Raise ValueError when latents of `source` mean nothing to another generator."""
    if not other.accepts(source.space()):
        raise ValueError(f"{name} was not adapted from the first generator: it has another mapping network.")
    check_latents(other, torch.empty(0, source.num_ws, source.w_dim), "", 0, f"Latents for {name}")
