"""What an adaptation changed, apart from the generator it changed: small, mixable, applied in any strength.

Adapted weights are the source's plus a change; parts and sums of such changes are generators too (cross-model
interpolation in the appendix of StyleGAN-NADA, arXiv:2108.00946). The mapping network never changes, so its fingerprint
tells which generators a change fits.

A file is safetensors: the changes by the parameters' names, and as metadata `kind`, `version`, `space` and, in JSON, a
free `provenance`. A compact one (version 2) holds NAME.left and NAME.right for kernels whose change is their product,
and tells the shapes of such kernels as `shapes`, in JSON. Version 3 holds NAME.gain, one number an input channel, for
kernels that were multiplied by 1 + gain.
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

from ..io.checkpoint_file import RawCheckpoint, read_checkpoint
from ..io.errors import DamagedCheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_description, read_object, write_safetensors
from .generator import Generator
from .low_rank import channel_gain, factorize

KIND = "nada_domain"

VERSION = 3

_GAIN = ".gain"


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Domain:
    """What an adaptation changed.

    changes: parameter name -> new minus old, float32, on the CPU; what stayed as it was is not in it.
    space: `Generator.space()` of the source, the fingerprint of the mapping network, which stays as it was.
    provenance: JSON-ready and free; where the change comes from.
    gains: name of a kernel that was multiplied by 1 + gain -> gain, one number an input channel; it is not in changes.
    """

    changes: dict[str, Tensor] = field(repr=False)
    space: str
    provenance: dict[str, Any]
    gains: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def between(cls, source: Generator, adapted: Generator, provenance: Mapping[str, Any] | None = None) -> Domain:
        """The change that leads from one generator to the other, whatever their devices. Noise maps are no parameters:
        they stay the source's.

        Raises:
            ValueError: when the two differ in their architecture or in their mapping network.
        """
        if source.spec() != adapted.spec():
            raise ValueError(
                f"got generators of different architecture, {source.spec()} and {adapted.spec()}; "
                "expected one generator before and after an adaptation."
            )
        if source.space() != adapted.space():
            raise ValueError(
                "got generators with different mapping networks, expected one generator before and after "
                "an adaptation; name the one the adaptation started from."
            )
        new = dict(adapted.named_parameters())
        changes, gains = {}, {}
        for name, parameter in source.named_parameters():
            old = _plain(parameter)
            change = _plain(new[name]) - old
            if not change.any():
                continue
            if (gain := channel_gain(old, change)) is not None:
                gains[name] = gain
            else:
                changes[name] = change
        return cls(changes, source.space(), dict(provenance or {}), gains)

    def apply(self, generator: Generator, strength: float = 1.0) -> Generator:
        """A new generator with parameters old + strength * change, or old * (1 + strength * gain), at rest, on the
        given one's device; the given one stays as it is.

        strength: any finite number. 0 gives the source's weights bit for bit, 1 the adapted ones up to rounding, what
        lies between interpolates, what lies beyond exaggerates or turns the other way. A second domain applied to the
        result mixes the two.

        Raises:
            ValueError: for a generator of another space, for parameters that do not fit, and for a strength that is
                not finite or takes weights beyond what they can hold.
        """
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
            raise ValueError(f"got strength {strength!r}, expected a finite number; 1 is the domain as it was trained.")
        if (space := generator.space()) != self.space:
            raise ValueError(
                f"this domain was made from another generator: its mapping network is {self.space[:12]}, "
                f"this one's {space[:12]}. Load the generator the adaptation started from, or a child "
                "of it."
            )
        known = dict(generator.named_parameters())
        if unknown := [name for name in (*self.changes, *self.gains) if name not in known]:
            raise ValueError(
                f"got a domain that changes {len(unknown)} parameters this generator does not have, the "
                f"first is {unknown[0]}. Load the generator the adaptation started from."
            )
        for name, change in self.changes.items():
            if change.shape != known[name].shape:
                raise ValueError(
                    f"got a change of {name} of shape {list(change.shape)}, expected "
                    f"{list(known[name].shape)}. Load the generator the adaptation started from."
                )
        for name, gain in self.gains.items():
            kernel = known[name]
            if kernel.ndim != 4 or gain.shape != kernel.shape[1:2]:
                raise ValueError(
                    f"got gains of {name} of shape {list(gain.shape)} for a kernel of shape "
                    f"{list(kernel.shape)}. Load the generator the adaptation started from."
                )
        with torch.inference_mode(False), torch.no_grad():  # else a host's inference mode would forbid training it
            made = copy.deepcopy(generator).requires_grad_(False).eval()
            made.zero_grad(set_to_none=True)
            made.source = None  # the file's weights are what it no longer has
            for name in (*self.changes, *self.gains) if strength else ():  # even -0 stays -0
                weight = made.get_parameter(name)
                change = (
                    self.changes[name].to(weight)
                    if name in self.changes
                    else (weight * self.gains[name].to(weight)[:, None, None])
                )
                weight.add_(change * strength)
                if not weight.isfinite().all():
                    raise ValueError(
                        f"strength {strength:g} takes {name} beyond what {weight.dtype} holds; take a "
                        "number closer to 1."
                    )
        return made


class Adapted(Protocol):
    """Anything that knows its domain, an `Adaptation` for one."""

    @property
    def domain(self) -> Domain: ...


def save_domain(
    adapted: Domain | Adapted,
    path: str | Path,
    half: bool = False,
    provenance: Mapping[str, Any] | None = None,
    compact: bool = False,
) -> None:
    """Write what an adaptation changed; reading gives it back bit for bit. `path` holds all of it or what it held.

    adapted: a Domain, or an Adaptation. half: stored as float16, half the size, with changes rounded to three digits.
    provenance: JSON-ready, added to what the domain itself tells. compact: kernels that were trained in low rank are
    stored as thin factors, which read back up to rounding; a reader of format version 1 cannot.

    Raises:
        ValueError: for anything without a domain, and for numbers that the file could not hold; nothing is written.
    """
    domain = adapted if isinstance(adapted, Domain) else getattr(adapted, "domain", None)
    if not isinstance(domain, Domain):
        raise ValueError(
            f"got {type(adapted).__name__}, expected a Domain or an Adaptation; Domain.between(source, "
            "adapted) makes one of two generators."
        )
    changes, shapes = _apart(domain.changes) if compact else (domain.changes, {})
    changes = {**changes, **{f"{name}{_GAIN}": gain for name, gain in domain.gains.items()}}
    changes = {name: change.half() if half else change for name, change in changes.items()}
    if broken := [name for name, change in changes.items() if not change.isfinite().all()]:
        raise ValueError(
            f"{broken[0]} and {len(broken) - 1} more hold NaN or infinity{' in float16' if half else ''}; "
            "nothing was written. Save another domain" + (", or without half." if half else ".")
        )
    version = 3 if domain.gains else 2 if shapes else 1
    description = {"kind": KIND, "version": version, **({"shapes": shapes} if shapes else {}), "space": domain.space}
    provenance = {**domain.provenance, **(provenance or {})}
    write_safetensors(path, changes, {**description, "provenance": provenance})


def _apart(changes: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Factors instead of kernels where they are thinner, and the shapes of those kernels."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, change in changes.items():
        thin = factorize(change) if change.ndim == 4 and change.isfinite().all() else None
        if thin is None:
            stored[name] = change
            continue
        shapes[name] = list(change.shape)
        stored[f"{name}.left"], stored[f"{name}.right"] = thin
    return stored, shapes


def _together(stored: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    factors = {f"{name}.{side}" for name in shapes for side in ("left", "right")}
    changes = {name: value for name, value in stored.items() if name not in factors}
    for name, shape in shapes.items():
        changes[name] = (stored[f"{name}.left"] @ stored[f"{name}.right"]).view(shape)
    return changes


def read_domain(path: str | Path) -> Domain:
    """What `save_domain` wrote, as float32 on the CPU.

    Raises:
        CheckpointError: for a file that is missing, is no domain (the message says what it is, where that can be told),
            is damaged, holds NaN or infinity, or is of a newer format.
    """
    raw = read_checkpoint(path)
    if raw.container != "safetensors" or raw.hints.get("kind") != KIND:
        raise UnsupportedCheckpointError(f"{path}: no domain; it looks like {_guess(raw)}.")
    description = read_description(path, raw.hints, VERSION)
    provenance = read_object(path, raw.hints, "provenance")
    shapes = read_object(path, raw.hints, "shapes")
    if odd := [name for name, value in raw.tensors.items() if not value.is_floating_point()]:
        raise DamagedCheckpointError(
            f"{path}: {odd[0]} holds {raw.tensors[odd[0]].dtype}, which is no change of a "
            "weight. The file was changed; copy it again."
        )
    try:
        space = description["space"]
        changes = _together({name: _plain(value) for name, value in raw.tensors.items()}, shapes)
    except (KeyError, RuntimeError, TypeError) as error:
        raise DamagedCheckpointError(
            f"{path}: a domain that is not whole ({type(error).__name__}: {error}). "
            "The file was changed; copy it again."
        ) from error
    gains = {name: changes.pop(name) for name in list(changes) if name.endswith(_GAIN)}
    return Domain(changes, space, provenance, {name.removesuffix(_GAIN): gain for name, gain in gains.items()})


def load_domain(generator: Generator, path: str | Path, strength: float = 1.0) -> Generator:
    """A new generator: the given one, which stays as it is, taken into the domain of a file. See `Domain.apply`.

    Raises:
        CheckpointError: for files that are no sound domain.
        ValueError: for a domain of another generator and for a strength that is not finite.
    """
    return read_domain(path).apply(generator, strength)


def _plain(value: Tensor) -> Tensor:
    """A float32 copy of our own on the CPU: a file's tensor may be half precision or lie in the mapped file."""
    return value.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format, copy=True)


def _guess(raw: RawCheckpoint) -> str:
    if "spec" in raw.hints and raw.container == "safetensors":
        return "a generator saved by this package; load it with load_generator"
    if raw.hints.get("kind") == "nada_run":
        return "the autosave of a run; resume the run from it"
    return (
        f"other weights, whose {len(raw.tensors)} tensors begin with {sorted(raw.tensors)[:3]}; expected a file "
        "written by save_domain"
    )
