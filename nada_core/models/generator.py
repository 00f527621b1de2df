"""Base class of generators: mapping network, synthesis network, and a description of the layers.

Truncation follows StyleGAN (Karras et al. 2019, arXiv 1812.04948, appendix B).

Shapes: N batch, L rows of ws (num_ws), C w_dim, R resolution of a layer, H and W pixels of the image.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

Noise = Literal["const", "random", "none"] | Sequence[Tensor]

Settings = TypeVar("Settings")

_SPACE_LENGTH = 32  # of a fingerprint; those of version 0.1.0 have 64 digits

Rng = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Layer:
    """One trainable unit of a synthesis network."""

    name: str  # "b8.conv0"
    resolution: int  # pixels per side of the output
    w_index: int | None  # row of ws that modulates it; None for the constant
    kind: Literal["const", "conv", "rgb"]
    parameters: tuple[str, ...]  # names in generator.named_parameters()


class Generator(nn.Module):
    """Map latents to images, float32 [N, 3, H, W] in about -1..1."""

    family: ClassVar[str]
    resolution: int
    z_dim: int
    w_dim: int
    num_ws: int
    c_dim: int
    source: str | None = None  # sha256 of the file it was loaded from
    layout: str | None = None  # the format of that file
    license: str | None = None  # as that file states it
    recommended: Mapping[str, Any] = MappingProxyType({})  # settings stored in its file; see recommended_settings
    recompute: int = 0  # activation checkpointing of blocks from this resolution on; 0: off
    mapping: nn.Module  # called with z [N, z_dim] and a label [N, c_dim] or None; holds the buffer w_avg [C]

    @property
    def w_avg(self) -> Tensor:
        """[C], the mean of w, which truncation interpolates towards. The buffer itself, not a copy."""
        return self.mapping.get_buffer("w_avg")

    def recommended_settings(self, section: str, cls: type[Settings]) -> Settings:
        """Build a settings class from the values stored with this generator.

        Args:
            section: "adapt", "invert" or "tune".
            cls: the settings dataclass of that section. Fields the file does not name keep their defaults.
        """
        return build_settings(cls, self.recommended.get(section, {}))

    def map(self, z: Tensor, label: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Map z to ws.

        Args:
            z: [N, z_dim], standard normal.
            label: [N, c_dim], required if and only if the generator is conditional.
            psi: truncation; 1 leaves w unchanged, 0 gives w_avg.
            cutoff: number of rows to truncate, from the first; None: all.

        Returns:
            [N, L, C].
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"Got z of shape {list(z.shape)}, expected [N, {self.z_dim}].")
        if self.c_dim and (label is None or label.shape != (len(z), self.c_dim)):
            got = "no label" if label is None else f"a label of shape {list(label.shape)}"
            raise ValueError(f"Got {got}, expected [{len(z)}, {self.c_dim}], one one-hot row per sample.")
        if not self.c_dim and label is not None:
            raise ValueError("Got a label, expected none: this generator is unconditional.")
        if not math.isfinite(psi):
            raise ValueError(f"Got psi {psi}, expected a finite number, usually 0..1.")
        if cutoff is not None and not 0 <= cutoff <= self.num_ws:
            raise ValueError(f"cutoff is {cutoff}, expected 0..{self.num_ws} or None to truncate every row.")
        dtype = self.w_avg.dtype
        w = self.mapping(z.to(dtype), None if label is None else label.to(dtype))  # [N, C]
        truncated = w if psi == 1.0 else self.w_avg.lerp(w, psi)
        rows = self.num_ws if cutoff is None else cutoff
        return torch.stack([truncated] * rows + [w] * (self.num_ws - rows), dim=1)

    def one_hot(self, label: int | None, count: int) -> Tensor | None:
        """Return a class as labels [count, c_dim] for `map`; None for an unconditional generator.

        Raises:
            ValueError: for a class that is missing, out of range, or given to an unconditional generator.
        """
        if not self.c_dim:
            if label is not None:
                raise ValueError(f"Got label {label}, expected None; this generator has no classes.")
            return None
        if label is None or not 0 <= label < self.c_dim:
            raise ValueError(f"Got label {label}; this generator needs a class from 0 to {self.c_dim - 1}.")
        row = torch.zeros(self.c_dim, device=self.w_avg.device)
        row[label] = 1
        return row.expand(count, -1)

    def synthesize(self, ws: Tensor, noise: Noise = "const", rng: Rng = None) -> Tensor:
        """Render images from ws. Under torch.autocast, all blocks but the last run in its type.

        Args:
            ws: [N, L, C].
            noise: "const", the noise maps of the generator; "random", new maps per sample from `rng`; "none"; or a list
                of maps as returned by `draw_noise`.

        Returns:
            [N, 3, H, W], float32.
        """
        raise NotImplementedError

    def draw_noise(self, count: int, rng: Rng = None) -> list[Tensor]:
        """Draw noise maps for `count` samples, [count, 1, R, R] per convolution, to share between generators.

        Args:
            rng: one torch.Generator, or one per sample, which makes each sample independent of its batch.
        """
        if not (rng is None or isinstance(rng, torch.Generator)) and len(rng) != count:
            raise ValueError(f"Got {len(rng)} generators in rng, expected {count}, one per sample, or a single one.")
        device = self.w_avg.device
        return [_normal(count, layer.resolution, rng).to(device) for layer in self.layers() if layer.kind == "conv"]

    def layers(self) -> tuple[Layer, ...]:
        """List the trainable units of the synthesis network in the order of execution."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Return JSON-ready settings from which `build` makes the same architecture."""
        raise NotImplementedError

    def space(self) -> str:
        """Return the fingerprint of the mapping weights. Generators with the same one share their latents.

        w_avg is not part of it: files store it rounded or not at all, and it only matters for truncation.
        """
        return _fingerprint(self.mapping.named_parameters())[:_SPACE_LENGTH]

    def weights_fingerprint(self) -> str:
        """Return the fingerprint of all parameters. An adapted generator has another one than its source."""
        return _fingerprint(self.named_parameters())[:_SPACE_LENGTH]

    def accepts(self, space: str) -> bool:
        """Whether latents with this fingerprint fit: it is equal, that of a version 0.1.0 file, or empty (unknown)."""
        if space and len(space) != _SPACE_LENGTH:  # version 0.1.0 hashed w_avg as well
            return space == _fingerprint(self.mapping.state_dict().items())
        return not space or space == self.space()

    def _check_ws(self, ws: Tensor) -> None:
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"Got ws of shape {list(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]; "
                "use map(z), or repeat a single w over the rows."
            )

    def _noise_maps(self, noise: Noise, count: int, rng: Rng, const: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return one map per convolution, broadcastable to [N, 1, R, R], or None for no noise."""
        if isinstance(noise, str):
            if noise == "const":
                return const
            if noise == "random":
                return self.draw_noise(count, rng)
            if noise == "none":
                return [None] * len(const)
            raise ValueError(f"Got noise {noise!r}, expected 'const', 'random', 'none' or a list of maps.")
        if len(noise) != len(const):
            raise ValueError(f"Got {len(noise)} noise maps, expected {len(const)}, one per convolution.")
        for index, (map_, own) in enumerate(zip(noise, const, strict=True)):
            size = own.shape[-1]
            if map_.shape not in ((size, size), (1, 1, size, size), (count, 1, size, size)):
                raise ValueError(
                    f"Got noise map {index} of shape {list(map_.shape)}, expected [{size}, {size}] "
                    f"or [{count}, 1, {size}, {size}]; see draw_noise."
                )
        return noise


def same_space(first: str, second: str) -> bool:
    """Whether two fingerprints may belong to one mapping network: equal, unknown, or of incomparable versions."""
    return not first or not second or first == second or {len(first), len(second)} == {_SPACE_LENGTH, 64}


def check_space(subject: str, space: str, generator: Generator) -> None:
    """Raise ValueError when `space` is known and not the generator's."""
    if not generator.accepts(space):
        raise ValueError(
            f"{subject} come from another generator (space {space[:12]}, this one is {generator.space()[:12]}); "
            "use the one they were made with, or one adapted from it."
        )


def check_latents(generator: Generator, ws: Tensor, space: str, count: int, subject: str = "These latents") -> None:
    """Raise ValueError for latents [N, L, C] that are not the generator's, or not `count`."""
    check_space(subject, space, generator)
    if ws.shape[1:] != (generator.num_ws, generator.w_dim):
        raise ValueError(
            f"{subject} have {list(ws.shape[1:])} rows and columns, expected [{generator.num_ws}, "
            f"{generator.w_dim}]; use the generator they were made with."
        )
    if len(ws) != count:
        raise ValueError(f"Got {count} images and {len(ws)} latents, expected one latent per image, in their order.")


def _fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors):
        array = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(array.shape)}".encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def _normal(count: int, size: int, rng: Rng) -> Tensor:
    if rng is None or isinstance(rng, torch.Generator):
        return torch.randn(count, 1, size, size, generator=rng, device=rng.device if rng else None)
    return torch.stack([torch.randn(1, size, size, generator=one, device=one.device) for one in rng])


def changed_settings(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that differ from its defaults, as JSON-ready values."""
    values, defaults = dataclasses.asdict(settings), dataclasses.asdict(type(settings)())
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return {
        name: changed_settings(getattr(settings, name))
        if dataclasses.is_dataclass(getattr(settings, name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in changed.items()
    }


def build_settings(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Turn a JSON object into a settings dataclass, nested ones included."""
    defaults, built = cls(), {}
    for name, value in values.items():
        default = getattr(defaults, name, None)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            value = build_settings(type(default), value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)
