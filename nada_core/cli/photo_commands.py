"""The commands for photos and latents: encode, invert, directions, edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ..guidance.reconstruction import check_networks
from ..guidance.shifts import TextShift
from ..io.grid import compare_grid
from ..io.images import load_image, save_image, square
from ..latents.directions import edit, load_directions, parse_direction, principal, save_directions, sefa
from ..latents.encoder import load_encoder
from ..latents.face_alignment import cut_face
from ..latents.inversion import PRESETS, InvertConfig, invert
from ..latents.pivotal_tuning import TuneConfig, tune
from ..latents.sampling import load_latents, render, sample, save_latents
from ..latents.text_edit import TextEditConfig, edit_by_text
from ..models.arcface import load_identity
from ..models.checkpoints import load_generator
from ..models.clip_loading import load_guide
from ..models.domain import save_domain
from ..models.generator import build_settings
from ..models.lpips import load_perceptual
from . import report
from .arguments import (
    File,
    Files,
    GeneratorName,
    Guides,
    Identity,
    Perceptual,
    Positive,
    Rows,
    Text,
    Whole,
    draft,
    flag,
    one_of,
    required,
    with_defaults,
)
from .face_commands import Photos, ResultFlags, align_photos, paste_columns, pasted_paths
from .file_commands import check_related, column_labels
from .progress import device_of, output_path, prepare, progress, say
from .training_flags import stored_settings

_STRENGTHS = (-3.0, -1.5, 0.0, 1.5, 3.0)  # drawn for every direction

Preset = Annotated[str, one_of(PRESETS)]


@dataclass(frozen=True, kw_only=True)
class Encode(ResultFlags):
    """Map photos to latents with a trained encoder. OUT is a .safetensors file; an image is written to the same folder.

    example:
      python -m nada_core encode e4e_ffhq_encode.pt face.png --out face.safetensors
    """

    encoder: Positional[str] = required("a pSp, e4e or ReStyle checkpoint")
    photos: Photos
    align: FlagCreatePairsOff[bool] = flag(False, "first cut the largest face out of every photo")
    generator: File = flag(None, "generator the latents are for (default: the encoder's own)")
    iterations: Positive = flag(5, "passes of a ReStyle encoder")

    def run(self) -> None:
        path, device = output_path(self.out, ".safetensors"), device_of(self.machine.device)
        picture = path.with_suffix(".png")
        prepare(path, picture, force=self.force)
        encoder = load_encoder(self.encoder, device)
        generator = load_generator(self.generator).to(device) if self.generator else encoder.decoder
        photos = _load_photos(self.photos, generator.resolution, self.align)
        with progress(len(photos) * (self.iterations if encoder.iterative else 1)) as tick:
            latents = encoder.encode(photos, self.iterations, generator, on_pass=lambda done, _: tick(done, ""))
        names = [Path(name).name for name in self.photos]
        save_latents(latents, path, {"photos": names, "encoder": encoder.source})
        images = render(generator, latents)
        save_image(compare_grid({"photo": photos, "encoded": images}, names), picture)
        say(report.closeness(images, square(photos, generator.resolution)), report.listing([path, picture]))


@dataclass(frozen=True, kw_only=True)
class Invert(ResultFlags):
    """Find the latents of photos, and draw them with adapted generators.

    OUT is a folder for latents.safetensors, inverted.png and, with --tune, tuning.safetensors. The defaults are those
    stored in the generator's file; `invert GENERATOR --help` shows them.

    example:
      python -m nada_core invert portraits face.png --out out/face --tune
      python -m nada_core invert ffhq.pkl face.png --perceptual vgg --identity model_ir_se50.pth --out out/face
      python -m nada_core invert portraits face.png --adapted zombie.safetensors --out out/face
      python -m nada_core invert portraits photo.jpg --tune --adapted zombie.safetensors --paste --out out/face
    """

    generator: GeneratorName
    photos: Photos
    align: FlagCreatePairsOff[bool] = flag(False, "first cut the largest face out of every photo")
    perceptual: Perceptual = None
    identity: Identity = None
    start: File = flag(None, "latents to start from (default: the mean of w)")
    encoder: File = flag(None, "an encoder whose latents to start from")
    adapted: Files = flag((), "also draw the latents with this generator, which was adapted from GENERATOR")
    paste: FlagCreatePairsOff[bool] = flag(
        False, "with --adapted: paste the adapted faces back into the photos, as PHOTO-ADAPTED.png; implies --align"
    )
    preset: Preset = flag(
        "default", "defaults of the inversion: default, editable (in w), or report (its weights only)"
    )
    tune: FlagCreatePairsOff[bool] = flag(False, "tune the generator after the inversion, to draw the photos exactly")
    config: Annotated[InvertConfig, arg(name="inversion")] = InvertConfig()
    tuning: Annotated[TuneConfig, arg(name="pivotal-tuning")] = TuneConfig()

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Any:
        known = draft(cls, words)
        stored = stored_settings(known.generator if known else "")
        config = PRESETS[known.preset if known else "default"]
        if config == PRESETS["default"]:
            config = build_settings(InvertConfig, stored.get("invert", {}))
        tuning = build_settings(TuneConfig, stored.get("tune", {}))
        return with_defaults(cls, config=config, tuning=tuning, identity=stored.get("identity"))

    def run(self) -> None:
        if self.start and self.encoder:
            raise ValueError("Got --start and --encoder, expected one of them.")
        if self.paste and not self.adapted:
            raise ValueError("Got --paste without --adapted, expected a generator whose faces are pasted.")
        folder, device = Path(self.out), device_of(self.machine.device)
        path, change = folder / "latents.safetensors", folder / "tuning.safetensors"
        picture, labels = folder / "inverted.png", column_labels(self.adapted)
        pasted = pasted_paths(self.photos, labels, folder) if self.paste else []
        prepare(path, picture, *([change] if self.tune else []), *pasted, force=self.force)
        generator = load_generator(self.generator).to(device)
        adapted = {label: load_generator(name).to(device) for label, name in zip(labels, self.adapted, strict=True)}
        for label, one in adapted.items():
            check_related(generator, one, label)
        perceptual = load_perceptual(self.perceptual, device) if self.perceptual else None
        identity = load_identity(self.identity, device) if self.identity else None
        check_networks(self.config.weights, perceptual, identity)
        if self.tune:
            check_networks(self.tuning.weights, perceptual, identity)
        names, size = [Path(p).name for p in self.photos], generator.resolution
        faces = align_photos(self.photos, size) if self.paste else None
        photos = faces[0] if faces else _load_photos(self.photos, size, self.align)
        start = load_latents(self.start, generator) if self.start else None
        if self.encoder:
            start = load_encoder(self.encoder, device).encode(photos, generator=generator)

        with progress(len(photos) * self.config.steps) as tick:
            on_step = _on_step(lambda step, words: tick(step.done, words))
            found = invert(generator, photos, self.config, perceptual, identity, start, on_step)
        files, origin = [path], {"photos": names, "generator": generator.source}
        save_latents(found.latents, path, {**origin, "psnr": found.psnr, "config": vars(self.config)})
        columns = {"photo": found.targets, "inverted": found.images}
        lines = [report.closeness(found.images, found.targets, perceptual, found.steps)]
        tuned = None
        if self.tune:
            with progress(self.tuning.steps) as tick:
                on_step = _on_step(lambda step, words: tick(step.index + 1, words))
                tuned = tune(generator, found.targets, found.latents, self.tuning, perceptual, identity, on_step)
            save_domain(tuned.domain, change, provenance=origin)
            files.append(change)
            columns["tuned"] = tuned.images
            lines += ["after tuning", report.closeness(tuned.images, found.targets, perceptual)]
        drawn = {
            name: render(tuned.domain.apply(one) if tuned else one, found.latents) for name, one in adapted.items()
        }
        columns |= drawn
        if faces:
            files += paste_columns(self.photos, faces[1], drawn, pasted)
        files.append(save_image(compare_grid(columns, names), picture))
        say(*lines, report.listing(files))


@dataclass(frozen=True, kw_only=True)
class FindDirections(ResultFlags):
    """Find directions of change in the latents. OUT is a .safetensors file; an image is written to the same folder.

    example:
      python -m nada_core directions portraits --method sefa --rows 0-3 --out out/sefa.safetensors
    """

    generator: GeneratorName
    method: Literal["sefa", "pca"] = flag("sefa", "sefa: from the weights; pca: principal components of w (GANSpace)")
    count: Positive = flag(10, "how many directions")
    rows: Rows = flag(None, "rows of W+ that they move, both ends included; None: all")
    seed: int = flag(0, "seed of the image that is drawn")
    label: Whole = flag(None, "class of a conditional generator")

    def run(self) -> None:
        path = output_path(self.out, ".safetensors")
        picture = path.with_suffix(".png")
        prepare(path, picture, force=self.force)
        generator = load_generator(self.generator).to(device_of(self.machine.device))
        find = sefa if self.method == "sefa" else principal
        found = find(generator, self.count, layers=self.rows)
        save_directions(found, path, {"method": self.method, "generator": generator.source})
        latent = sample(generator, [self.seed], label=self.label)
        each = [found[index] for index in range(len(found))]
        columns = {f"{x:+g}": torch.cat([render(generator, edit(latent, one, x)) for one in each]) for x in _STRENGTHS}
        say(report.listing([path, save_image(compare_grid(columns, found.names), picture)]))


@dataclass(frozen=True, kw_only=True)
class Edit(ResultFlags):
    """Move latents along a direction or by text. OUT is a .safetensors file; an image is written to the same folder.

    example:
      python -m nada_core edit portraits face.safetensors --direction sefa.safetensors --name 2 --out e.safetensors
      python -m nada_core edit portraits face.safetensors --text 'photo with glasses' --out e.safetensors
    """

    generator: GeneratorName
    latents: Positional[str] = required("a file of latents")
    direction: File = flag(None, "a file of directions, of this package, InterFaceGAN or GANSpace")
    name: str = flag("0", "name of the direction, or its number from 0")
    strength: float = flag(2.0, "how far to move along it")
    rows: Rows = flag(None, "rows of W+ that move, both ends included; None: all")
    text: Text = flag(None, "text for what the images should show")
    source: str = flag("photo", "text for what they show now")
    guide: Guides = flag((), "a CLIP model for the text; default: portraits")
    identity: Identity = None
    config: Annotated[TextEditConfig, arg(name="text-edit")] = TextEditConfig()

    def run(self) -> None:
        if bool(self.direction) == bool(self.text):
            raise ValueError("Got --direction and --text, or neither; expected one of them.")
        path, device = output_path(self.out, ".safetensors"), device_of(self.machine.device)
        picture = path.with_suffix(".png")
        prepare(path, picture, force=self.force)
        generator = load_generator(self.generator).to(device)
        latents = load_latents(self.latents, generator)
        if self.direction:
            direction = parse_direction(load_directions(self.direction, generator), self.name)
            edited = edit(latents, direction, self.strength, self.rows)
            origin: dict[str, Any] = {"direction": self.name, "strength": self.strength}
        else:
            names = self.guide or (("portraits", 1.0),)
            guides = [(load_guide(name, device=device), weight) for name, weight in names]
            identity = load_identity(self.identity, device) if self.identity else None
            shift = TextShift(self.source, self.text or "")
            with progress(self.config.steps) as tick:
                on_step = _on_step(lambda step, words: tick(step.index + 1, words))
                edited = edit_by_text(generator, latents, guides, shift, self.config, identity, on_step)
            origin = {"source": self.source, "text": self.text}
        save_latents(edited, path, {"edited": origin, "generator": generator.source})
        columns = {"before": render(generator, latents), "after": render(generator, edited)}
        say(report.listing([path, save_image(compare_grid(columns), picture)]))


def _load_photos(names: Sequence[str], size: int, aligned: bool) -> Tensor:
    """Load photos of any size as [N, 3, size, size], with their faces cut out if `aligned`."""
    photos = (load_image(name) for name in names)
    return torch.cat([cut_face(photo, size) if aligned else square(photo, size) for photo in photos])


def _on_step(tick: Any) -> Any:
    """Show the loss of a step, and its PSNR if it has one, in a progress bar."""

    def on_step(step: Any) -> None:
        tick(step, f"loss {step.loss:.4f}" + (f", {step.psnr:.1f} dB" if hasattr(step, "psnr") else ""))

    return on_step
