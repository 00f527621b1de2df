"""Domains: the weight change of an adaptation without its generator (StyleGAN-NADA, arXiv:2108.00946, appendix).

A domain can be applied at any strength, and several can be combined. Only generators with the source's mapping network
fit, which an adaptation never changes.

The file is safetensors: changes by parameter name, and as metadata `kind`, `version`, `space` and `provenance` (JSON).
Version 2 stores kernels of low rank as NAME.left and NAME.right, and their `shapes` as JSON. Version 3, which is read
but no longer produced by training, stores NAME.gain: kernels scaled by 1 + gain per input channel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..io.checkpoint_file import read_checkpoint
from ..io.errors import DamagedCheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_description, read_object, write_safetensors
from .file_kinds import describe
from .generator import Generator
from .low_rank import factorize
from .state_dict import check_finite

KIND = "nada_domain"

VERSION = 3

_GAIN = ".gain"
_MOST_NUMBERS = 1 << 26  # of all low-rank changes of a file; StyleGAN2 has half as many


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Domain:
    """The weight change of an adaptation.

    Attributes:
        changes: parameter name -> new - old, float32, on the CPU; unchanged parameters are absent.
        space: `Generator.space()` of the source.
        provenance: JSON-ready description of where the change comes from.
        gains: name of a kernel [O, I, k, k] -> gain [I]; the kernel is multiplied by 1 + gain. Disjoint from changes.
    """

    changes: dict[str, Tensor] = field(repr=False)
    space: str
    provenance: dict[str, Any]
    gains: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def between(cls, source: Generator, adapted: Generator, provenance: Mapping[str, Any] | None = None) -> Domain:
        """Compute the change from one generator to another, on any devices. Noise maps are not part of it.

        Raises:
            ValueError: if the two differ in architecture or mapping network.
        """
        if source.spec() != adapted.spec():
            raise ValueError(f"Got generators of different architecture, {source.spec()} and {adapted.spec()}.")
        if source.space() != adapted.space():
            raise ValueError(
                "Got generators with different mapping networks, expected a source and its adaptation: "
                f"{source.space()[:12]} and {adapted.space()[:12]}."
            )
        new = dict(adapted.named_parameters())
        changes = {name: _copy(new[name]) - _copy(old) for name, old in source.named_parameters()}
        changes = {name: change for name, change in changes.items() if change.any()}
        return cls(changes, source.space(), dict(provenance or {}))

    def apply(self, generator: Generator, strength: float = 1.0) -> Generator:
        """Return a copy of the generator with parameters old + strength * change, frozen, on the same device.

        Args:
            strength: 0 gives the weights of the source bit for bit, 1 the adapted ones up to rounding; other values
                interpolate or extrapolate. Applying a second domain to the result combines both.

        Raises:
            ValueError: for a generator with another mapping network or other parameters, and for a strength that is
                not finite or makes weights overflow.
        """
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
            raise ValueError(f"got strength {strength!r}, expected a finite number; 1 is the domain as trained.")
        self._check_fits(generator)
        with torch.inference_mode(False), torch.no_grad():  # parameters made in inference mode could not be trained
            result = copy.deepcopy(generator).requires_grad_(False).eval()
            result.zero_grad(set_to_none=True)
            result.source = None  # its weights are no longer those of the file
            for name in (*self.changes, *self.gains) if strength else ():  # adding 0 would turn -0 into 0
                weight = result.get_parameter(name)
                gain = self.gains.get(name)
                change = self.changes[name].to(weight) if gain is None else weight * gain.to(weight)[:, None, None]
                weight.add_(change * strength)
                if not weight.isfinite().all():
                    raise ValueError(f"strength {strength:g} takes {name} beyond what {weight.dtype} holds.")
        return result

    def _check_fits(self, generator: Generator) -> None:
        if not generator.accepts(self.space):
            raise ValueError(
                f"this domain was made from another generator: got the mapping network {generator.space()[:12]}, "
                f"expected {self.space[:12]}. Load the generator the adaptation started from, or one adapted from it."
            )
        shapes = {name: tuple(parameter.shape) for name, parameter in generator.named_parameters()}
        for name, tensor in (*self.changes.items(), *self.gains.items()):
            shape = shapes.get(name)
            if name in self.gains:
                shape = shape[1:2] if shape is not None and len(shape) == 4 else None
            if tensor.shape != shape:
                expected = "no such parameter" if shape is None else list(shape)
                raise ValueError(
                    f"Got a change of {name} of shape {list(tensor.shape)}, expected {expected}. Load the generator "
                    "the adaptation started from."
                )


class Adapted(Protocol):
    """An object with a domain, such as an `Adaptation`."""

    @property
    def domain(self) -> Domain: ...


def save_domain(
    adapted: Domain | Adapted,
    path: str | Path,
    half: bool = False,
    provenance: Mapping[str, Any] | None = None,
    compact: bool = False,
) -> None:
    """Write a domain atomically; reading restores it bit for bit.

    Args:
        adapted: a Domain or an Adaptation.
        half: store float16, which rounds changes to three digits.
        provenance: JSON-ready, added to that of the domain.
        compact: store changes of low rank as factors, which restores them up to rounding.

    Raises:
        ValueError: for anything without a domain, and for NaN or infinity. Nothing is written.
    """
    domain = adapted if isinstance(adapted, Domain) else getattr(adapted, "domain", None)
    if not isinstance(domain, Domain):
        raise ValueError(
            f"Got {type(adapted).__name__}, expected a Domain or an Adaptation; see Domain.between(source, adapted)."
        )
    changes, shapes = _factorize(domain.changes) if compact else (domain.changes, {})
    changes = {**changes, **{f"{name}{_GAIN}": gain for name, gain in domain.gains.items()}}
    changes = {name: change.half() if half else change for name, change in changes.items()}
    check_finite(changes, half)
    version = 3 if domain.gains else 2 if shapes else 1
    description = {"kind": KIND, "version": version, **({"shapes": shapes} if shapes else {}), "space": domain.space}
    provenance = {**domain.provenance, **(provenance or {})}
    write_safetensors(path, changes, {**description, "provenance": provenance})


def _factorize(changes: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Replace changes of low rank by their factors; also return the shapes of these changes."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, change in changes.items():
        factors = factorize(change) if change.ndim == 4 and change.isfinite().all() else None
        if factors is None:
            stored[name] = change
        else:
            shapes[name] = list(change.shape)
            stored[f"{name}.left"], stored[f"{name}.right"] = factors
    return stored, shapes


def _multiply(stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    factors = {f"{name}.{side}" for name in shapes for side in ("left", "right")}
    changes = {name: value for name, value in stored.items() if name not in factors}
    count = sum(math.prod(shape) for shape in shapes.values())
    if not 0 <= count <= _MOST_NUMBERS:
        raise ValueError(f"products of {count} numbers, expected at most {_MOST_NUMBERS}")
    for name, shape in shapes.items():
        if math.prod(shape) != stored[f"{name}.left"].shape[0] * stored[f"{name}.right"].shape[-1]:
            raise ValueError(f"factors of {name} that do not give {shape}")
        changes[name] = (stored[f"{name}.left"] @ stored[f"{name}.right"]).view(shape)
    return changes


def read_domain(path: str | Path) -> Domain:
    """Read a file of `save_domain` as float32 on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or of a newer format, or holds NaN.
    """
    raw = read_checkpoint(path)
    if raw.kind != KIND:
        raise UnsupportedCheckpointError(f"{path}: no domain; it looks like {describe(raw, 'as a domain')}.")
    description = read_description(path, raw.hints, VERSION)
    provenance = read_object(path, raw.hints, "provenance")
    shapes = read_object(path, raw.hints, "shapes")
    if odd := [name for name, value in raw.tensors.items() if not value.is_floating_point()]:
        raise DamagedCheckpointError(
            f"{path}: {odd[0]} has type {raw.tensors[odd[0]].dtype}, expected floats; copy the file again."
        )
    try:
        space = description["space"]
        changes = _multiply({name: _copy(value) for name, value in raw.tensors.items()}, shapes)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(
            f"{path}: the domain is not complete ({type(error).__name__}: {error}); copy the file again."
        ) from error
    gains = {name: changes.pop(name) for name in list(changes) if name.endswith(_GAIN)}
    return Domain(changes, space, provenance, {name.removesuffix(_GAIN): gain for name, gain in gains.items()})


def load_domain(generator: Generator, path: str | Path, strength: float = 1.0) -> Generator:
    """Apply the domain of a file to a copy of the generator; see `read_domain` and `Domain.apply`."""
    return read_domain(path).apply(generator, strength)


def _copy(value: Tensor) -> Tensor:
    """Copy to float32 on the CPU: the tensors of a file may be half precision or memory-mapped."""
    return value.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format, copy=True)
