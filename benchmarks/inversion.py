"""Measure inversion and pivotal tuning in the built-in world, and whether attributes survive in adapted generators.

    python -m benchmarks.inversion                       all tables
    python -m benchmarks.inversion held-out known        some of them
    python -m benchmarks.inversion --grid out/face.png   also draw the first table

- held-out: rendered photos that no network was fitted on. PSNR: mean and minimum in dB. Attribute error: mean |judge's
  prediction on the result - truth|, in brackets that on the photo itself. Same face: cosine between identity
  embeddings. CPU time: of this process, per photo. Preset `report`: MSE 0.8, LPIPS 0.5 and identity 1.0 in W+ from the
  mean, with the same number of steps; its LPIPS has an untrained trunk, because the pack ships no trained one.
- outside: elves, sketches and a scribble, which the generator cannot draw. Change: mean |change| that the tuning causes
  in the images of 64 random latents, 0..255, with and without the locality regularizer.
- known: images that the generator made itself.
- adapted: inverted photos rendered by adapted generators. Attributes: correlation over photos between the judge's
  predictions on the result and on the photo, compared with random samples and their source images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nada_core import (
    Generator,
    Identity,
    InvertConfig,
    Latents,
    TextShift,
    adapt,
    compare_grid,
    invert,
    load_generator,
    load_guide,
    load_identity,
    load_perceptual,
    sample,
    save_image,
    tune,
)
from nada_core import render as draw
from nada_core.guidance.reconstruction import psnr
from nada_core.latents.inversion import PRESETS
from nada_core.portraits import INVERT, RECIPE, SOURCE, TUNE, Judge, contents, render
from nada_core.portraits.render import readable, visible

SEEDS = range(16)
DOMAINS = ("zombie", "joker", "anime")


def held_out(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    people = contents(SEEDS)
    photos = render(people)
    yield "| method | steps | PSNR, mean | PSNR, minimum | attribute error (photo's) | same face | CPU time |"
    yield "|---|---|---|---|---|---|---|"
    columns = {"photo": photos}
    inverted: dict[str, tuple[Tensor, Latents]] = {}
    report = replace(PRESETS["report"], steps=INVERT.steps, batch=len(photos))
    recipes: dict[str, tuple[InvertConfig, bool]] = {
        "preset report": (report, True),
        "preset report, our learning rate": (replace(report, lr=INVERT.lr), True),
        "W": (replace(INVERT, space="w", batch=len(photos)), False),
        "W+": (replace(INVERT, space="w+", batch=len(photos)), False),
        "W then W+": (replace(INVERT, batch=len(photos)), False),
    }
    for name, (config, with_lpips) in recipes.items():
        perceptual = load_perceptual("vgg:random") if with_lpips else None
        started = time.process_time()
        result = invert(generator, photos, config, perceptual, identity)
        yield _row(name, config.steps, result.images, photos, people, judge, identity, started)
        inverted[name] = torch.tensor(result.psnr), result.latents
        columns[name] = result.images
    started = time.process_time()
    latents = inverted["W then W+"][1]
    tuned = tune(generator, photos, latents, TUNE, identity=identity)
    yield _row("PTI, all 16 photos at once", len(tuned.history), tuned.images, photos, people, judge, identity, started)
    started = time.process_time()
    alone = [tune(generator, photos[i : i + 1], latents[i], TUNE, identity=identity) for i in range(4)]
    images = torch.cat([one.images for one in alone])
    steps = max(len(one.history) for one in alone)
    yield _row("PTI, the first 4 photos one by one", steps, images, photos[:4], people[:4], judge, identity, started)
    columns["PTI"] = tuned.images
    for name in list(recipes)[:2]:
        better = int((inverted["W then W+"][0] > inverted[name][0]).sum())
        yield f"\nW then W+ has a higher PSNR than {name} on {better} of {len(photos)} photos."
    if grid is not None:
        save_image(compare_grid(columns, title="Rendered photos and their inversions"), grid)


def _row(
    name: str,
    steps: int,
    images: Tensor,
    photos: Tensor,
    people: Tensor,
    judge: Judge,
    identity: Identity,
    started: float,
) -> str:
    seconds = (time.process_time() - started) / len(photos)
    with torch.no_grad():
        shown, truth = visible(SOURCE), readable(people)
        error, own = ((judge(one)[1] - truth).abs()[:, shown].mean() for one in (images, photos))
        same = (identity(images) * identity(photos)).sum(1).mean()
    close = psnr(images, photos)
    return (
        f"| {name} | {steps} | {close.mean():.1f} dB | {close.min():.1f} dB | {error:.3f} ({own:.3f}) | {same:.3f} "
        f"| {seconds:.1f} s |"
    )


def outside(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    people = contents(SEEDS[:3])
    pictures = torch.cat([render(people, "elf"), render(people, "pencil sketch"), scribble()])
    names = [*(f"elf {seed}" for seed in range(3)), *(f"sketch {seed}" for seed in range(3)), "scribble"]
    start = invert(generator, pictures, replace(INVERT, batch=len(pictures)), identity=identity)
    others = sample(generator, range(70_000, 70_064), psi=1.0)
    before = draw(generator, others, 32)
    yield "| image | inverted, dB | PTI, dB | change | PTI without locality, dB | change | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for index, name in enumerate(names):
        one, latent = pictures[index : index + 1], start.latents[index]
        cells = [f"{start.psnr[index]:.1f}"]
        changes = []
        for locality in (TUNE.locality, 0.0):
            result = tune(generator, one, latent, replace(TUNE, locality=locality), identity=identity)
            changes.append(float((draw(result.generator, others, 32) - before).abs().mean()) * 127.5)
            cells += [f"{result.psnr[0]:.1f}", f"{changes[-1]:.2f}"]
        yield f"| {name} | {' | '.join(cells)} | {changes[0] / changes[1]:.2f} |"


def scribble(side: int = 64) -> Tensor:
    """Draw a simple face without the renderer, [1, 3, side, side]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    head = ((x**2 + y**2).sqrt() - 0.7).abs()
    eyes = ((x.abs() - 0.25) ** 2 + (y + 0.15) ** 2).sqrt() - 0.06
    mouth = ((x**2 + (y - 0.05) ** 2).sqrt() - 0.35).abs() + (0.25 - y).clamp(min=0)
    hair = (y + 0.72 + 0.08 * torch.sin(20 * x)).abs() + (x.abs() - 0.55).clamp(min=0)
    ink = torch.stack([line for line in (head, eyes, mouth, hair)]).amin(0)
    paper = ((ink - 0.03) * side / 4).clamp(0, 1)
    return torch.stack([paper, paper, 0.2 + 0.8 * paper])[None] * 2 - 1  # blue ink


def known(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    latents = sample(generator, range(80_000, 80_016), psi=0.7)
    pictures = draw(generator, latents, 16).clamp(-1, 1)
    result = invert(generator, pictures, replace(INVERT, batch=16), identity=identity)
    distance = (result.latents.ws - latents.ws).flatten(1).norm(dim=1) / latents.ws.flatten(1).norm(dim=1)
    close = torch.tensor(result.psnr)
    yield (
        f"16 images x = G(w), psi 0.7, {INVERT.space}, {INVERT.steps} steps: mean {close.mean():.1f} dB, minimum "
        f"{close.min():.1f} dB; mean |w found - w| / |w| {distance.mean():.2f}."
    )


def adapted(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    photos = render(contents(range(48)))
    config = replace(INVERT, batch=16)
    latents = invert(generator, photos, config, identity=identity).latents
    samples = sample(generator, range(90_000, 90_048), psi=1.0)
    sources = draw(generator, samples, 16)
    guide = load_guide("portraits")
    yield "| domain | attributes, photos | attributes, samples | same face, photos | same face, samples |"
    yield "|---|---|---|---|---|"
    for domain in DOMAINS:
        student = adapt(generator, guide, TextShift(SOURCE, domain), RECIPE).generator
        pairs = ((draw(student, latents, 16), photos), (draw(student, samples, 16), sources))
        with torch.no_grad():
            attributes = [_correlation(judge(after)[1], judge(before)[1], visible(domain)) for after, before in pairs]
            same = [(identity(after) * identity(before)).sum(1).mean() for after, before in pairs]
        yield f"| {domain} | {attributes[0]:.2f} | {attributes[1]:.2f} | {same[0]:.2f} | {same[1]:.2f} |"


def _correlation(one: Tensor, other: Tensor, shown: Tensor) -> float:
    """Mean correlation over images of the attributes that a style shows."""
    one, other = one - one.mean(0), other - other.mean(0)
    return ((one * other).sum(0) / (one.norm(dim=0) * other.norm(dim=0)).clamp(min=1e-6))[shown].mean().item()


TABLES: dict[str, Callable[[Generator, Judge, Identity, Path | None], Iterator[str]]] = {
    "held-out": held_out,
    "outside": outside,
    "known": known,
    "adapted": adapted,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inversion", description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--grid", type=Path, help="PNG of the first table's images")
    args = parser.parse_args()
    if unknown := [name for name in args.tables if name not in TABLES]:
        parser.error(f"got {', '.join(unknown)}; expected {', '.join(TABLES)}")
    generator, judge, identity = load_generator("portraits"), Judge.load(), load_identity("portraits")
    for name in args.tables or TABLES:
        sys.stdout.write(f"\n{name}\n\n")
        for line in TABLES[name](generator, judge, identity, args.grid):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
