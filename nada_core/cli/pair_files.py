"""A folder of pairs: edited images in the order of their names, and the latents they belong to."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ..io.images import load_image
from ..latents.sampling import Latents, load_latents
from ..models.generator import Generator

LATENTS = "latents.safetensors"
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_pairs(folder: str | Path, generator: Generator) -> tuple[Latents, Tensor]:
    """Read the latents and the images [N, C, H, W] of a folder.

    Raises:
        ValueError: when the folder, its latents or images are missing, and when the images differ in size.
        CheckpointError: when the latents cannot be read or belong to another generator.
    """
    path = Path(folder)
    names = sorted((one for one in path.glob("*") if one.suffix.lower() in _IMAGES), key=_natural)
    found = "a" if (path / LATENTS).is_file() else "no"
    if found == "no" or not names:
        raise ValueError(
            f"{path} has {len(names)} images and {found} {LATENTS}, expected both; `sample --separate` writes them."
        )
    latents = load_latents(path / LATENTS, generator)
    images = [load_image(name)[:, :3] for name in names]
    sizes = {f"{image.shape[-1]} x {image.shape[-2]}": name.name for image, name in zip(images, names, strict=True)}
    if len(sizes) > 1:
        shown = ", ".join(f"{size} ({name})" for size, name in list(sizes.items())[:2])
        raise ValueError(f"The images in {path} differ in size: {shown}; make them equal.")
    return latents, torch.cat([image.expand(-1, 3, -1, -1) for image in images])


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
