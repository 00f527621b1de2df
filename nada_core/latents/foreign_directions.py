"""Directions of other programs: InterFaceGAN boundaries, GANSpace components, rosinality's factors, W+ directions.

Files differ in which axis counts the directions. It follows from the names in the file and the sizes of the generator;
arrays that can be read in two ways are refused.

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
            raise ValueError(
                f"no directions that are known; the file holds {sorted(raw.tensors)[:6]}. Expected a single array, "
                "comp and std, or eigvec."
            )
    except ValueError as error:
        raise UnsupportedCheckpointError(f"{path}: {error}") from error
    return vectors, torch.ones(len(vectors))


def _rows(value: Tensor, generator: Generator) -> Tensor:
    """[K, C], [K, 1, C] or [K, L, C] -> [K, 1 or L, C]."""
    vectors = value[:, None] if value.ndim == 2 else value
    if vectors.ndim != 3 or vectors.shape[1] not in (1, generator.num_ws) or vectors.shape[2] != generator.w_dim:
        raise _wrong_size(value, generator)
    return vectors


def _columns(value: Tensor, generator: Generator) -> Tensor:
    """[C, K] -> [K, 1, C]."""
    if value.ndim != 2 or len(value) != generator.w_dim:
        raise _wrong_size(value, generator)
    return value.T[:, None].contiguous()


def _single_array(value: Tensor, generator: Generator) -> Tensor:
    """An array without a name that tells its axes -> [K, 1 or L, C]."""
    rows, width = generator.num_ws, generator.w_dim
    size = tuple(value.shape)
    two_ways = {
        (rows, 1, width): f"{rows} directions of w, or one direction of W+",
        (width, width): "a direction per row, or a direction per column",
        (width, rows): f"{rows} directions of w, one per column, or one direction of W+, transposed",
    }
    if size == (rows, width) and rows != width:
        return value[None]
    if size in two_ways:
        raise ValueError(
            f"an array of shape {list(size)} can be {two_ways[size]}. Save the directions that are meant as [K, 1, C], "
            "or a single one as [1, L, C]."
        )
    if size in ((width,), (rows * width,), (1, rows * width)):
        return value.reshape(1, -1, width)
    return _columns(value, generator) if len(size) == 2 and size[0] == width else _rows(value, generator)


def _wrong_size(value: Tensor, generator: Generator) -> ValueError:
    expected = f"[K, {generator.w_dim}] or [K, {generator.num_ws}, {generator.w_dim}] for this generator"
    return ValueError(f"directions of shape {list(value.shape)}, expected {expected}; load the one they were made for.")
