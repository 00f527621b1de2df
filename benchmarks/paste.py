"""Measure pasting faces back into photos, in scenes of built-in portraits whose landmarks are known.

    python -m benchmarks.paste                         all tables
    python -m benchmarks.paste identity flicker        some of them
    python -m benchmarks.paste --out docs/paste.jpg    also draw a photo, its adapted faces, and the result

- identity: the aligned crop is pasted back as it is. PSNR in dB of the pixels whose mask is above 0; inf: no pixel
  differs. Outside: photos whose other pixels are equal bit for bit. Change: the default, which pastes the difference of
  the crop; crop: the crop itself (detail 0), so the photo is resampled twice. Enlarged: the crop is resampled to 1.5
  times its size and back, as an edit that changes nothing would. Grain: noise in the photo, standard deviation of 255.
- flicker: 8 frames of a still person whose landmarks have noise of one pixel. Standard deviation over time, of 255,
  averaged over the mask. Fixed: every frame gets the same face. Zombie: every frame is inverted, one pivotal tuning
  for all, and the adapted generator draws them.
"""

from __future__ import annotations

import argparse
import cmath
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nada_core import (
    FacePoints,
    Generator,
    Latents,
    PasteConfig,
    TextShift,
    adapt,
    align_faces,
    invert,
    load_generator,
    load_guide,
    load_identity,
    paste_faces,
    tune,
)
from nada_core import render as draw
from nada_core.io.images import resize, to_pil
from nada_core.portraits import GUIDES, INVERT, RECIPE, SOURCE, TUNE, contents, render
from nada_core.portraits.render import ATTRIBUTES

HEIGHT, WIDTH = 480, 640
STEPS = 120  # of the adaptation, the inversion and the tuning


@dataclass(frozen=True)
class Pose:
    """Where a portrait lies in a scene: its center as x + iy, half a side, and its rotation in degrees."""

    center: complex
    half: float
    degrees: float = 0.0

    @property
    def right(self) -> complex:
        return self.half * cmath.exp(1j * math.radians(self.degrees))


def random_pose(rng: torch.Generator) -> Pose:
    x, y, scale, turn = torch.rand(4, generator=rng).tolist()
    return Pose(complex(200 + 240 * x, 160 + 160 * y), 70 + 90 * scale, 80 * turn - 40)


def landmarks(person: Tensor, pose: Pose) -> FacePoints:
    """The points of a portrait with the attributes [A] of `contents`."""
    a = dict(zip(ATTRIBUTES, person.tolist(), strict=True))
    middle = complex((a["shift_x"] - 0.5) * 0.24, (a["shift_y"] - 0.5) * 0.2)
    gap, half = 0.145 + 0.075 * a["eye_gap"], 0.10 + 0.09 * a["mouth_width"]
    mouth = 0.27 + 0.06 * a["face_height"]
    at = [
        pose.center + pose.right * (middle + complex(x, y) / 0.84)
        for x, y in ((-gap, -0.06), (gap, -0.06), (0, 0.15), (-half, mouth), (half, mouth))
    ]
    return FacePoints(*((point.real, point.imag) for point in at))


def scene(people: Tensor, poses: Sequence[Pose], grain: float = 0.0, seed: int = 0, plain: bool = False) -> Tensor:
    """A photo [1, 3, H, W] of people [N, A] in front of a colorful wall.

    Args:
        grain: standard deviation of noise, of 255.
        plain: continue the wall of the first portrait instead.
    """
    rng = torch.Generator().manual_seed(seed)
    photo = F.interpolate(torch.rand(1, 3, 24, 32, generator=rng) - 0.5, (HEIGHT, WIDTH), mode="bicubic")
    if plain:
        photo = render(people[:1])[:, :, :1, :1].expand_as(photo)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for portrait, pose in zip(render(people).split(1), poses, strict=True):
        at = torch.complex(x - pose.center.real, y - pose.center.imag) / pose.right
        positions = torch.view_as_real(at)[None]
        drawn = F.grid_sample(portrait, positions, mode="bicubic", padding_mode="border", align_corners=False)
        inside = ((1 - positions.abs().amax(-1)) / 0.1).clamp(0, 1)[:, None]
        photo = torch.lerp(photo, drawn, inside)
    return (photo + grain / 127.5 * torch.randn(photo.shape, generator=rng)).clamp(-1, 1)


def jitter(points: FacePoints, count: int, deviation: float, seed: int) -> list[FacePoints]:
    """The points of a still face as a detector finds them in `count` frames: with noise of this many pixels."""
    noise = torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(seed)) * deviation
    fixed = torch.tensor(list(vars(points).values()))
    return [FacePoints(*map(tuple, one)) for one in (fixed + noise).tolist()]


def psnr_inside(image: Tensor, photo: Tensor, mask: Tensor) -> float:
    """PSNR in dB of the pixels whose mask is above 0."""
    error = (image - photo)[(mask > 0).expand_as(photo)].double().square().mean().item() / 4
    return -10 * math.log10(error) if error else math.inf


def identity(_: Path | None) -> Iterator[str]:
    yield "| scene | grain | crop | pasted | PSNR, minimum | PSNR, mean | outside |"
    yield "|---|---|---|---|---|---|---|"
    scenes: dict[str, Callable[[int], list[tuple[Tensor, Pose]]]] = {
        "30 poses": lambda seed: [(contents([seed])[0], random_pose(torch.Generator().manual_seed(seed)))],
        "at the edge": lambda seed: [(contents([seed])[0], Pose(complex(20 + 4 * seed, 440), 90, 25))],
        "two that overlap": lambda seed: [
            (contents([seed])[0], Pose(complex(240 + seed, 240), 110, -10)),
            (contents([seed + 30])[0], Pose(complex(380 - seed, 230), 80, 15)),
        ],
    }
    for name, place in scenes.items():
        for grain in (0.0, 4.0):
            for size, enlarged, detail in ((256, False, 1.0), (256, True, 1.0), (128, False, 0.0), (256, False, 0.0)):
                found, equal = [], 0
                for seed in range(30 if name == "30 poses" else 5):
                    people, poses = zip(*place(seed), strict=True)
                    photo = scene(torch.stack(people), poses, grain, seed)
                    points = [landmarks(*pair) for pair in zip(people, poses, strict=True)]
                    crops, frames = align_faces(photo, size, [points], face=None)
                    if enlarged:
                        crops = resize(resize(crops, size * 3 // 2), size)
                    result, mask = paste_faces(photo, crops, frames, PasteConfig(detail=detail))
                    found.append(psnr_inside(result, photo, mask))
                    equal += torch.equal(result.masked_fill(mask > 0, 0), photo.masked_fill(mask > 0, 0))
                crop, what = f"{size}{', enlarged' * enlarged}", "change" if detail else "crop"
                worst, mean = min(found), sum(found) / len(found)
                yield f"| {name} | {grain:g} | {crop} | {what} | {worst:.1f} | {mean:.1f} | {equal} of {len(found)} |"


def flicker(_: Path | None) -> Iterator[str]:
    yield "| edit | detail | smoothing 0 | smoothing 2 | smoothing 4 |"
    yield "|---|---|---|---|---|"
    person, pose, count = contents([19]), Pose(320 + 240j, 100, 8), 8
    clip = scene(person, [pose], plain=True).expand(count, -1, -1, -1)
    moved = jitter(landmarks(person[0], pose), count, 1.0, seed=1)
    aligned = [align_faces(clip, 64, [[one] for one in moved], smoothing=sigma) for sigma in (0.0, 2.0, 4.0)]
    fixed = aligned[2][0][:1].flip(1).expand(count, -1, -1, -1)
    generator = load_generator("portraits")
    adapted = zombies(generator)
    edits = {
        "fixed": [fixed for _ in aligned],
        "zombie": [adapted_faces(generator, adapted, crops)[0] for crops, _ in aligned],
    }
    for name, faces in edits.items():
        for detail in (1.0, 0.0):
            cells = []
            for edited, (_, frames) in zip(faces, aligned, strict=True):
                result, mask = paste_faces(clip, edited, frames, PasteConfig(detail=detail))
                inside = mask.amax(0) > 0
                cells.append(f"{result.std(0)[inside.expand(3, -1, -1)].mean().item() * 127.5:.2f}")
            yield f"| {name} | {detail:g} | {' | '.join(cells)} |"


def picture(path: Path | None) -> Iterator[str]:
    people = contents([19, 22])
    for name in ("background_hue", "background_light"):
        people[:, ATTRIBUTES.index(name)] = people[0, ATTRIBUTES.index(name)]
    poses = [Pose(190 + 250j, 120, -12), Pose(450 + 230j, 105, 10)]
    photo = scene(people, poses, grain=2.0, plain=True)
    points = [landmarks(*pair) for pair in zip(people, poses, strict=True)]
    crops, frames = align_faces(photo, 64, [points], face=None)
    generator = load_generator("portraits")
    edited, psnr = adapted_faces(generator, zombies(generator), crops)
    result, _ = paste_faces(photo, edited, frames)
    yield f"Faces of 64 pixels, tuned to {min(psnr):.1f} dB and more."
    faces = torch.cat([torch.cat(list(images), 1) for images in (crops, edited)], 2)
    faces = F.interpolate(faces[None], (HEIGHT, HEIGHT), mode="nearest")
    if path:
        to_pil(torch.cat([photo, faces, result], 3)).save(path, quality=90)


def zombies(source: Generator) -> Generator:
    guides = [(load_guide(name), weight) for name, weight in GUIDES]
    return adapt(source, guides, TextShift(SOURCE, "zombie"), replace(RECIPE, steps=STEPS)).generator


def adapted_faces(source: Generator, adapted: Generator, crops: Tensor) -> tuple[Tensor, list[float]]:
    """Invert crops, tune the generator once for all, and draw them with the adapted one; and the PSNR of the tuning."""
    face_network = load_identity("portraits")
    latents: Latents = invert(
        source, crops, replace(INVERT, steps=STEPS, batch=len(crops)), identity=face_network
    ).latents
    tuned = tune(source, crops, latents, replace(TUNE, steps=STEPS, batch=len(crops)), identity=face_network)
    return draw(tuned.domain.apply(adapted), latents), tuned.psnr


TABLES: dict[str, Callable[[Path | None], Iterator[str]]] = {
    "identity": identity,
    "flicker": flicker,
    "picture": picture,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paste", description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--out", type=Path, help="JPEG of the picture: a photo, its faces, and the result")
    args = parser.parse_args()
    if unknown := [name for name in args.tables if name not in TABLES]:
        parser.error(f"got {', '.join(unknown)}; expected {', '.join(TABLES)}")
    torch.set_num_threads(1)
    for name in args.tables or TABLES:
        sys.stdout.write(f"\n{name}\n\n")
        for line in TABLES[name](args.out):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
