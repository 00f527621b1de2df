"""Semantic directions of W+: find them, edit latents along them, save and load them.

`sefa`: SeFa (Shen and Zhou, arXiv:2007.06600, section 3). `principal`: GANSpace (Härkönen et al., arXiv:2004.02546,
section 3.1). `boundary`: InterFaceGAN (Shen et al., arXiv:1907.10786, section 2). An adaptation keeps the mapping
network, so a direction also works on the generators adapted from its own.

A file of directions is a safetensors file with `vectors`, `scale`, and the metadata `kind`, `version`, `space`, `names`
and `provenance` (both JSON).

Letters: N latents, L rows of W+, C width of a row, K directions, S styles (channels that a layer modulates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint, read_checkpoint
from ..io.errors import DamagedCheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_description, write_safetensors
from ..models.generator import Generator, check_space, same_space
from ..runtime.seeds import seeded
from .foreign_directions import read_foreign_directions
from .sampling import Latents, row_slice

KIND = "nada_directions"
VERSION = 1

_SAMPLES = 10_000  # random latents that the spread of w along a direction is measured on


@dataclass(frozen=True, eq=False)
class Directions:
    """K directions of W+. `directions[2]`, `directions[2:5]` and `directions["smile"]` are directions too."""

    vectors: Tensor  # [K, 1, C], the same for all rows, or [K, L, C], on the CPU
    scale: Tensor  # [K], vector lengths per unit of strength; a standard deviation of w where that is known
    names: tuple[str, ...]
    space: str = ""  # fingerprint of the mapping network, "" if unknown

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3 or not self.vectors.numel():
            raise ValueError(f"Got vectors of shape {list(self.vectors.shape)}, expected [K, 1, C] or [K, L, C].")
        if self.scale.shape != self.vectors.shape[:1] or not len(self) == len(self.names) == len(set(self.names)):
            got = (
                f"{len(self)} vectors, a scale of shape {list(self.scale.shape)} and the names {', '.join(self.names)}"
            )
            raise ValueError(f"Got {got}, expected a number and a unique name for each vector.")
        if not self.vectors.isfinite().all() or not self.scale.isfinite().all():
            raise ValueError("Got directions with NaN or infinity, expected finite numbers.")

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int | slice | str) -> Directions:
        if isinstance(index, str):
            if index not in self.names:
                raise ValueError(f"Got the direction {index!r}, expected one of {', '.join(self.names)}.")
            index = self.names.index(index)
        rows = range(len(self))[index]
        chosen = [rows] if isinstance(rows, int) else list(rows)
        if not chosen:
            raise ValueError(f"Got the slice {index} of {len(self)} directions, which is empty, expected at least one.")
        names = tuple(self.names[row] for row in chosen)
        return replace(self, vectors=self.vectors[chosen], scale=self.scale[chosen], names=names)


def parse_direction(directions: Directions, text: str) -> Directions:
    """Return the direction with this name or number, counted from 0. Raises ValueError if there is none."""
    name = text.strip()
    if name in directions.names:
        return directions[name]
    if not name.isdecimal() or int(name) >= len(directions):
        expected = f"a number from 0 to {len(directions) - 1}, or one of {', '.join(directions.names)}"
        raise ValueError(f"Got the direction {text!r}, expected {expected}.")
    return directions[int(name)]


def edit(
    latents: Latents, direction: Directions, strength: float | Sequence[float], layers: tuple[int, int] | None = None
) -> Latents:
    """Move latents along one direction: ws + strength * scale * vector. Noise maps are kept.

    Args:
        strength: usually -3 to 3 standard deviations, for all rows or one per row, [L].
        layers: first row that moves and the one after the last; None means all. Early rows set pose and shape, late
            rows color.

    Raises:
        ValueError: for several directions, and for another mapping network or size.
    """
    if len(direction) != 1:
        raise ValueError(f"Got {len(direction)} directions, expected one: take directions[0] or directions[name].")
    if not same_space(latents.space, direction.space):
        spaces = f"space {direction.space[:12]}, the latents' is {latents.space[:12]}"
        raise ValueError(f"This direction belongs to another mapping network ({spaces}); find one for theirs.")
    count, width = latents.ws.shape[1:]
    if direction.vectors.shape[1] not in (1, count) or direction.vectors.shape[2] != width:
        size = list(direction.vectors.shape[1:])
        raise ValueError(f"Got a direction of {size} rows and columns, expected [1, {width}] or [{count}, {width}].")
    strengths = torch.as_tensor(strength, dtype=torch.float64)
    if strengths.shape not in ((), (count,)) or not strengths.isfinite().all():
        raise ValueError(f"Got strength {strength!r:.80}, expected a finite number, or {count} of them, one per row.")
    rows = row_slice(layers, count)
    vector = direction.vectors[0].to(latents.ws) * direction.scale.to(latents.ws)  # [1 or L, C]
    ws = latents.ws.clone()
    ws[:, rows] += (strengths.expand(count)[:, None].to(ws) * vector.expand(count, -1))[rows]
    return replace(latents, ws=ws)


def sefa(generator: Generator, count: int = 10, layers: tuple[int, int] | None = None) -> Directions:
    """Find the directions of w that change the styles most (SeFa), the strongest first.

    They are the eigenvectors of the sum of a a^T over all styles, where a [C] is the row of a style's affine layer,
    normalized as in the authors' code, so layers with large weights do not dominate. The styles are those of the
    convolutions and of the last ToRGB.

    Args:
        layers: rows whose styles count and which the directions move, first and one after the last; None means all.

    Raises:
        ValueError: for more directions than w is wide, and generators without affine layers.
    """
    rows = row_slice(layers, generator.num_ws)
    parameters = dict(generator.named_parameters())
    affines: dict[int, Tensor] = {}  # of a row's convolution rather than of the ToRGB that shares the row
    for layer in sorted(generator.layers(), key=lambda layer: layer.kind == "rgb"):
        names = [name for name in layer.parameters if name.endswith("affine.weight")]
        if names and layer.w_index is not None and rows.start <= layer.w_index < rows.stop:
            affines.setdefault(layer.w_index, parameters[names[0]])
    if not affines:
        raise ValueError(
            f"Got a {generator.family} generator without affine layers, expected StyleGAN2; use principal."
        )
    styles = F.normalize(torch.cat([weight.detach().cpu().double() for weight in affines.values()]), dim=1)  # [S, C]
    return _eigenvectors("sefa", generator, styles.T @ styles, count, rows, _sample_w(generator, _SAMPLES, 0))


def principal(
    generator: Generator, count: int = 10, samples: int = _SAMPLES, seed: int = 0, layers: tuple[int, int] | None = None
) -> Directions:
    """Find the principal components of w (GANSpace), the strongest first.

    Args:
        samples: random latents that they are computed from, at least twice the width of w.
        layers: rows that the directions move, first and one after the last; None means all.
    """
    rows = row_slice(layers, generator.num_ws)
    if samples < 2 * generator.w_dim:
        raise ValueError(f"Got {samples} samples, expected at least {2 * generator.w_dim}, twice the width of w.")
    w = _sample_w(generator, samples, seed)
    return _eigenvectors("pca", generator, torch.cov(w.T), count, rows, w)


def boundary(latents: Latents, scores: Sequence[float] | Tensor, name: str) -> Directions:
    """Find the normal of the plane that separates high from low scores (InterFaceGAN), by logistic regression.

    Rows are averaged, and the direction is the same for all. One unit of strength is a standard deviation of these
    latents along it.

    Args:
        latents: at least 20.
        scores: [N], in any unit, not all equal; above their mean is high.
    """
    values = torch.as_tensor(scores, dtype=torch.float64)
    valid = values.shape == (len(latents),) and values.isfinite().all() and values.min() < values.max()
    if len(latents) < 20 or not valid:
        got = f"{len(latents)} latents and scores of shape {list(values.shape)}"
        raise ValueError(f"Got {got}, expected at least 20 and a finite score for each, not all the same.")
    high = (values > values.mean()).double()
    w = latents.ws.double().mean(1)  # [N, C]
    spread = w.std(0).clamp(min=1e-8)
    x = torch.cat([(w - w.mean(0)) / spread, torch.ones(len(w), 1, dtype=torch.float64)], 1)
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(20):  # Newton's method; the ridge of 1 bounds the weights of separable groups
        p = (x @ weights).sigmoid()
        hessian = (x * (p * (1 - p))[:, None]).T @ x + torch.eye(x.shape[1], dtype=torch.float64)
        weights = weights + torch.linalg.solve(hessian, x.T @ (high - p) - weights)
    vector = F.normalize(weights[:-1] / spread, dim=0)
    return Directions(vector.float()[None, None], (w @ vector).std()[None].float(), (name,), latents.space)


def save_directions(directions: Directions, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Save directions, bit-exact, with JSON-serializable provenance."""
    description = {"kind": KIND, "version": VERSION, "space": directions.space, "names": directions.names}
    tensors = {"vectors": directions.vectors, "scale": directions.scale}
    write_safetensors(path, tensors, {**description, "provenance": dict(provenance or {})})


def load_directions(path: str | Path, generator: Generator | None = None) -> Directions:
    """Load directions that `save_directions` or another program wrote.

    Files of other programs hold InterFaceGAN's boundaries (one unit of strength is their length), GANSpace's components
    (one unit is a standard deviation, added instead of set as there), rosinality's factors, or directions of W+; see
    `read_foreign_directions`. They do not name their generator, so `generator` is required and assumed to be theirs.

    Raises:
        CheckpointError: for files that are missing or damaged, hold NaN or no directions, or directions of a size that
            the generator does not have.
        ValueError: for directions of another generator, and for a foreign file without a generator.
    """
    raw = read_checkpoint(path)
    directions = _from_our_file(path, raw) if raw.kind == KIND else _from_foreign_file(path, raw, generator)
    if generator is None:
        return directions
    check_space(f"The directions in {path}", directions.space, generator)
    shape = directions.vectors.shape[1:]
    if shape[0] not in (1, generator.num_ws) or shape[1] != generator.w_dim:
        raise UnsupportedCheckpointError(
            f"{path}: directions of {list(shape)} rows and columns, expected [1, {generator.w_dim}] or "
            f"[{generator.num_ws}, {generator.w_dim}] for this generator; load the one they were made for."
        )
    return replace(directions, space=directions.space and generator.space())  # 0.1.0 had other fingerprints


def _from_our_file(path: str | Path, raw: RawCheckpoint) -> Directions:
    description = read_description(path, raw.hints, VERSION, "names")
    try:
        names = tuple(map(str, description["names"]))
        return Directions(raw.tensors["vectors"], raw.tensors["scale"], names, description["space"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DamagedCheckpointError(f"{path}: incomplete directions ({problem}). Copy the file again.") from error


def _from_foreign_file(path: str | Path, raw: RawCheckpoint, generator: Generator | None) -> Directions:
    if generator is None:
        raise ValueError(f"{path}: not written by this package; a file of another program also needs its generator.")
    vectors, scale = read_foreign_directions(path, raw, generator)
    stem = Path(path).stem
    names = (stem,) if len(vectors) == 1 else tuple(f"{stem} {index}" for index in range(len(vectors)))
    try:
        return Directions(vectors, scale, names, generator.space())
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error


@torch.no_grad()
def _sample_w(generator: Generator, count: int, seed: int) -> Tensor:
    """Sample w [N, C] in float64 on the CPU; random classes for a conditional generator."""
    rng = seeded(seed)
    device = generator.w_avg.device
    z = torch.randn(count, generator.z_dim, generator=rng).to(device)
    label = None
    if generator.c_dim:
        label = F.one_hot(torch.randint(generator.c_dim, (count,), generator=rng), generator.c_dim).float().to(device)
    return generator.map(z, label)[:, 0].cpu().double()


def _eigenvectors(name: str, generator: Generator, matrix: Tensor, count: int, rows: slice, w: Tensor) -> Directions:
    """The first eigenvectors of a symmetric matrix [C, C], for some rows, and the spread of w [N, C] along them."""
    if not 1 <= count <= generator.w_dim:
        raise ValueError(f"Got a count of {count} directions, expected 1 to {generator.w_dim}, the width of w.")
    vectors = torch.linalg.eigh(matrix).eigenvectors.T.flip(0)[:count]  # [K, C]; eigenvalues come in ascending order
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()  # the sign of an eigenvector is arbitrary: make its largest entry positive
    scale = (w @ vectors.T).std(0).float()
    names = tuple(f"{name} {index}" for index in range(count))
    per_row = vectors[:, None].float()
    if rows != slice(0, generator.num_ws):
        per_row = per_row * torch.zeros(generator.num_ws, 1).index_fill(0, torch.arange(rows.start, rows.stop), 1.0)
    return Directions(per_row, scale, names, generator.space())
