"""Directions of other programs: InterFaceGAN boundaries, GANSpace components, rosinality's factors, W+ directions.

Such files differ in which axis counts the directions. It is read off the names in the file and the generator's sizes;
what both leave open is refused.

Letters: K directions, L rows of W+, C width of a row.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint
from ..io.errors import UnsupportedCheckpointError
from ..models.generator import Generator


def read_foreign_directions(path: str | Path, raw: RawCheckpoint, generator: Generator) -> tuple[Tensor, Tensor]:
    """Read vectors [K, 1 or L, C] and their scale [K].

    - `comp` and `std`, `lat_comp` and `lat_stdev` (GANSpace): [K, C] or [K, 1, C], one unit is a standard deviation;
    - `eigvec` (rosinality's closed_form_factorization.py): [C, K], a direction per column;
    - a single array (InterFaceGAN and others): [C], [K, C], [C, K], [L, C], [L * C], [K, 1, C] or [K, L, C].

    Raises:
        UnsupportedCheckpointError: for other arrays, other sizes, and sizes that can be read in two ways.
    """
    arrays = {name: value.float() for name, value in raw.tensors.items() if value.is_floating_point()}
    named = {name.rpartition(".")[2]: value for name, value in arrays.items()}
    scale = named.get("lat_stdev", named.get("std"))
    components = named.get("lat_comp", named.get("comp"))
    try:
        if components is not None:
            vectors = _rows(components, generator)
            return vectors, torch.ones(len(vectors)) if scale is None else scale.flatten()
        if "eigvec" in named:
            vectors = _columns(named["eigvec"], generator)
        elif len(arrays) == 1 and scale is None:
            vectors = _single_array(next(iter(arrays.values())), generator)
        else:
            raise UnsupportedCheckpointError(
                f"no directions that are known; the file holds {sorted(raw.tensors)[:6]}. Expected a single array, "
                "comp and std, or eigvec."
            )
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"{path}: {error}") from error
    return vectors, torch.ones(len(vectors))


def _rows(value: Tensor, generator: Generator) -> Tensor:
    """[K, C], [K, 1, C] or [K, L, C] -> [K, 1 or L, C]."""
    vectors = value[:, None] if value.ndim == 2 else value
    if vectors.ndim != 3 or vectors.shape[1] not in (1, generator.num_ws) or vectors.shape[2] != generator.w_dim:
        raise _refusal(value, generator)
    return vectors


def _columns(value: Tensor, generator: Generator) -> Tensor:
    """[C, K] -> [K, 1, C]."""
    if value.ndim != 2 or len(value) != generator.w_dim:
        raise _refusal(value, generator)
    return value.T[:, None].contiguous()


def _single_array(value: Tensor, generator: Generator) -> Tensor:
    """An array without a name that tells its axes -> [K, 1 or L, C]."""
    rows, width = generator.num_ws, generator.w_dim
    size = tuple(value.shape)
    if size == (width,):
        return value.reshape(1, 1, width)
    if size in ((rows * width,), (1, rows * width)):
        return value.reshape(1, rows, width)
    if len(size) != 2:
        if size == (rows, 1, width):
            raise _ambiguity(value, f"{rows} directions of w", "one direction of W+")
        return _rows(value, generator)
    if size == (width, width):
        raise _ambiguity(value, "a direction per row", "a direction per column")
    if size == (rows, width):
        return value[None]
    if size == (width, rows):
        raise _ambiguity(value, f"{rows} directions of w, one per column", "one direction of W+, transposed")
    return _columns(value, generator) if size[0] == width else _rows(value, generator)


def _ambiguity(value: Tensor, first: str, second: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        f"an array of shape {list(value.shape)} can be {first}, or {second}. Save the directions that are meant as "
        "[K, 1, C], or a single one as [1, L, C]."
    )


def _refusal(value: Tensor, generator: Generator) -> UnsupportedCheckpointError:
    rows, width = generator.num_ws, generator.w_dim
    return UnsupportedCheckpointError(
        f"directions of shape {list(value.shape)}, expected [K, {width}] or [K, {rows}, {width}] for this generator; "
        "load the one they were made for."
    )
