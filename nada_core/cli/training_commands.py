"""The commands that train: demo, adapt, bench (StyleGAN-NADA, arXiv:2108.00946)."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tyro.conf import FlagCreatePairsOff, Positional, arg

from .. import __version__, portraits
from ..adaptation.adapt import Adaptation, Step, adapt
from ..adaptation.adapt_to_pairs import adapt_to_pairs, pairs_report
from ..adaptation.config import AdaptConfig, LayerChoice, PairsConfig, PairSettings
from ..adaptation.layer_selection import inspect_layers
from ..adaptation.snapshots import filmstrip
from ..guidance.prompt_check import check_prompts
from ..guidance.shifts import Shift, TextShift
from ..io.grid import compare_grid
from ..io.images import save_image
from ..io.plots import plot_bars, plot_heat, plot_lines
from ..latents.sampling import render, sample
from ..models.checkpoints import load_generator, save_generator
from ..models.clip import ClipGuide
from ..models.clip_loading import load_guide
from ..models.generator import Generator
from ..portraits.content import Content
from ..runtime.distributed import process_group, rank
from ..runtime.precision import PRECISIONS
from . import report
from .arguments import Command, File, Files, Folder, Positive, Text, flag, one_of, required, value
from .pair_files import read_pairs
from .profile import measure
from .progress import device_of, prepare, progress, say
from .snapshot_commands import prepare_snapshots
from .training_flags import TrainingFlags

Target = Annotated[str, one_of(portraits.TARGETS)]
Precision = Annotated[str, one_of(PRECISIONS)]


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Adapt the built-in generator by text and compare the result with the true images.

    example:
      python -m nada_core demo --target 'pencil sketch'
    """

    target: Target = flag("joker", "the target style")
    out: str = flag("out/demo", "folder of the results")

    def run(self) -> None:
        device, path = device_of(self.machine.device), Path(self.out) / f"{slug(self.target)}.safetensors"
        prepare(path, force=True)
        source = load_generator("portraits").to(device)
        config = source.recommended_settings("adapt", AdaptConfig)
        shift = TextShift(portraits.SOURCE, self.target)
        guides = [(load_guide(name, device=device), weight) for name, weight in portraits.GUIDES]
        judge, content = portraits.Judge.load(), Content.load()
        start = time.perf_counter()
        with progress(config.steps) as tick:
            result = adapt(source, guides, shift, config, _on_step(tick))
        seconds = time.perf_counter() - start

        latents = sample(source, range(6), psi=1.0)
        columns = {
            f"before: {shift.source}": render(source, latents),
            f"after: {shift.target}": render(result.generator, latents),
            "true image": portraits.render(content(latents.ws), shift.target),
        }
        picture = compare_grid(columns, title=f"The same latents, from {shift.source} to {shift.target} by text alone")
        movement = {layer.name: moved for layer, moved in inspect_layers(source, guides, shift, config.layers)}
        files = _save_result(result, path, "portraits", picture, _movement_plot(movement, config.layers))
        verdict = portraits.examine(judge, content, source.cpu(), result.generator.cpu(), shift.target)
        say(f"{config.steps} steps in {seconds:.0f} s on {device}, {torch.get_num_threads()} CPU threads")
        say(report.verdict(verdict.as_row(), verdict.passed, shift.target), report.listing(files))


@dataclass(frozen=True, kw_only=True)
class Adapt(TrainingFlags):
    """Adapt a generator to a new domain by text, by images, or by pairs of latents and edited images.

    The defaults are those stored in the generator's file, or else the paper's for published generators;
    `adapt GENERATOR --help` shows them. `torchrun --nproc-per-node N -m nada_core adapt` shares each batch between N
    processes.

    example:
      python -m nada_core adapt portraits --target zombie --out out
      python -m nada_core adapt ffhq.pkl --guide ViT-B-32:openai --guide ViT-B-16:openai --target zombie --out out
      python -m nada_core adapt portraits --recipe style --target 'pencil sketch' --out out
      python -m nada_core adapt portraits --pairs edited --out out
    """

    pairs: Folder = flag(
        None,
        "edited images, in the order of their names, and latents.safetensors, as `sample --separate` writes them; with "
        "--target, the CLIP terms are trained too",
    )
    judge: Text = flag(None, "a held-out CLIP model that chooses the best step, with --keep-every")
    out: str = required("a .safetensors file, or a folder for TARGET.safetensors")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite an earlier result")
    autosave: File = flag(None, "state of the run for --resume; removed when the result is saved (default: beside OUT)")
    resume: FlagCreatePairsOff[bool] = flag(False, "continue from the autosave; give all other flags as before")
    snapshot_every: Annotated[int, value("N", int)] = flag(
        0, "save the weight changes every N steps and at the end, for `pick`; at most 50 times; 0: never"
    )
    pair_settings: Annotated[PairSettings, arg(name="pairs")] = PairSettings()

    def run(self) -> None:
        with process_group(device_of(self.machine.device)) as device:
            self._run_on(device)

    def _run_on(self, device: torch.device) -> None:
        path = result_path(self.out, self.target or Path((self.image or (self.pairs or "adapted",))[0]).stem)
        autosave = Path(self.autosave) if self.autosave else path.with_suffix(".autosave.safetensors")
        snapshots = path.with_name(f"{path.stem}-snapshots") if self.snapshot_every else None
        prepare(path, *_plot_paths(path).values(), force=self.force)
        if snapshots is not None and not self.resume:
            prepare_snapshots(snapshots, self.force)
        self.check(needs_guides=not self.pairs)
        if not self.target and not self.image and not self.pairs:
            raise ValueError("Got none of --target, --image and --pairs, expected a text, images or pairs.")
        source = load_generator(self.generator).to(device)
        shift, guides = self.shift(source.resolution), self.load_guides(device)
        judge = load_guide(self.judge, device=device) if self.judge else None
        networks = (judge, *self.load_networks(device))
        for warning in (warning for guide, _ in guides if shift for warning in check_prompts(guide, shift)):
            sys.stderr.write(f"warning: {warning}\n" if not rank() else "")
        if self.resume and not autosave.exists():
            sys.stderr.write(f"There is no autosave at {autosave}; starting at the first step.\n")
        try:
            with progress(self.config.steps) as tick:
                on_step = None if rank() else _on_step(tick)
                saving: dict[str, Any] = {"snapshots": snapshots, "snapshot_every": self.snapshot_every}
                if shift is None or self.pairs:
                    options = {"on_step": on_step, "autosave": autosave, "resume": self.resume, **saving}
                    result = self._adapt_to_pairs(source, guides, shift, networks, **options)
                else:
                    inputs = (source, guides, shift, self.config, on_step, autosave, self.resume, *networks)
                    result = adapt(*inputs, **saving)
            if rank():  # rank 0 has the same weights and writes them
                return
            files = _save_result(result, path, self.generator, self._picture(source, result.generator))
            if result.snapshots:
                strip = filmstrip(source, result.snapshots, self._draw)
                files += [*(one.path for one in result.snapshots), save_image(strip, _plot_paths(path)["snapshots"])]
            autosave.unlink(missing_ok=True)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(report.how_to_resume(autosave)) from None
        except OSError as error:
            if error.errno is None:  # an error of ours, before the first step
                raise
            raise OSError(f"{error}. {report.how_to_resume(autosave)}") from error
        pairs = [pairs_report(result)] if self.pairs else []
        say(*pairs, *filter(None, [result.chosen_because]), report.listing(files))

    def _adapt_to_pairs(
        self,
        source: Generator,
        guides: Sequence[tuple[ClipGuide, float]],
        shift: Shift | None,
        networks: Sequence[Any],
        **options: Any,
    ) -> Adaptation:
        if self.judge:
            raise ValueError(f"Got --judge {self.judge} with --pairs, where held-out pairs choose the step; omit it.")
        config = PairsConfig(**vars(self.pair_settings), training=self.config)
        _, perceptual, identity = networks
        pairs = read_pairs(str(self.pairs), source)
        return adapt_to_pairs(source, *pairs, config, guides, shift, perceptual, identity, **options)

    def _draw(self, generator: Generator) -> Tensor:
        return render(generator, sample(generator, range(8), label=self.config.label))

    def _picture(self, source: Generator, adapted: Generator) -> Tensor:
        before, after = (
            f"before: {self.source}" if self.target else "before",
            self.target or (f"{len(self.image)} images" if self.image else "pairs"),
        )
        columns = {before: self._draw(source), f"after: {after}": self._draw(adapted)}
        return compare_grid(columns, [f"seed {seed}" for seed in range(8)])


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure how fast training runs on this machine, and which parts take the time.

    example:
      python -m nada_core bench
      python -m nada_core bench ffhq.pkl --guide ViT-B-32:openai --precision bf16
    """

    generator: Positional[Annotated[str, arg(metavar="GENERATOR")]] = flag(
        "portraits", "a generator file, or a built-in name"
    )
    guide: Files = flag((), "a CLIP model; default: those of the demo")
    steps: Positive = flag(22, "two of them are not timed")
    batch: Annotated[int | None, value("N", int)] = flag(None, "latents a step (default: as in training)")
    precision: Precision = flag("fp32", "arithmetic of the generators")

    def run(self) -> None:
        device = device_of(self.machine.device)
        source = load_generator(self.generator).to(device)
        config = source.recommended_settings("adapt", AdaptConfig)
        config = replace(config, steps=self.steps, precision=self.precision, batch=self.batch or config.batch)
        named = [(name, 1.0) for name in self.guide] or portraits.GUIDES
        guides = [(load_guide(name, device=device), weight) for name, weight in named]
        speed = measure(source, guides, TextShift(portraits.SOURCE, portraits.TARGETS[0]), config)
        say(report.speed(source, [guide.name for guide, _ in guides], config, device, speed.parts, speed.peak))


def result_path(out: str, target: str) -> Path:
    path = Path(out)
    return path if path.suffix == ".safetensors" else path / f"{slug(target)}.safetensors"


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60] or "adapted"


def _save_result(
    result: Adaptation, path: Path, generator: str, picture: Tensor, layers: Tensor | None = None
) -> list[Path]:
    """Write the generator first, so that no later failure loses it, then the images and plots."""
    known, history = result.domain.provenance, result.history
    origin = {"source": {"name": Path(generator).name, **known["source"]}, "version": __version__}
    save_generator(result.generator, path, {**known, **origin})
    losses = {"loss": [step["loss"] for step in history]}
    terms = history[0]["terms"] if "pairs" in known else result.config.terms
    if len(terms) > 1:
        losses |= {name: [step["terms"][name] for step in history] for name in terms}
    if layers is None and result.config.layers.mode == "adaptive":
        layers = _selection_plot(result)
    plots = {"before-after": picture, "loss": plot_lines(losses, "Loss", smooth=0.9), "layers": layers}
    paths = _plot_paths(path)
    return [path, *(save_image(plot, paths[name]) for name, plot in plots.items() if plot is not None)]


def _plot_paths(path: Path) -> dict[str, Path]:
    return {name: path.with_name(f"{path.stem}-{name}.png") for name in ("before-after", "loss", "layers", "snapshots")}


def _selection_plot(result: Adaptation) -> Tensor:
    """Which layers each step of adaptive layer freezing trained."""
    layers = result.generator.layers()
    names = [layer.name if layer.w_index is None else f"{layer.name}  row {layer.w_index}" for layer in layers]
    rows = [[float(layer.name in step["layers"]) for step in result.history] for layer in layers]
    return plot_heat(rows, names, "Layers trained at each step")


def _movement_plot(movement: Mapping[str, float], choice: LayerChoice) -> Tensor:
    """How far the text moves each layer's row of W+, with the rows an adaptive choice would train first."""
    top = sorted(movement, key=lambda name: -movement[name])[: choice.count]
    title, legend = "How far the text moves each layer's row of W+", f"the {len(top)} an adaptive choice trains first"
    return plot_bars(movement, title, "mean change of w", top, legend)


def _on_step(tick: Callable[[int, str], None]) -> Callable[[Step], None]:
    """Show the loss and the first trained layers in a progress bar."""

    def on_step(step: Step) -> None:
        more = "…" if len(step.layers) > 3 else ""
        tick(step.index + 1, f"loss {step.loss:.3f}, {' '.join(step.layers[:3])}{more}")

    return on_step
