"""What every generator is: a mapping network, a synthesis network, and a description of its own layers.

Truncation is that of StyleGAN (Karras et al. 2019, arXiv 1812.04948, appendix B).

Letters: N batch, L rows of a latent (`num_ws`), C its width (`w_dim`), R a layer's resolution.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

Noise = Literal["const", "random", "none"] | Sequence[Tensor]

Settings = TypeVar("Settings")

Rng = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Layer:
    """One trainable unit of a synthesis network."""

    name: str  # "b8.conv0"
    resolution: int  # pixels a side of what it puts out
    w_index: int | None  # the row of the latent that steers it; None: no row does
    kind: Literal["const", "conv", "rgb"]
    parameters: tuple[str, ...]  # names in generator.named_parameters()


class Generator(nn.Module):
    """A latent in, an image out. Images leave as float32 [N, 3, H, W] in about -1..1."""

    family: ClassVar[str]
    resolution: int
    z_dim: int
    w_dim: int
    num_ws: int
    c_dim: int
    source: str | None = None  # sha256 of the file it was loaded from
    recommended: Mapping[str, Any] = MappingProxyType({})  # settings stored in its file; see recommended_settings
    recompute: int = 0  # blocks of at least so many pixels a side are computed again on the way back; 0: none
    mapping: nn.Module  # called with z [N, z_dim] and a label [N, c_dim] or None; holds the buffer w_avg [C]

    @property
    def w_avg(self) -> Tensor:
        """[C]: the mean of w, towards which truncation pulls. The live buffer, not a copy."""
        return self.mapping.get_buffer("w_avg")

    def recommended_settings(self, section: str, cls: type[Settings]) -> Settings:
        """Build a settings class from the values stored with this generator.

        Args:
            section: "adapt", "invert" or "tune".
            cls: the settings dataclass of that section. Fields the file does not name keep their defaults.
        """
        return _build_settings(cls, self.recommended.get(section, {}))

    def map(self, z: Tensor, label: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """z [N, z_dim] -> ws [N, L, C].

        psi: 1 leaves w as it is, 0 gives the mean. cutoff: only the first `cutoff` rows are truncated.
        label: [N, c_dim], needed exactly when the generator is conditional.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(
                f"z has shape {list(z.shape)}, expected [N, {self.z_dim}]; "
                "pass one row of standard normal numbers a sample."
            )
        if self.c_dim and (label is None or label.shape != (len(z), self.c_dim)):
            got = "none" if label is None else f"shape {list(label.shape)}"
            raise ValueError(
                f"label: got {got}, expected [{len(z)}, {self.c_dim}]; "
                "this generator is conditional: pass one (one-hot) row a sample."
            )
        if not self.c_dim and label is not None:
            raise ValueError("label: got one, expected none; this generator is unconditional: leave the label out.")
        if not math.isfinite(psi):
            raise ValueError(f"psi is {psi}, expected a finite number, as a rule from 0 to 1.")
        if cutoff is not None and not 0 <= cutoff <= self.num_ws:
            raise ValueError(f"cutoff is {cutoff}, expected 0..{self.num_ws} or None to truncate every row.")
        dtype = self.w_avg.dtype
        w = self.mapping(z.to(dtype), None if label is None else label.to(dtype))  # [N, C]
        truncated = w if psi == 1.0 else self.w_avg.lerp(w, psi)
        rows = self.num_ws if cutoff is None else cutoff
        return torch.stack([truncated] * rows + [w] * (self.num_ws - rows), dim=1)

    def one_hot(self, label: int | None, count: int) -> Tensor | None:
        """A class as `map` wants it, [count, c_dim]; None for an unconditional generator.

        Raises ValueError for a class that is missing, out of range, or not asked for.
        """
        if not self.c_dim:
            if label is not None:
                raise ValueError(f"got label {label}; this generator has no classes, leave the label out.")
            return None
        if label is None or not 0 <= label < self.c_dim:
            raise ValueError(f"got label {label}; this generator needs a class from 0 to {self.c_dim - 1}.")
        row = torch.zeros(self.c_dim, device=self.w_avg.device)
        row[label] = 1
        return row.expand(count, -1)

    def synthesize(self, ws: Tensor, noise: Noise = "const", rng: Rng = None) -> Tensor:
        """ws [N, L, C] -> images.

        noise: "const", the generator's own maps, the same for the whole batch; "random", fresh maps a sample drawn
        from `rng`; "none"; or a list of maps, as `draw_noise` gives them.

        Under torch.autocast all blocks but the last run in its type; images are float32 all the same.
        """
        raise NotImplementedError

    def draw_noise(self, count: int, rng: Rng = None) -> list[Tensor]:
        """Random noise maps for `count` samples, one [count, 1, R, R] a convolution, to share between generators.

        rng: one torch.Generator for the batch, or one a sample, which makes a sample independent of its batch.
        """
        if not (rng is None or isinstance(rng, torch.Generator)) and len(rng) != count:
            raise ValueError(f"rng: got {len(rng)} generators, expected {count}; pass one a sample, or a single one.")
        device = self.w_avg.device
        return [_normal(count, layer.resolution, rng).to(device) for layer in self.layers() if layer.kind == "conv"]

    def layers(self) -> tuple[Layer, ...]:
        """Every trainable unit of the synthesis network, in the order it runs."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """JSON-ready settings; `build(spec)` gives the same architecture back."""
        raise NotImplementedError

    def space(self) -> str:
        """Fingerprint of the mapping network and w_avg: latents fit every generator that has the same one."""
        digest = hashlib.sha256()
        for name, value in sorted(self.mapping.state_dict().items()):
            array = value.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{list(array.shape)}".encode())
            digest.update(array.numpy().tobytes())
        return digest.hexdigest()

    def _check_ws(self, ws: Tensor) -> None:
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws has shape {list(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]; "
                "use map(z), or repeat a single w over the rows."
            )

    def _noise_maps(self, noise: Noise, count: int, rng: Rng, const: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """One map a convolution, broadcastable to [N, 1, R, R], or None where there is no noise."""
        if isinstance(noise, str):
            if noise == "const":
                return const
            if noise == "random":
                return self.draw_noise(count, rng)
            if noise == "none":
                return [None] * len(const)
            raise ValueError(f"noise is {noise!r}, expected 'const', 'random', 'none' or a list of maps.")
        if len(noise) != len(const):
            raise ValueError(f"noise: got {len(noise)} maps, expected {len(const)}, one a convolution; see draw_noise.")
        for index, (given, own) in enumerate(zip(noise, const, strict=True)):
            size = own.shape[-1]
            if given.shape not in ((size, size), (1, 1, size, size), (count, 1, size, size)):
                raise ValueError(
                    f"noise map {index} has shape {list(given.shape)}, expected [{size}, {size}] "
                    f"or [{count}, 1, {size}, {size}]; see draw_noise."
                )
        return noise


def _normal(count: int, size: int, rng: Rng) -> Tensor:
    if rng is None or isinstance(rng, torch.Generator):
        return torch.randn(count, 1, size, size, generator=rng, device=rng.device if rng else None)
    return torch.stack([torch.randn(1, size, size, generator=one, device=one.device) for one in rng])


def changed_settings(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass that differ from its defaults, as JSON-ready values."""
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


def _build_settings(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Turn a JSON object into a settings dataclass, nested ones included."""
    nested = {field.name: field.default_factory for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        factory = nested.get(name)
        if isinstance(value, Mapping) and isinstance(factory, type) and dataclasses.is_dataclass(factory):
            value = _build_settings(factory, value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)
