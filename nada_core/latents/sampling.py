"""Latents of StyleGAN as data: sample them, mix and interpolate them, render their images, save and load them.

Sections are those of StyleGAN (Karras et al. 2019, arXiv:1812.04948). A file of latents is a safetensors file with
`ws`, noise maps where there are any, and the metadata `kind`, `version`, `space`, `noise` and `provenance` (JSON).

Letters: N latents, L rows of W+, C width of a row, T frames, R a layer's resolution, H = W pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint, read_checkpoint
from ..io.errors import DamagedCheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_description, write_safetensors
from ..models.generator import Generator, check_latents, check_space, same_space
from ..runtime.batching import MicroBatcher
from ..runtime.seeds import seeded

KIND = "nada_latents"
VERSION = 1

_MAX_FRAMES = 10_000  # nearly seven minutes of video at 25 frames per second
# Names of latents in the files of other programs: "array" is a bare .npy, "" a bare tensor in a .pt.
_FOREIGN_NAMES = ("latent", "latents", "w", "ws", "array", "")


@dataclass(frozen=True, eq=False)
class Latents:
    """Points of W+ for every generator with the same mapping network, adapted ones included.

    `latents[2]` is one latent and `latents[2:5]` a slice, each with its own noise maps.
    """

    ws: Tensor  # [N, L, C] on the CPU
    noise: str | Sequence[Tensor] = "const"  # "none", or maps [R, R] or [1 or N, 1, R, R], see `Generator.draw_noise`
    space: str = ""  # fingerprint of the mapping network, "" if unknown

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or not len(self.ws):
            raise ValueError(f"Got ws of shape {list(self.ws.shape)}, expected [N, L, C] with at least one latent.")
        if isinstance(self.noise, str) and self.noise not in ("const", "none"):
            raise ValueError(f"Got noise {self.noise!r}, expected 'const', 'none' or maps from generator.draw_noise().")
        for index, maps in enumerate([] if isinstance(self.noise, str) else self.noise):
            if maps.ndim != 2 and (maps.ndim != 4 or len(maps) not in (1, len(self))):
                expected = f"[R, R] or [1 or {len(self)}, 1, R, R]"
                raise ValueError(f"Noise map {index} has shape {list(maps.shape)}, expected {expected}.")

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, index: int | slice) -> Latents:
        rows = range(len(self))[index]
        if isinstance(rows, range) and not rows:
            raise ValueError(f"Got the slice {index} of {len(self)} latents, which is empty, expected at least one.")
        return self.select([rows] if isinstance(rows, int) else rows)

    def select(self, rows: Sequence[int]) -> Latents:
        """Return the latents with these indices."""
        chosen, noise = list(rows), self.noise
        if not isinstance(noise, str):
            noise = [maps[chosen] if _per_latent(maps) else maps for maps in noise]
        return replace(self, ws=self.ws[chosen], noise=noise)


def sample(
    generator: Generator, seeds: Sequence[int], psi: float = 0.7, cutoff: int | None = None, label: int | None = None
) -> Latents:
    """Sample one latent per seed; a seed gives the same latent in any batch.

    Args:
        psi: truncation; 1 keeps w, 0 gives the mean.
        cutoff: number of first rows that are truncated; None truncates all.
        label: class index of a conditional generator.
    """
    if not seeds:
        raise ValueError("Got no seeds, expected at least one.")
    z = torch.stack([torch.randn(generator.z_dim, generator=seeded(int(seed))) for seed in seeds])
    with torch.no_grad():
        ws = generator.map(z.to(generator.w_avg.device), generator.one_hot(label, len(z)), psi, cutoff)
    return Latents(ws.cpu(), "const", generator.space())


def mix(first: Latents, second: Latents, amount: float = 1.0, rows: tuple[int, int] | None = None) -> Latents:
    """Move rows of `first` towards `second`: style mixing (section 3.1), or a blend. The noise is that of `first`.

    Args:
        amount: 0 keeps `first`, 1 gives `second`; values outside 0..1 extrapolate.
        rows: first row and the one after the last; None means all. Early rows set pose and shape, late rows color.

    Raises:
        ValueError: for different mapping networks or shapes, and counts that differ where neither is 1.
    """
    if not same_space(first.space, second.space):
        raise ValueError(
            f"Got latents of two mapping networks, {first.space[:12]} and {second.space[:12]}, expected one."
        )
    if first.ws.shape[1:] != second.ws.shape[1:]:
        shapes = f"{list(first.ws.shape[1:])} and {list(second.ws.shape[1:])}"
        raise ValueError(f"Got latents of {shapes} rows and columns, expected the same; use one resolution.")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"Got {len(first)} and {len(second)} latents, expected the same number, or one on either side."
        )
    if not math.isfinite(amount):
        raise ValueError(f"Got amount {amount}, expected a finite number, usually from 0 (first) to 1 (second).")
    moved = row_slice(rows, first.ws.shape[1])
    # Noise maps of a single latent are [1, 1, R, R], which every latent of the result shares.
    ws = first.ws.expand(max(len(first), len(second)), -1, -1).clone()  # [N, L, C]
    ws[:, moved] = ws[:, moved].lerp(second.ws[:, moved].to(ws), amount)
    return Latents(ws, first.noise, first.space or second.space)


def interpolate(latents: Latents, frames: int, loop: bool = False) -> Latents:
    """Interpolate between latents as key frames, linearly in W+ (section 4.1, perceptual path length).

    Args:
        frames: frames from one key frame to just before the next.
        loop: return to the first key frame.

    Returns:
        (N - 1) * frames + 1 latents, or N * frames with `loop`, 10,000 at most; their own noise maps are blended too.
    """
    keys = len(latents)
    total = keys * frames if loop else (keys - 1) * frames + 1
    if keys < 2 or frames < 1 or total > _MAX_FRAMES:
        got = f"latents: {keys}, frames per latent: {frames}, {total} in all"
        raise ValueError(f"Got {got}; expected at least 2, at least 1, and at most {_MAX_FRAMES}.")
    index = torch.arange(total)
    start = index // frames
    end = (start + 1) % keys  # wraps at the last key frame of an open walk, where t is 0
    t = (index % frames) / frames  # [T]

    def blend(maps: Tensor) -> Tensor:
        if not _per_latent(maps):
            return maps
        s = t.to(maps)[:, None, None, None]
        # Two independent maps blend to variance s^2 + (1 - s)^2; weaker noise would draw smoother skin and hair.
        return maps[start].lerp(maps[end], s) / (s**2 + (1 - s) ** 2).sqrt()

    ws = latents.ws[start].lerp(latents.ws[end], t.to(latents.ws)[:, None, None])
    noise = latents.noise if isinstance(latents.noise, str) else [blend(maps) for maps in latents.noise]
    return Latents(ws, noise, latents.space)


@torch.no_grad()
def render(
    generator: Generator, latents: Latents, batch: int = 4, on_batch: Callable[[int, int], None] | None = None
) -> Tensor:
    """Render images [N, 3, H, W] in about -1..1, on the CPU.

    Args:
        batch: images at a time; halved when GPU memory runs out.
        on_batch: called after every batch with the number of finished and of all images; may raise to stop.

    Raises:
        ValueError: for latents of another mapping network or shape.
        torch.cuda.OutOfMemoryError: when a single image does not fit.
    """
    if batch < 1:
        raise ValueError(f"Got batch {batch}, expected at least 1.")
    check_space("These latents", latents.space, generator)
    advice = f"Close other programs on the GPU, or render these {generator.resolution} pixels on the CPU."
    batcher = MicroBatcher(min(batch, len(latents)), advice)
    images: list[Tensor] = []
    done = 0
    while done < len(latents):
        images.append(batcher.run(lambda start, size: synthesize(generator, latents[start : start + size]).cpu(), done))
        done += len(images[-1])
        if on_batch is not None:
            on_batch(done, len(latents))
    return torch.cat(images)


def synthesize(generator: Generator, latents: Latents) -> Tensor:
    """Synthesize all latents at once on the generator's device, with gradients."""
    like, noise = generator.w_avg, latents.noise
    maps = noise if isinstance(noise, str) else [layer.to(like, non_blocking=True) for layer in noise]
    return generator.synthesize(latents.ws.to(like, non_blocking=True), maps)  # type: ignore[arg-type]


def save_latents(latents: Latents, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Save latents and noise maps, bit-exact, with JSON-serializable provenance. Raises ValueError for NaN."""
    noise = latents.noise
    maps = {} if isinstance(noise, str) else {f"noise.{index}": layer for index, layer in enumerate(noise)}
    tensors = {"ws": latents.ws, **maps}
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{broken[0]} of the latents holds NaN or infinity; nothing was written.")
    description = {"kind": KIND, "version": VERSION, "space": latents.space}
    description |= {"noise": noise if isinstance(noise, str) else "maps", "provenance": dict(provenance or {})}
    write_safetensors(path, tensors, description)


def load_latents(path: str | Path, generator: Generator | None = None) -> Latents:
    """Load latents that `save_latents` or another program wrote.

    Files of other programs are .npz (NVIDIA's projector), .npy and .pt (encoders, rosinality's projector with noise
    maps). They hold [N, L, C], one [L, C], or w, [N, C] or [C], which is repeated over the rows. They do not name their
    generator, so `generator` is required and assumed to be theirs.

    Raises:
        CheckpointError: for files that are missing or damaged, hold NaN, no latents or several sets of them, or latents
            of a size that the generator does not have.
        ValueError: for latents of another generator, and for a foreign file without a generator.
    """
    raw = read_checkpoint(path)
    if raw.kind != KIND:
        return _from_foreign_file(path, raw, generator)
    description = read_description(path, raw.hints, VERSION)
    maps = [raw.tensors[name] for name in (f"noise.{i}" for i in range(len(raw.tensors))) if name in raw.tensors]
    try:
        noise = maps if description["noise"] == "maps" else description["noise"]
        latents = Latents(raw.tensors["ws"], noise, description["space"])
    except (KeyError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DamagedCheckpointError(f"{path}: incomplete latents ({problem}). Copy the file again.") from error
    if generator is not None:
        check_latents(generator, latents.ws, latents.space, len(latents), f"The latents in {path}")
        return replace(latents, space=latents.space and generator.space())  # a file of 0.1.0 has another fingerprint
    return latents


def _from_foreign_file(path: str | Path, raw: RawCheckpoint, generator: Generator | None) -> Latents:
    if generator is None:
        raise ValueError(f"{path}: not written by this package; a file of another program also needs its generator.")
    tensors = _foreign_latents(path, raw)
    ws = torch.cat([_to_rows(path, value.float(), generator) for value in tensors.values()])
    keys = [name.removesuffix("latent") + "noise" for name in tensors]
    noise = [raw.hints[key] for key in keys if key in raw.hints]
    if not noise:
        return Latents(ws, "const", generator.space())
    sizes = [(1, 1, layer.resolution, layer.resolution) for layer in generator.layers() if layer.kind == "conv"]
    if len(noise) != len(tensors) or not all(_are_noise_maps(maps, sizes) for maps in noise):
        expected = f"{len(sizes)} finite noise maps of this generator's sizes for each latent"
        raise UnsupportedCheckpointError(f"{path}: expected {expected}. Save the latents without them.")
    return Latents(ws, [torch.cat(layer).float() for layer in zip(*noise, strict=True)], generator.space())


def _foreign_latents(path: str | Path, raw: RawCheckpoint) -> dict[str, Tensor]:
    """The only set of latents in a file; rosinality's projector writes one dict with a "latent" for each image."""
    tensors = {name: value for name, value in raw.tensors.items() if value.is_floating_point()}
    if len(tensors) == 1:
        return tensors
    tensors = {name: value for name, value in tensors.items() if name.rpartition(".")[2] in _FOREIGN_NAMES}
    kinds = {(name.rpartition(".")[2], value.shape) for name, value in tensors.items()}
    if len(tensors) == 1 or (len(kinds) == 1 and next(iter(kinds))[0] == "latent"):
        return tensors
    found = f"{len(tensors)} ({', '.join(tensors)})" if tensors else f"none among {sorted(raw.tensors)[:5]}"
    raise UnsupportedCheckpointError(
        f"{path}: expected one set of latents named latent, latents, w or ws, found {found}. Save only one."
    )


def _to_rows(path: str | Path, value: Tensor, generator: Generator) -> Tensor:
    """[N, L, C], [L, C], [N, C] or [C] -> [N, L, C]."""
    rows, width = generator.num_ws, generator.w_dim
    ws = value.reshape(1, 1, -1) if value.ndim == 1 else value
    if ws.ndim == 2:  # L rows are one latent of W+, as encoders save it
        ws = ws[None] if len(ws) == rows else ws[:, None]
    if ws.ndim != 3 or ws.shape[1] not in (1, rows) or ws.shape[2] != width or not len(ws):
        raise UnsupportedCheckpointError(
            f"{path}: latents of shape {list(value.shape)}, expected [N, {rows}, {width}], [{rows}, {width}] or "
            f"[N, {width}] for this generator; load the one they belong to."
        )
    return ws.expand(-1, rows, -1).clone()


def _are_noise_maps(maps: object, sizes: list[tuple[int, int, int, int]]) -> bool:
    return (
        isinstance(maps, list)
        and all(isinstance(layer, Tensor) and layer.isfinite().all() for layer in maps)
        and [tuple(layer.shape) for layer in maps] == sizes
    )


def _per_latent(maps: Tensor) -> bool:
    """Whether noise maps are [N, 1, R, R] with N > 1; [R, R] and [1, 1, R, R] are shared by all latents."""
    return maps.ndim == 4 and len(maps) > 1


def row_slice(rows: tuple[int, int] | None, count: int) -> slice:
    """The rows (first, one after the last) of `count` as a slice; None means all. Raises ValueError out of range."""
    first, last = (0, count) if rows is None else rows
    if not 0 <= first < last <= count:
        raise ValueError(f"Got rows {first} to {last} (exclusive), expected 0 <= first < last <= {count}.")
    return slice(first, last)
