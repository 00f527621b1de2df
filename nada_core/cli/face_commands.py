"""The commands for faces in photos: align, paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ..io.images import load_image, save_image
from ..latents.face_alignment import CUTS, align_faces
from ..latents.face_frame import FaceFrame, load_frames, save_frames
from ..latents.face_paste import PasteConfig, paste_faces
from ..latents.face_points import FacePoints
from . import report
from .arguments import Command, Positive, Text, flag, required
from .progress import output_path, prepare, say

Photos = Positional[Annotated[tuple[str, ...], arg(metavar="PHOTO", help="image files")]]


@dataclass(frozen=True, kw_only=True)
class ResultFlags(Command):
    """Flags of the commands that write one result."""

    out: str = required("the file or folder to write")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite an earlier result")


@dataclass(frozen=True, kw_only=True)
class Align(ResultFlags):
    """Cut a face out of a photo as the FFHQ data set was cut, and write it to OUT, a .png.

    Its position is written to a .json beside it, for `paste`. With --face -1 all faces are written: OUT-0.png, ...

    example:
      python -m nada_core align photo.jpg --out face.png --points '120,150 180,150 125,220 175,220'
    """

    photo: Positional[str] = required("an image file")
    size: Positive = flag(1024, "pixels a side")
    points: Text = flag(
        None,
        "left eye, right eye, [nose,] left and right mouth corner, as x,y in pixels; several faces separated by a "
        "slash; default: found by mtcnn-runtime",
    )
    face: int = flag(0, "which face: 0 is the largest; -1: all")
    middle: FlagCreatePairsOff[bool] = flag(False, "if no face is found, take the middle square")

    def run(self) -> None:
        path = output_path(self.out, ".png")
        position = path.with_suffix(".json")
        prepare(path, position, force=self.force)
        faces = FacePoints.parse_all(self.points) if self.points else None
        index = None if self.face == -1 else 0 if faces and len(faces) == 1 else self.face
        points = [faces] if faces else None
        crops, frames = align_faces(load_image(self.photo), self.size, points, index, CUTS[self.middle])
        paths = [path] if index is not None else [path.with_stem(f"{path.stem}-{i}") for i in range(len(crops))]
        prepare(*paths, force=self.force)
        files = [save_image(crop, name) for crop, name in zip(crops, paths, strict=True)]
        say(report.listing([*files, save_frames(frames, position)]))


@dataclass(frozen=True, kw_only=True)
class Paste(ResultFlags):
    """Paste edited faces back into the photo that they were cut from, and write it to OUT, a .png.

    Pixels outside of the pasted region do not change. Give as many faces as the .json of `align` has, in its order.

    example:
      python -m nada_core align photo.jpg --out face.png
      python -m nada_core paste photo.jpg edited.png --frames face.json --out result.png
    """

    photo: Positional[str] = required("the image file that was aligned")
    faces: Positional[Annotated[tuple[str, ...], arg(metavar="FACE", help="edited faces, of any size")]]
    frames: str = required("the .json file that `align` wrote")
    config: Annotated[PasteConfig, arg(name="paste")] = PasteConfig()

    def run(self) -> None:
        path = output_path(self.out, ".png")
        prepare(path, force=self.force)
        frames = load_frames(self.frames)
        crops = [load_image(name, alpha=True) for name in self.faces]
        if len(crops) != len(frames):
            raise ValueError(f"Got {len(crops)} faces for the {len(frames)} of {self.frames}, expected as many.")
        shapes = {tuple(crop.shape[1:]) for crop in crops}
        if len(shapes) > 1:
            raise ValueError(f"Got faces of shapes {sorted(shapes)}, expected one size and the same channels.")
        say(report.listing([_paste_into(self.photo, torch.cat(crops), frames, path, self.config)]))


def align_photos(names: Sequence[str], size: int) -> tuple[Tensor, list[FaceFrame]]:
    """Cut the largest face out of every image file: [N, 3, size, size] and the frames."""
    aligned = [align_faces(load_image(name), size) for name in names]
    return torch.cat([crops for crops, _ in aligned]), [frames[0] for _, frames in aligned]


def pasted_paths(names: Sequence[str], labels: Sequence[str], folder: Path) -> list[Path]:
    """Where `paste_columns` writes: one file per photo and generator."""
    return [folder / f"{Path(name).stem}-{label}.png" for name in names for label in labels]


def paste_columns(
    names: Sequence[str], frames: Sequence[FaceFrame], columns: Mapping[str, Tensor], paths: Sequence[Path]
) -> list[Path]:
    """Paste the images [N, 3, R, R] of every generator into the photos that their faces were cut from."""
    crops = [images[index, None] for index in range(len(names)) for images in columns.values()]
    photos = [index for index in range(len(names)) for _ in columns]
    return [
        _paste_into(names[index], crop, [frames[index]], path)
        for index, crop, path in zip(photos, crops, paths, strict=True)
    ]


def _paste_into(
    name: str, crops: Tensor, frames: Sequence[FaceFrame], path: Path, config: PasteConfig | None = None
) -> Path:
    """Paste crops [N, C, S, S] into an image file; its transparency is kept."""
    photo, layers = load_image(name), load_image(name, alpha=True)
    pasted, mask = paste_faces(photo, crops, frames, config)
    colors = torch.where(mask > 0, layers[:, :3] + (pasted - photo), layers[:, :3])  # not those composed over white
    return save_image(torch.cat([colors, layers[:, 3:]], 1), path)
