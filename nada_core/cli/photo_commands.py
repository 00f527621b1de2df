"""The commands for pictures from outside and for latents: align, encode, invert, directions, edit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guidance.shifts import TextShift
from ..io.grid import compare_grid
from ..io.images import load_image, save_image, square
from ..latents.directions import edit, load_directions, parse_direction, principal, save_directions, sefa
from ..latents.encoder import load_encoder
from ..latents.face_alignment import FacePoints, cut_face
from ..latents.inversion import InvertConfig, invert
from ..latents.pivotal_tuning import TuneConfig, Tuning, tune
from ..latents.sampling import Latents, load_latents, render, sample, save_latents
from ..latents.text_edit import TextEditConfig, edit_by_text
from ..models.arcface import Identity, load_identity
from ..models.checkpoints import load_generator
from ..models.clip_loading import load_guide
from ..models.domain import save_domain
from ..models.generator import Generator
from ..models.lpips import Perceptual, load_perceptual
from ..runtime.config import from_flags
from . import report as wording
from .progress import device_of, prepare, progress, say

_STRENGTHS = (-3.0, -1.5, 0.0, 1.5, 3.0)  # shown of every direction


def align_command(args: argparse.Namespace) -> None:
    path = Path(args.out)
    prepare(path, args.force)
    points = FacePoints.parse(args.points) if args.points else None
    face = cut_face(load_image(args.photo), args.size, points, args.face, args.middle)
    say(wording.listing([save_image(face, path)]))


def encode_command(args: argparse.Namespace) -> None:
    path = Path(args.out)
    prepare(path, args.force)
    device = device_of(args.device)
    encoder = load_encoder(args.encoder, device)
    generator = load_generator(args.generator).to(device) if args.generator else encoder.decoder
    photos = _photos(args.photos, generator.resolution, args.align)
    with progress(len(photos) * (args.iterations if encoder.iterative else 1)) as tick:
        latents = encoder.encode(photos, args.iterations, generator, on_pass=lambda done, _: tick(done, ""))
    drawn = render(generator, latents)
    picture = compare_grid({"photo": photos, "encoded": drawn}, [Path(one).name for one in args.photos])
    files = [save_image(picture, path.with_suffix(".png"))]
    save_latents(latents, path, {"photos": [Path(one).name for one in args.photos], "encoder": encoder.source})
    say(wording.closeness(drawn, square(photos, generator.resolution)), wording.listing([*files, path]))


def invert_command(args: argparse.Namespace) -> None:
    """Latents, the generator's change where it is tuned, and a grid of it all, into one folder."""
    if args.start and args.encoder:
        raise ValueError("Got --start and --encoder, expected one of them: an inversion begins in one place.")
    folder, device = Path(args.out), device_of(args.device)
    path, change = folder / "latents.safetensors", folder / "tuning.safetensors"
    for place in (path, change) if args.tune else (path,):
        prepare(place, args.force)
    config, tuning = from_flags(InvertConfig, args), from_flags(TuneConfig, args, "tune")
    generator = load_generator(args.generator).to(device)
    adapted = {Path(name).stem: load_generator(name).to(device) for name in args.adapted or ()}
    perceptual = load_perceptual(args.perceptual, device) if args.perceptual else None
    identity = load_identity(args.identity, device) if args.identity else None
    photos = _photos(args.photos, generator.resolution, args.align)
    start = load_latents(args.start, generator) if args.start else None
    if args.encoder:
        start = load_encoder(args.encoder, device).encode(photos, generator=generator)

    with progress(len(photos) * config.steps) as tick:
        found = invert(
            generator,
            photos,
            config,
            perceptual,
            identity,
            start,
            lambda step: tick(step.done, f"loss {step.loss:.4f}, {step.psnr:.1f} dB"),
        )
    columns = {"photo": found.targets, "inverted": found.images}
    told = [wording.closeness(found.images, found.targets, perceptual, found.steps)]
    tuned = _tuned(generator, found.targets, found.latents, tuning, perceptual, identity) if args.tune else None
    if tuned:
        columns["tuned"] = tuned.images
        told += ["after the tuning", wording.closeness(tuned.images, found.targets, perceptual)]
    for name, one in adapted.items():
        columns[name] = render(tuned.domain.apply(one) if tuned else one, found.latents)

    files = [save_image(compare_grid(columns, [Path(one).name for one in args.photos]), folder / "inverted.png")]
    origin = {"photos": [Path(one).name for one in args.photos], "generator": generator.source}
    if tuned:
        save_domain(tuned.domain, change, provenance=origin)
        files.append(change)
    save_latents(found.latents, path, {**origin, "psnr": found.psnr, "config": vars(config)})
    say(*told, wording.listing([*files, path]))


def directions_command(args: argparse.Namespace) -> None:
    path = Path(args.out)
    prepare(path, args.force)
    generator = load_generator(args.generator).to(device_of(args.device))
    if args.method == "sefa":
        found = sefa(generator, args.count, layers=args.rows)
    else:
        found = principal(generator, args.count, layers=args.rows)
    latent = sample(generator, [args.seed], label=args.label)
    moved = [
        torch.cat([render(generator, edit(latent, found[index], strength)) for index in range(len(found))])
        for strength in _STRENGTHS
    ]
    columns = {f"{strength:+g}": images for strength, images in zip(_STRENGTHS, moved, strict=True)}
    picture = save_image(compare_grid(columns, found.names), path.with_suffix(".png"))
    save_directions(found, path, {"method": args.method, "generator": generator.source})
    say(wording.listing([picture, path]))


def edit_command(args: argparse.Namespace) -> None:
    if bool(args.direction) == bool(args.text):
        raise ValueError(
            "Got --direction and --text, or neither of them; expected one: the file of a direction, or "
            "a phrase such as 'photo with glasses'."
        )
    path, device = Path(args.out), device_of(args.device)
    prepare(path, args.force)
    generator = load_generator(args.generator).to(device)
    latents = load_latents(args.latents, generator)
    if args.direction:
        edited = edit(
            latents, parse_direction(load_directions(args.direction, generator), args.name), args.strength, args.rows
        )
        told: dict[str, Any] = {"direction": args.name, "strength": args.strength}
    else:
        edited = _by_text(generator, latents, args)
        told = {"source": args.source, "text": args.text}
    columns = {"before": render(generator, latents), "after": render(generator, edited)}
    picture = save_image(compare_grid(columns), path.with_suffix(".png"))
    save_latents(edited, path, {"edited": told, "generator": generator.source})
    say(wording.listing([picture, path]))


def _photos(names: Sequence[str], size: int, aligned: bool) -> Tensor:
    """[N, 3, size, size]: photos come in all sizes, and the faces in them are cut out if that was asked for."""
    photos = (load_image(name) for name in names)
    return torch.cat([cut_face(one, size) if aligned else square(one, size) for one in photos])


def _tuned(
    generator: Generator,
    targets: Tensor,
    latents: Latents,
    config: TuneConfig,
    perceptual: Perceptual | None,
    identity: Identity | None,
) -> Tuning:
    with progress(config.steps) as tick:
        return tune(
            generator,
            targets,
            latents,
            config,
            perceptual,
            identity,
            lambda step: tick(step.index + 1, f"loss {step.loss:.4f}, {step.psnr:.1f} dB"),
        )


def _by_text(generator: Generator, latents: Latents, args: argparse.Namespace) -> Latents:
    config, device = from_flags(TextEditConfig, args), device_of(args.device)
    guides = [(load_guide(name, device=device), weight) for name, weight in args.guide or [("portraits", 1.0)]]
    identity = load_identity(args.identity, device) if args.identity else None
    with progress(config.steps) as tick:
        return edit_by_text(
            generator,
            latents,
            guides,
            TextShift(args.source, args.text),
            config,
            identity,
            lambda step: tick(step.index + 1, f"loss {step.loss:.4f}"),
        )
