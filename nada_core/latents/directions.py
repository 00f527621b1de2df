"""Directions of W+ along which pictures change in one way, found in several manners, and edits along them.

`sefa`: SeFa (Shen and Zhou, arXiv:2007.06600, section 3). `principal`: GANSpace (Härkönen et al., arXiv:2004.02546,
section 3.1). `boundary`: InterFaceGAN (Shen et al., arXiv:1907.10786, section 2). An adaptation leaves the mapping
network alone, so a direction means the same to a generator and to those adapted from it.

Our files are safetensors: `vectors`, `scale`, and as metadata `kind`, `version`, `space` and, in JSON, `names` and a
free `provenance`.

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
from ..models.generator import Generator, same_space
from .foreign_directions import read_foreign_directions
from .sampling import Latents

KIND = "nada_directions"

VERSION = 1

_SAMPLES = 10_000  # from which the spread of w along a direction is measured


@dataclass(frozen=True, eq=False)
class Directions:
    """K directions of W+.

    vectors: [K, 1, C], the same for all rows, or [K, L, C], on the CPU. scale: [K], how far one unit of strength goes,
    in lengths of the vector; one standard deviation of w where that is known. names: K different ones. space: the
    fingerprint of the mapping network, "" if unknown. Raises ValueError for anything else. directions[2],
    directions[2:5] and directions["smile"] are directions again.
    """

    vectors: Tensor
    scale: Tensor
    names: tuple[str, ...]
    space: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3 or not self.vectors.numel():
            raise ValueError(f"Got vectors of shape {list(self.vectors.shape)}, expected [K, 1, C] or [K, L, C].")
        if self.scale.shape != self.vectors.shape[:1] or not len(self) == len(self.names) == len(set(self.names)):
            raise ValueError(
                f"Got {len(self)} vectors, a scale of shape {list(self.scale.shape)} and the names "
                f"{', '.join(self.names)}, expected a number and a name of its own for each vector."
            )
        if not self.vectors.isfinite().all() or not self.scale.isfinite().all():
            raise ValueError("Got directions with NaN or infinity in them, expected finite numbers; make them anew.")

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int | slice | str) -> Directions:
        """One direction or a slice of them. Raises IndexError beyond the ends, ValueError for an unknown name and for a
        slice without any."""
        if isinstance(index, str):
            if index not in self.names:
                raise ValueError(f"Got the direction {index!r}, expected one of {', '.join(self.names)}.")
            index = self.names.index(index)
        chosen = range(len(self))[index]
        rows = [chosen] if isinstance(chosen, int) else list(chosen)
        if not rows:
            raise ValueError(f"Got the slice {index} of {len(self)} directions, which is empty, expected at least one.")
        return replace(
            self, vectors=self.vectors[rows], scale=self.scale[rows], names=tuple(self.names[row] for row in rows)
        )


def chosen(directions: Directions, text: str) -> Directions:
    """One direction by what a person types: its name, or its number, counted from 0. Raises ValueError for another."""
    name = text.strip()
    if name in directions.names:
        return directions[name]
    if not name.isdecimal() or int(name) >= len(directions):
        raise ValueError(
            f"Got the direction {text!r}, expected a number from 0 to {len(directions) - 1}, or one of "
            f"{', '.join(directions.names)}."
        )
    return directions[int(name)]


def edit(
    latents: Latents, direction: Directions, strength: float | Sequence[float], layers: tuple[int, int] | None = None
) -> Latents:
    """Latents moved along one direction: ws + strength * scale * vector; the noise stays.

    strength: any finite number, as a rule from -3 to 3 standard deviations, or one a row, [L]. layers: the first row
    that is moved and the one after the last, as in range(); None moves all. Early rows steer pose and shape, late ones
    colour. Raises ValueError for more than one direction, directions of another mapping network or size, rows that are
    not there and strengths that are not finite.
    """
    if len(direction) != 1:
        raise ValueError(f"Got {len(direction)} directions, expected one: take directions[0] or directions[name].")
    if not same_space(latents.space, direction.space):
        raise ValueError(
            f"This direction belongs to another mapping network (space {direction.space[:12]}) than the "
            f"latents ({latents.space[:12]}); find it anew for the generator they come from."
        )
    rows, width = latents.ws.shape[1:]
    if direction.vectors.shape[1] not in (1, rows) or direction.vectors.shape[2] != width:
        raise ValueError(
            f"Got a direction of {list(direction.vectors.shape[1:])} rows and columns, expected "
            f"[1, {width}] or [{rows}, {width}], which is what the latents have."
        )
    strengths = torch.as_tensor(strength, dtype=torch.float64)
    if strengths.shape not in ((), (rows,)) or not strengths.isfinite().all():
        raise ValueError(f"Got strength {strength!r:.80}, expected a finite number, or {rows} of them, one a row.")
    vector = direction.vectors[0].to(latents.ws) * direction.scale.to(latents.ws)  # [1 or L, C]
    moved = latents.ws.clone()
    kept = _mask(layers, rows)
    moved[:, kept] += (strengths.expand(rows)[:, None].to(latents.ws) * vector.expand(rows, -1))[kept]
    return replace(latents, ws=moved)


def sefa(generator: Generator, count: int = 10, layers: tuple[int, int] | None = None) -> Directions:
    """The directions of w to which the styles answer most (SeFa), the strongest first.

    Eigenvectors of the sum of a a^T over all styles, a [C] being what a style's affine layer multiplies w by, scaled to
    length 1, as the authors' code does and their equation does not: else layers with large weights would decide alone.
    The styles are those of the convolutions and of the last ToRGB. layers: the rows whose styles are asked, first and
    one after the last; the directions then move these rows only. Raises ValueError for rows that are not there, a count
    that w has no room for, and generators without affine layers.
    """
    kept = _mask(layers, generator.num_ws)
    parameters = dict(generator.named_parameters())
    asked: dict[int, Tensor] = {}  # a row's convolution comes before the ToRGB that shares the row
    for layer in sorted(generator.layers(), key=lambda layer: layer.kind == "rgb"):
        names = [name for name in layer.parameters if name.endswith("affine.weight")]
        if names and layer.w_index is not None and kept[layer.w_index]:
            asked.setdefault(layer.w_index, parameters[names[0]])
    if not asked:
        raise ValueError(
            f"Got a {generator.family} generator without affine layers, expected StyleGAN2; principal needs none."
        )
    styles = F.normalize(torch.cat([weight.detach().cpu().double() for weight in asked.values()]), dim=1)  # [S, C]
    return _strongest("sefa", generator, styles.T @ styles, count, kept, _draw(generator, _SAMPLES, 0))


def principal(
    generator: Generator, count: int = 10, samples: int = _SAMPLES, seed: int = 0, layers: tuple[int, int] | None = None
) -> Directions:
    """The directions in which w varies most (GANSpace), the strongest first.

    samples, seed: of the latents they are found from; at least twice as many as w is wide. layers: the rows they move,
    first and one after the last; None: all. Raises ValueError for rows that are not there, and a count or a number of
    samples that does not fit.
    """
    kept = _mask(layers, generator.num_ws)
    if samples < 2 * generator.w_dim:
        raise ValueError(f"Got {samples} samples, expected at least {2 * generator.w_dim}, twice the width of w.")
    w = _draw(generator, samples, seed)
    return _strongest("pca", generator, torch.cov(w.T), count, kept, w)


def boundary(latents: Latents, scores: Sequence[float] | Tensor, name: str) -> Directions:
    """The normal of the plane that separates latents with high scores from those with low ones (InterFaceGAN), by
    logistic regression instead of a support vector machine.

    scores: [N], of any unit; above their mean is high. Rows are averaged, and the direction is the same for all. One
    unit of strength is one standard deviation of these latents along it. Raises ValueError for fewer than 20 latents,
    and scores of another number, not finite, or all the same.
    """
    given = torch.as_tensor(scores, dtype=torch.float64)
    if len(latents) < 20 or given.shape != (len(latents),) or not given.isfinite().all() or given.min() == given.max():
        raise ValueError(
            f"Got {len(latents)} latents and scores of shape {list(given.shape)}, expected at least 20 "
            "and a finite score for each, not all the same; sample more and score them."
        )
    high = (given > given.mean()).double()
    w = latents.ws.double().mean(1)  # [N, C]
    spread = w.std(0).clamp(min=1e-8)
    x = torch.cat([(w - w.mean(0)) / spread, torch.ones(len(w), 1, dtype=torch.float64)], 1)
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(20):  # Newton's method; the ridge of 1 keeps separable groups from weights without end
        p = (x @ weights).sigmoid()
        curve = (x * (p * (1 - p))[:, None]).T @ x + torch.eye(x.shape[1], dtype=torch.float64)
        weights = weights + torch.linalg.solve(curve, x.T @ (high - p) - weights)
    vector = F.normalize(weights[:-1] / spread, dim=0)
    return Directions(vector.float()[None, None], (w @ vector).std()[None].float(), (name,), latents.space)


def save_directions(directions: Directions, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write directions; reading gives them back bit for bit. provenance: JSON-ready and free."""
    write_safetensors(
        path,
        {"vectors": directions.vectors, "scale": directions.scale},
        {
            "kind": KIND,
            "version": VERSION,
            "space": directions.space,
            "names": directions.names,
            "provenance": dict(provenance or {}),
        },
    )


def load_directions(path: str | Path, generator: Generator | None = None) -> Directions:
    """What `save_directions` wrote, or directions of another program, for which the generator must be given.

    Of others, InterFaceGAN's boundaries (.npy or .pt; one unit of strength is their own length), GANSpace's components
    (.npz or .pt; one unit is a standard deviation; its own edits set a coordinate, these add to it), rosinality's
    factors and directions of W+ are read, see `read_foreign_directions`.
    Such a file does not say for which generator it was made; it is taken to be for the one given.

    Raises:
        CheckpointError: for files that are missing, damaged, hold NaN or no directions, or ones of a size that the
            generator does not have.
        ValueError: for directions of another generator, and for a foreign file without a generator.
    """
    raw = read_checkpoint(path)
    if raw.container != "safetensors" or raw.hints.get("kind") != KIND:
        found = _foreign(path, raw, generator)
    else:
        description = read_description(path, raw.hints, VERSION, "names")
        try:
            names = tuple(map(str, description["names"]))
            found = Directions(raw.tensors["vectors"], raw.tensors["scale"], names, description["space"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCheckpointError(
                f"{path}: directions that are not whole ({type(error).__name__}: {error}). "
                "The file was changed; copy it again."
            ) from error
    if generator is None:
        return found
    if not generator.accepts(found.space):
        raise ValueError(
            f"{path}: directions of another generator (space {found.space[:12]}, this one is "
            f"{generator.space()[:12]}); load the one they were made for, or one adapted from it."
        )
    if found.vectors.shape[1] not in (1, generator.num_ws) or found.vectors.shape[2] != generator.w_dim:
        raise UnsupportedCheckpointError(
            f"{path}: directions of {list(found.vectors.shape[1:])} rows and columns, "
            f"expected [1, {generator.w_dim}] or [{generator.num_ws}, {generator.w_dim}] "
            "for this generator; load the one they were made for."
        )
    return replace(found, space=found.space and generator.space())  # a file of 0.1.0 has another fingerprint


def _foreign(path: str | Path, raw: RawCheckpoint, generator: Generator | None) -> Directions:
    if generator is None:
        raise ValueError(
            f"{path}: not written by save_directions; if these are directions of another program, pass "
            "the generator they belong to, for the file does not say."
        )
    vectors, scale = read_foreign_directions(path, raw, generator)
    stem = Path(path).stem
    names = (stem,) if len(vectors) == 1 else tuple(f"{stem} {index}" for index in range(len(vectors)))
    try:
        return Directions(vectors, scale, names, generator.space())
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error


def _mask(layers: tuple[int, int] | None, rows: int) -> Tensor:
    """Which rows are meant, bool [L]."""
    first, last = (0, rows) if layers is None else layers
    if not 0 <= first < last <= rows:
        raise ValueError(
            f"Got rows {first} to {last}, expected 0 <= first < last <= {rows}, which is how many rows "
            "there are; the last is not included."
        )
    index = torch.arange(rows)
    return (index >= first) & (index < last)


@torch.no_grad()
def _draw(generator: Generator, count: int, seed: int) -> Tensor:
    """w [N, C] of random latents, in float64 on the CPU; of a conditional generator, random classes."""
    rng = torch.Generator().manual_seed(seed)
    device = generator.w_avg.device
    z = torch.randn(count, generator.z_dim, generator=rng).to(device)
    label = None
    if generator.c_dim:
        label = F.one_hot(torch.randint(generator.c_dim, (count,), generator=rng), generator.c_dim).float().to(device)
    return generator.map(z, label)[:, 0].cpu().double()


def _strongest(name: str, generator: Generator, matrix: Tensor, count: int, kept: Tensor, w: Tensor) -> Directions:
    """The eigenvectors of a symmetric matrix [C, C] with the largest eigenvalues, as directions for the kept rows [L],
    scaled by the spread of w [N, C] along them."""
    if not 1 <= count <= generator.w_dim:
        raise ValueError(f"Got a count of {count} directions, expected 1 to {generator.w_dim}, the width of w.")
    vectors = torch.linalg.eigh(matrix).eigenvectors.T.flip(0)[:count]  # [K, C]; eigenvalues come in ascending order
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector's sign is arbitrary: its largest entry shall be positive
    whole = vectors[:, None] if kept.all() else vectors[:, None] * kept[:, None]
    names = tuple(f"{name} {index}" for index in range(count))
    return Directions(whole.float(), (w @ vectors.T).std(0).float(), names, generator.space())
