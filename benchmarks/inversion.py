"""Inversion in the built-in world: how close projection and tuning come, and what is left of the person in new domains.

    python -m benchmarks.inversion                       all tables
    python -m benchmarks.inversion held-out known        some of them
    python -m benchmarks.inversion --grid out/face.png   also a picture of the first table

**held-out**: photos drawn by formula that no fit has seen. *dB*: mean and least PSNR. *read*: mean |attribute that the
judge reads off the result - truth|, in brackets what it reads off the photo itself. *same face*: cosine, to the
built-in recogniser. *CPU s*: of this process, a picture. The report's recipe (MSE 0.8, LPIPS 0.5, identity 1.0, in W+
from the mean) has as many steps; its LPIPS has an untrained trunk here, because no trained one ships.
**outside**: elves, sketches and a scribble, which the generator never draws; *moved*: mean |change| of 64 random
latents' pictures by the tuning, 0..255, with the locality regulariser and without.
**known**: pictures the generator made itself. **adapted**: photos, inverted, through adapted generators; the
correlation of attributes over photos between what the judge reads off the result and off the photo, beside that of the
same number of samples and their own sources.
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
    yield "| method | steps | dB, mean | dB, least | read (the photo's) | same face | CPU s |"
    yield "|---|---|---|---|---|---|---|"
    columns = {"photo": photos}
    found: dict[str, tuple[Tensor, Latents]] = {}
    report = replace(PRESETS["report"], steps=INVERT.steps, batch=len(photos))
    recipes: dict[str, tuple[InvertConfig, bool]] = {
        "the report's recipe": (report, True),
        "the report's, at our learning rate": (replace(report, lr=INVERT.lr), True),
        "W": (replace(INVERT, space="w", batch=len(photos)), False),
        "W+": (replace(INVERT, space="w+", batch=len(photos)), False),
        "W then W+": (replace(INVERT, batch=len(photos)), False),
    }
    for name, (config, blurry) in recipes.items():
        perceptual = load_perceptual("vgg:random") if blurry else None
        started = time.process_time()
        result = invert(generator, photos, config, perceptual, identity)
        yield _row(name, config.steps, result.images, photos, people, judge, identity, started)
        found[name] = result.psnr and torch.tensor(result.psnr), result.latents
        columns[name] = result.images
    started = time.process_time()
    tuned = tune(generator, photos, found["W then W+"][1], TUNE, identity=identity)
    yield _row("all 16 in one PTI", len(tuned.history), tuned.images, photos, people, judge, identity, started)
    started = time.process_time()
    alone = [tune(generator, photos[i : i + 1], found["W then W+"][1][i], TUNE, identity=identity) for i in range(4)]
    images = torch.cat([one.images for one in alone])
    steps = max(len(one.history) for one in alone)
    yield _row("PTI, the first 4 one by one", steps, images, photos[:4], people[:4], judge, identity, started)
    columns["PTI"] = tuned.images
    for name in list(recipes)[:2]:
        better = int((found["W then W+"][0] > found[name][0]).sum())
        yield f"\nW then W+ is closer than {name} on {better} of {len(photos)} photos."
    if grid is not None:
        save_image(compare_grid(columns, title="Photos by formula, and what inversion makes of them"), grid)


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
    took = (time.process_time() - started) / len(photos)
    with torch.no_grad():
        shown, truth = visible(SOURCE), readable(people)
        off, own = ((judge(one)[1] - truth).abs()[:, shown].mean() for one in (images, photos))
        same = (identity(images) * identity(photos)).sum(1).mean()
    close = psnr(images, photos)
    return (
        f"| {name} | {steps} | {close.mean():.1f} | {close.min():.1f} | {off:.3f} ({own:.3f}) | {same:.3f} "
        f"| {took:.1f} |"
    )


def outside(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    people = contents(SEEDS[:3])
    pictures = torch.cat([render(people, "elf"), render(people, "pencil sketch"), scribble()])
    names = [*(f"elf {seed}" for seed in range(3)), *(f"sketch {seed}" for seed in range(3)), "scribble"]
    start = invert(generator, pictures, replace(INVERT, batch=len(pictures)), identity=identity)
    others = sample(generator, range(70_000, 70_064), psi=1.0)
    before = draw(generator, others, 32)
    yield "| picture | inverted, dB | PTI, dB | moved | PTI without locality, dB | moved | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for index, name in enumerate(names):
        one, latent = pictures[index : index + 1], start.latents[index]
        cells = [f"{start.psnr[index]:.1f}"]
        moved = []
        for locality in (TUNE.locality, 0.0):
            result = tune(generator, one, latent, replace(TUNE, locality=locality), identity=identity)
            moved.append(float((draw(result.generator, others, 32) - before).abs().mean()) * 127.5)
            cells += [f"{result.psnr[0]:.1f}", f"{moved[-1]:.2f}"]
        yield f"| {name} | {' | '.join(cells)} | {moved[0] / moved[1]:.2f} |"


def scribble(side: int = 64) -> Tensor:
    """A face as a child draws it, [1, 3, side, side]: nothing of the renderer is in it."""
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
        f"x = G(w), psi 0.7, 16 of them, {INVERT.space}, {INVERT.steps} steps: {close.mean():.1f} dB, least "
        f"{close.min():.1f} dB; the latents found are {distance.mean():.2f} of w's length away."
    )


def adapted(generator: Generator, judge: Judge, identity: Identity, grid: Path | None) -> Iterator[str]:
    photos = render(contents(range(48)))
    config = replace(INVERT, batch=16)
    found = invert(generator, photos, config, identity=identity)
    samples = sample(generator, range(90_000, 90_048), psi=1.0)
    own = draw(generator, samples, 16)
    guide = load_guide("portraits")
    yield "| domain | inverted photos | samples | same face, inverted | same face, samples |"
    yield "|---|---|---|---|---|"
    for domain in DOMAINS:
        moved = adapt(generator, guide, TextShift(SOURCE, domain), RECIPE).generator
        ours, theirs = draw(moved, found.latents, 16), draw(moved, samples, 16)
        with torch.no_grad():
            kept = [
                _alike(judge(one)[1], judge(other)[1], visible(domain))
                for one, other in ((ours, photos), (theirs, own))
            ]
            same = [(identity(one) * identity(other)).sum(1).mean() for one, other in ((ours, photos), (theirs, own))]
        yield f"| {domain} | {kept[0]:.2f} | {kept[1]:.2f} | {same[0]:.2f} | {same[1]:.2f} |"


def _alike(one: Tensor, other: Tensor, shown: Tensor) -> float:
    """Mean correlation of the attributes a style shows, over pictures."""
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
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"which of {', '.join(TABLES)} (all)")
    parser.add_argument("--grid", type=Path, help="draw the first table too")
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
