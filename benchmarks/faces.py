"""Measure the face detector on annotated photos.

    python -m benchmarks.faces FOLDER

FOLDER has photos, and XML files in the format of dlib's imglab with 68 landmarks for each face, such as
`examples/faces` in the source of dlib. Photos: as they are, or changed. Found: faces of the annotation with a detection
whose points are off by less than half the distance between the eyes. Others: detections that match no face of the
annotation. Error: mean distance of the five points (centers of the eyes, nose, corners of the mouth) from the
annotation, in percent of the distance between the eyes.
"""

from __future__ import annotations

import argparse
import cmath
import math
import statistics
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from nada_core import FacePoints
from nada_core.io.images import from_pil
from nada_core.latents.face_detection import find_faces

Face = list[complex]  # left eye, right eye, nose, left and right mouth corner

_PARTS = (range(36, 42), range(42, 48), (30,), (48,), (54,))  # of the 68 landmarks
_MATCH = 0.5  # of the distance between the eyes
_TURNS = (15, 30, 45, -15, -30, -45)  # degrees, counterclockwise
_HEADER = "| photos | faces | found | others | error, median (%) | error, maximum (%) |\n|---|---|---|---|---|---|\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    errors: dict[str, list[float]] = defaultdict(list)
    for path, faces in annotated(parser.parse_args().folder):
        for name, photo, expected in variants(Image.open(path).convert("RGB"), faces):
            result = find_faces(from_pil(photo))
            matched = compare(result, expected)
            errors[name] += matched
            counts[name][0] += len(expected)
            counts[name][1] += len(result) - len(matched)
    sys.stdout.write(_HEADER)
    for name, (total, others) in counts.items():
        shares = [100 * error for error in errors[name]] or [math.nan]
        row = (name, total, len(errors[name]), others, f"{statistics.median(shares):.1f}", f"{max(shares):.1f}")
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")


def annotated(folder: Path) -> Iterator[tuple[Path, list[Face]]]:
    """The photos of a folder and the faces that its XML files give 68 landmarks for."""
    for file in sorted(folder.glob("*.xml")):
        for image in ElementTree.parse(file).iter("image"):
            marks = [[complex(int(p.get("x", 0)), int(p.get("y", 0))) for p in box.iter("part")] for box in image]
            faces = [[sum(all68[i] for i in part) / len(part) for part in _PARTS] for all68 in marks if all68]
            if faces:
                yield file.with_name(image.get("file", "")), faces


def variants(photo: Image.Image, faces: list[Face]) -> Iterator[tuple[str, Image.Image, list[Face]]]:
    """The photo and changed copies: name, image, and where the faces are in it."""
    yield "as they are", photo, faces
    yield "gray", photo.convert("L").convert("RGB"), faces
    yield "a quarter of the brightness", photo.point(lambda value: value // 4), faces
    yield "brightened, clipped", photo.point(lambda value: min(255, value * 2)), faces
    for factor in (0.5, 3):
        size = round(photo.width * factor), round(photo.height * factor)
        scaled = [[(z + 0.5 + 0.5j) * factor - 0.5 - 0.5j for z in face] for face in faces]
        yield f"{factor:g} times the size", photo.resize(size, Image.Resampling.LANCZOS), scaled
    middle = complex(photo.width - 1, photo.height - 1) / 2
    for degrees in _TURNS:
        turned = photo.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        center, turn = complex(turned.width - 1, turned.height - 1) / 2, cmath.rect(1, -math.radians(degrees))
        yield f"turned by {degrees:+} degrees", turned, [[center + (z - middle) * turn for z in face] for face in faces]


def compare(result: Sequence[FacePoints], expected: Sequence[Face]) -> list[float]:
    """The errors of the faces that were found, as a share of the distance between the eyes."""
    detections = [[complex(*point) for point in vars(face).values()] for face in result]
    errors = []
    for face in expected:
        distances = [statistics.mean(abs(a - b) for a, b in zip(face, one, strict=True)) for one in detections]
        if distances and min(distances) < _MATCH * abs(face[1] - face[0]):
            index = distances.index(min(distances))
            errors.append(distances[index] / abs(face[1] - face[0]))
            del detections[index]
    return errors


if __name__ == "__main__":
    main()
