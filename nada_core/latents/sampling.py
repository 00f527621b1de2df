"""Latents as data, and pictures of them: `sample` draws, `mix` and `interpolate` combine, `render` shows.

Sections are those of StyleGAN (Karras et al. 2019, arXiv 1812.04948). Our files are safetensors: `ws`, maps of noise
where there are any, and as metadata `kind`, `version`, `space`, `noise` and, in JSON, a free `provenance`.

Letters: N latents, L rows, C width of a row, T frames, R a layer's resolution, H = W = the picture's.
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
from ..models.generator import Generator
from ..runtime.batching import MicroBatcher

KIND = "nada_latents"

VERSION = 1

_MOST_FRAMES = 10_000  # nearly seven minutes of film at 25 a second; more is a slip of the hand

# What other programs call latents: "array" stands for a bare .npy, "" for a bare tensor in a .pt.
_FOREIGN = ("latent", "latents", "w", "ws", "array", "")


@dataclass(frozen=True, eq=False)
class Latents:
    """Points of W+ that fit every generator with the same mapping network.

    ws: [N, L, C] on the CPU. noise: "const" or "none", or maps, one a convolution, each shared by all latents or one
    a latent, as `Generator.draw_noise` gives them. space: the fingerprint of the mapping network they come from, which
    an adaptation does not change. Raises ValueError for anything else. latents[2] is one latent, latents[2:5] a few;
    maps of noise that each latent has of its own go with them.
    """

    ws: Tensor
    noise: str | Sequence[Tensor] = "const"
    space: str = ""

    def __post_init__(self) -> None:
        if self.ws.ndim != 3 or not len(self.ws):
            raise ValueError(f"got ws of shape {list(self.ws.shape)}, expected [N, L, C] with at least one latent.")
        if isinstance(self.noise, str):
            if self.noise not in ("const", "none"):
                raise ValueError(
                    f"got noise {self.noise!r}, expected 'const', 'none' or maps: latents give the same "
                    "picture every time. For random noise pass generator.draw_noise(count, rng)."
                )
            return
        for index, given in enumerate(self.noise):
            if given.ndim != 2 and (given.ndim != 4 or len(given) not in (1, len(self))):
                raise ValueError(
                    f"noise map {index} has shape {list(given.shape)}, expected [R, R], [1, 1, R, R] or "
                    f"[{len(self)}, 1, R, R]; see Generator.draw_noise."
                )

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, index: int | slice) -> Latents:
        """One latent or a slice of them. Raises IndexError beyond the ends, ValueError for a slice without any."""
        chosen = range(len(self))[index]
        rows = [chosen] if isinstance(chosen, int) else list(chosen)
        if not rows:
            raise ValueError(f"got the slice {index} of {len(self)} latents, which is empty, expected at least one.")
        if isinstance(self.noise, str):
            return replace(self, ws=self.ws[rows])
        return replace(self, ws=self.ws[rows], noise=[m[rows] if _one_a_latent(m) else m for m in self.noise])


def sample(
    generator: Generator, seeds: Sequence[int], psi: float = 0.7, cutoff: int | None = None, label: int | None = None
) -> Latents:
    """One latent a seed; a seed gives the same latent whatever its neighbours are.

    psi: truncation, 1 keeps w, 0 gives the mean. cutoff: truncate only the first rows. label: the class of a
    conditional generator. Raises ValueError for no seeds, a negative seed, or a label that does not fit.
    """
    if not seeds or min(seeds) < 0:
        raise ValueError(f"got seeds {list(seeds)}; expected at least one whole number from 0.")
    z = torch.stack([torch.randn(generator.z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    device = generator.w_avg.device
    with torch.no_grad():
        ws = generator.map(z.to(device), generator.one_hot(label, len(z)), psi, cutoff)
    return Latents(ws.cpu(), "const", generator.space())


def mix(first: Latents, second: Latents, amount: float = 1.0, rows: tuple[int, int] | None = None) -> Latents:
    """Rows of `first` moved towards `second`: style mixing (section 3.1), or a blend of two people.

    amount: 0 leaves `first`, 1 gives the rows of `second`, beyond 0..1 goes on along the same line. rows: the first row
    and the one after the last, as in range(); None moves all of them. Early rows steer pose and shape, late ones
    colour. One latent goes with any number of others. The noise is that of `first`. Raises ValueError for latents of
    different mapping networks, widths or counts, for rows that are not there and an amount that is not finite.
    """
    _expect_same_space(first, second)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"got {len(first)} and {len(second)} latents, expected equally many, or one on either side; "
            "take a part of the longer ones."
        )
    start, stop = (0, first.ws.shape[1]) if rows is None else rows
    if not 0 <= start < stop <= first.ws.shape[1]:
        raise ValueError(
            f"got rows {start} to {stop}, expected 0 <= first < last <= {first.ws.shape[1]}, which is how "
            "many rows these latents have; the last is not included."
        )
    if not math.isfinite(amount):
        raise ValueError(f"got amount {amount}, expected a finite number, as a rule from 0 (first) to 1 (second).")
    # A single latent's own maps are [1, 1, R, R], which every latent of the result shares: nothing to expand.
    ws = first.ws.expand(max(len(first), len(second)), -1, -1).clone()  # [N, L, C]
    ws[:, start:stop] = ws[:, start:stop].lerp(second.ws[:, start:stop].to(ws), amount)
    return Latents(ws, first.noise, first.space or second.space)


def interpolate(latents: Latents, frames: int, loop: bool = False) -> Latents:
    """A walk through the latents as key frames, `frames` pictures from each to just before the next.

    N latents give (N - 1) * frames + 1 latents, the last being the last key frame, or with `loop` N * frames, after
    which the first comes again. The walk is straight in W+: W is where straight lines change pictures evenly (section
    4.1, perceptual path length). Maps of noise that each latent has of its own are blended too. Raises ValueError for
    fewer than two latents, fewer than one frame and more than 10 000 latents in all.
    """
    keys = len(latents)
    if keys < 2:
        raise ValueError("got one latent, expected at least two to walk between; sample more seeds.")
    if frames < 1:
        raise ValueError(f"got {frames} frames from one latent to the next, expected at least 1.")
    total = keys * frames if loop else (keys - 1) * frames + 1
    if total > _MOST_FRAMES:
        raise ValueError(
            f"got {frames} frames from each of {keys} latents to the next, {total} in all; expected at "
            f"most {_MOST_FRAMES}: ask for fewer frames, or walk a part at a time."
        )
    index = torch.arange(total)
    here = index // frames
    there = (here + 1) % keys  # the last key frame of an open walk looks ahead too, but goes no step: part is 0
    part = (index % frames) / frames  # [T]

    def blended(maps: Tensor) -> Tensor:
        if not _one_a_latent(maps):
            return maps
        t = part.to(maps)[:, None, None, None]
        # The sum of two independent maps has variance (1 - t)^2 + t^2, and weaker noise draws smoother skin and hair.
        return maps[here].lerp(maps[there], t) / (t**2 + (1 - t) ** 2).sqrt()

    ws = latents.ws[here].lerp(latents.ws[there], part.to(latents.ws)[:, None, None])
    noise = latents.noise if isinstance(latents.noise, str) else [blended(maps) for maps in latents.noise]
    return Latents(ws, noise, latents.space)


@torch.no_grad()
def render(
    generator: Generator, latents: Latents, batch: int = 4, on_batch: Callable[[int, int], None] | None = None
) -> Tensor:
    """Pictures [N, 3, H, W] in about -1..1, on the CPU, `batch` at a time.

    on_batch: called after every batch with how many pictures are done and how many there are; whatever it raises stops
    the work. A batch that does not fit into the memory of a GPU is halved, for the rest of the pictures too; when not
    even one picture fits, torch.cuda.OutOfMemoryError says so. Raises ValueError when the latents belong to another
    mapping network or have another shape.
    """
    if batch < 1:
        raise ValueError(f"got batch {batch}, expected at least 1.")
    if latents.space and latents.space != generator.space():
        raise ValueError(
            f"these latents come from another generator (space {latents.space[:12]}, this one is "
            f"{generator.space()[:12]}); sample them from this generator or from the one it was adapted from."
        )
    advice = f"Close what else uses it, or draw these {generator.resolution} pixels on the CPU."
    batcher = MicroBatcher(min(batch, len(latents)), advice)
    pictures: list[Tensor] = []
    done = 0
    while done < len(latents):
        pictures.append(batcher.run(lambda start, size: _draw(generator, latents[start : start + size]), done))
        done += len(pictures[-1])
        if on_batch is not None:
            on_batch(done, len(latents))
    return torch.cat(pictures)


def save_latents(latents: Latents, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write latents; reading gives them back bit for bit, maps of noise included.

    provenance: JSON-ready and free. Raises ValueError for NaN and infinity; nothing is written then.
    """
    noise = latents.noise
    maps = {} if isinstance(noise, str) else {f"noise.{index}": given for index, given in enumerate(noise)}
    tensors = {"ws": latents.ws, **maps}
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{broken[0]} of the latents holds NaN or infinity; nothing was written. Make them anew.")
    description = {"kind": KIND, "version": VERSION, "space": latents.space}
    description |= {"noise": noise if isinstance(noise, str) else "maps", "provenance": dict(provenance or {})}
    write_safetensors(path, tensors, description)


def load_latents(path: str | Path, generator: Generator | None = None) -> Latents:
    """What `save_latents` wrote, or latents of another program, for which the generator must be given.

    Of others, .npz (NVIDIA's projector), .npy and .pt (encoders, rosinality's projector with its maps of noise) are
    read: [N, L, C], a single [L, C], or w, [N, C] or [C], which is repeated over the rows. Such a file does not say
    where its latents come from; they are taken to be the generator's own.

    Raises:
        CheckpointError: for files that are missing, damaged, hold NaN, hold no latents or more than one set of them,
            or latents of a size that the generator does not have.
        ValueError: for latents of another generator, and for a foreign file without a generator.
    """
    raw = read_checkpoint(path)
    if raw.container != "safetensors" or raw.hints.get("kind") != KIND:
        return _foreign(path, raw, generator)
    description = read_description(path, raw.hints, VERSION)
    maps = [raw.tensors[name] for name in (f"noise.{i}" for i in range(len(raw.tensors))) if name in raw.tensors]
    try:
        noise = maps if description["noise"] == "maps" else description["noise"]
        found = Latents(raw.tensors["ws"], noise, description["space"])
    except (KeyError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path}: latents that are not whole ({type(error).__name__}: {error}). The file "
            "was changed; copy it again."
        ) from error
    if generator is not None:
        if found.space and found.space != (own := generator.space()):
            raise ValueError(
                f"{path}: latents of another generator (space {found.space[:12]}, this one is {own[:12]});"
                " load the one they were made with, or one adapted from it."
            )
        if found.ws.shape[1:] != (generator.num_ws, generator.w_dim):
            raise ValueError(
                f"{path}: latents of {list(found.ws.shape[1:])} rows and columns, the generator's have "
                f"[{generator.num_ws}, {generator.w_dim}]; load the one they were made with."
            )
    return found


def _foreign(path: str | Path, raw: RawCheckpoint, generator: Generator | None) -> Latents:
    if generator is None:
        raise ValueError(
            f"{path}: not written by save_latents; if these are latents of another program, pass the "
            "generator they belong to, for the file does not say."
        )
    named = {name: value for name, value in raw.tensors.items() if value.is_floating_point()}
    if len(named) != 1:
        named = {name: value for name, value in named.items() if name.rpartition(".")[2] in _FOREIGN}
    # rosinality's projector writes one dict a picture; anything else with several is a choice we cannot make.
    alike = {(name.rpartition(".")[2], value.shape) for name, value in named.items()}
    if len(named) != 1 and (len(alike) != 1 or next(iter(alike))[0] != "latent"):
        found = f"{len(named)} ({', '.join(named)})" if named else f"none among {sorted(raw.tensors)[:5]}"
        raise UnsupportedCheckpointError(
            f"{path}: expected one set of latents, called latent, latents, w or ws, found "
            f"{found}. Save the one that is meant by itself."
        )
    ws = torch.cat([_as_rows(path, value.float(), generator) for value in named.values()])
    maps = [raw.hints[key] for name in named if (key := name.removesuffix("latent") + "noise") in raw.hints]
    if not maps:
        return Latents(ws, "const", generator.space())
    sizes = [(1, 1, layer.resolution, layer.resolution) for layer in generator.layers() if layer.kind == "conv"]
    if len(maps) != len(named) or not all(_fits(own, sizes) for own in maps):
        raise UnsupportedCheckpointError(
            f"{path}: the latents' maps of noise are not {len(sizes)} finite ones of this "
            "generator's sizes. Save the latents without them."
        )
    return Latents(ws, [torch.cat(layer).float() for layer in zip(*maps, strict=True)], generator.space())


def _fits(maps: object, sizes: list[tuple[int, int, int, int]]) -> bool:
    """Whether these are finite maps of noise [1, 1, R, R] of just these sizes."""
    return (
        isinstance(maps, list)
        and all(isinstance(one, Tensor) and one.isfinite().all() for one in maps)
        and [tuple(one.shape) for one in maps] == sizes
    )


def _as_rows(path: str | Path, value: Tensor, generator: Generator) -> Tensor:
    """One of the shapes that other programs use -> [N, L, C]."""
    rows, width = generator.num_ws, generator.w_dim
    w = value.reshape(1, 1, -1) if value.ndim == 1 else value
    if w.ndim == 2:  # as many w as there are rows are one latent of W+: that is how encoders save a single one
        w = w[None] if len(w) == rows else w[:, None]
    if w.ndim != 3 or w.shape[1] not in (1, rows) or w.shape[2] != width or not len(w):
        raise UnsupportedCheckpointError(
            f"{path}: latents of shape {list(value.shape)}, expected [N, {rows}, {width}],"
            f" [{rows}, {width}] or [N, {width}] for this generator; load the one they "
            "belong to."
        )
    return w.expand(-1, rows, -1).clone()


def _draw(generator: Generator, latents: Latents) -> Tensor:
    device = generator.w_avg.device
    noise = latents.noise if isinstance(latents.noise, str) else [maps.to(device) for maps in latents.noise]
    return generator.synthesize(latents.ws.to(device), noise).cpu()  # type: ignore[arg-type]


def _one_a_latent(maps: Tensor) -> bool:
    """Whether noise maps are [N, 1, R, R] with N > 1; [R, R] and [1, 1, R, R] are shared by all latents."""
    return maps.ndim == 4 and len(maps) > 1


def _expect_same_space(first: Latents, second: Latents) -> None:
    if first.space and second.space and first.space != second.space:
        raise ValueError(
            f"got latents of two mapping networks (spaces {first.space[:12]} and {second.space[:12]}), "
            "expected one; sample both from the same generator, or from ones adapted from it."
        )
    if first.ws.shape[1:] != second.ws.shape[1:]:
        raise ValueError(
            f"got latents of {list(first.ws.shape[1:])} and {list(second.ws.shape[1:])} rows and columns, "
            "expected the same; sample both from generators of one resolution."
        )


def check_latents(generator: Generator, ws: Tensor, space: str, count: int) -> None:
    """Raises ValueError for latents that are not `count` of this generator's own. ws: [N, L, C]."""
    if space and space != generator.space():
        raise ValueError(
            f"These latents come from another generator (space {space[:12]}, this one is "
            f"{generator.space()[:12]}); use the one they were made with, or one adapted from it."
        )
    if ws.shape[1:] != (generator.num_ws, generator.w_dim):
        raise ValueError(
            f"The latents have {list(ws.shape[1:])} rows and columns, expected [{generator.num_ws}, "
            f"{generator.w_dim}]; use the generator they were made with."
        )
    if len(ws) != count:
        raise ValueError(f"Got {count} pictures and {len(ws)} latents, expected one latent a picture, in their order.")
