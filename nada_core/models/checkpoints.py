"""Generators in and out of files.

Our own file is safetensors: the generator's state by its own names, and as metadata, each in JSON, its `family`, its
`spec`, the `version` of this format and a free `provenance`: where the weights come from.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import BUILTIN, RawCheckpoint, read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_metadata, write_safetensors, write_torch
from .generator import Generator
from .layout import Layout, Reading, find_network
from .stylegan2 import StyleGAN2
from .stylegan2_layouts import LAYOUTS, to_rosinality
from .tensorflow_layout import TENSORFLOW

BUILTINS = {"portraits": BUILTIN / "generator.safetensors"}

VERSION = 1

# What other files can be told by, so that the refusal can say what the file is.
_SIGNATURES = (
    ("synthesis.L0_", "a StyleGAN3 generator, which is not supported yet"),
    ("encoder.body.", "an encoder (pSp, e4e, ReStyle); load it with load_encoder"),
    ("state_dict.encoder.", "an encoder (pSp, e4e, ReStyle); load it with load_encoder"),
    ("visual.", "a CLIP model; load it as a guide instead"),
    ("text_model.", "a CLIP model; load it as a guide instead"),
    ("final_conv.", "a discriminator; a generator is needed"),
    ("b4.mbstd", "a discriminator; a generator is needed"),
    ("b4.conv.", "a discriminator; a generator is needed"),
    ("/FromRGB", "a discriminator of TensorFlow; a generator is needed"),
    ("/StyleMod/", "a StyleGAN1 generator of TensorFlow, which is not supported"),
    ("4x4/Dense/", "a Progressive GAN of TensorFlow, which is not supported"),
    ("g_mapping.", "a StyleGAN1 generator, which is not supported"),
    ("progression.", "a StyleGAN1 generator of rosinality, which is not supported"),
    ("to_style1.", "a generator of lucidrains/stylegan2-pytorch, which has another architecture"),
    ("modulated_conv.", "a StyleGAN2 of BasicSR or GFPGAN, which is not supported"),
)


def load_generator(path_or_builtin: str | Path) -> Generator:
    """A generator from a file, or by the name of a built-in one: float32, on the CPU, frozen, in evaluation mode.

    Reads our safetensors, and StyleGAN2 as NVIDIA (.pkl) and rosinality (.pt) save it, the averaged copy before the
    other. Raises CheckpointError.
    """
    path = Path(BUILTINS.get(str(path_or_builtin), path_or_builtin))
    raw = read_checkpoint(path)
    layout, prefix = _find_layout(path, raw)
    try:
        generator = _fill(layout.read(raw, prefix))
    except CheckpointError as error:
        raise type(error)(f"{path}, read as {layout.name}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}, read as {layout.name}: {error}") from error
    generator.source = raw.sha256
    generator.recommended = _recommended(path, raw.hints) if raw.container == "safetensors" else {}
    return generator


def _find_layout(path: Path, raw: RawCheckpoint) -> tuple[Layout, str]:
    if raw.container == "safetensors" and "spec" in raw.hints:
        return OURS, ""
    layouts = (*LAYOUTS, TENSORFLOW)
    tried = "; ".join(layout.name for layout in (OURS, *layouts))
    try:
        found = find_network(raw, layouts)
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"{path}: {error} Tried: {tried}.") from error
    if found is None or any("encoder.body." in name for name in raw.tensors):  # its decoder is not what it is for
        raise UnsupportedCheckpointError(f"{path}: no generator; it looks like {_guess(raw)}. Tried: {tried}.")
    return found


def read_recommended(path_or_builtin: str | Path) -> dict[str, Any]:
    """Read the recommended settings of a generator file without its weights; empty for files without any.

    Raises:
        CheckpointError: when the file does not exist or its metadata is damaged.
    """
    path = Path(BUILTINS.get(str(path_or_builtin), path_or_builtin))
    return _recommended(path, read_metadata(path)) if path.suffix == ".safetensors" else {}


def _recommended(path: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(hints.get("recommended", "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its recommended settings are not a JSON object ({error}); the file was changed. Copy it again."
        ) from error


def save_generator(
    generator: Generator,
    path: str | Path,
    provenance: Mapping[str, Any],
    half: bool = False,
    recommended: Mapping[str, Any] | None = None,
) -> None:
    """Write a generator as safetensors; loading it restores the weights bit for bit.

    Args:
        provenance: JSON-ready description of where the weights come from, for `read_provenance`.
        half: store the synthesis network as float16. The mapping network stays float32, so latents keep their meaning.
        recommended: JSON-ready settings for `Generator.recommended_settings`; None keeps those of the generator.

    Raises:
        ValueError: for weights that hold NaN or infinity, before anything is written.
    """
    state = dict(generator.state_dict())
    if half:
        state = {name: value if name.startswith("mapping.") else value.half() for name, value in state.items()}
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{broken[0]} and {len(broken) - 1} more hold NaN or infinity{' in float16' if half else ''}; "
            "nothing was written. Save an earlier state" + (", or without half." if half else ".")
        )
    spec = generator.spec()
    recommended = generator.recommended if recommended is None else recommended
    metadata = {
        "family": json.dumps(spec["family"]),
        "spec": json.dumps(spec),
        "version": json.dumps(VERSION),
        "provenance": json.dumps(dict(provenance)),
    }
    if recommended:
        metadata["recommended"] = json.dumps(dict(recommended))
    write_safetensors(path, state, metadata)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What `save_generator` was told about the weights' origin; empty where the file says nothing."""
    told = read_metadata(path).get("provenance", "{}")
    try:
        return dict(json.loads(told))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its provenance is not a JSON object ({error}); the weights may be sound. Load "
            "the generator and save it again."
        ) from error


def export_rosinality(generator: Generator, path: str | Path) -> None:
    """Write a .pt for the many tools that read rosinality's format: {"g_ema", "latent_avg"}."""
    if not isinstance(generator, StyleGAN2):
        raise ValueError(f"rosinality's format holds StyleGAN2 only; this is a {generator.family}. Use save_generator.")
    write_torch(path, {"g_ema": to_rosinality(generator), "latent_avg": generator.w_avg.detach().cpu().clone()})


def _read_ours(raw: RawCheckpoint, _: str) -> Reading:
    try:
        version, spec = json.loads(raw.hints.get("version", "0")), json.loads(raw.hints["spec"])
    except ValueError as error:
        raise CheckpointError(f"its description is not JSON ({error}). The file was changed; copy it again.") from error
    if not isinstance(version, int) or version > VERSION:
        raise UnsupportedCheckpointError(
            f"the file has format version {version}, known is {VERSION}. Update this package."
        )
    return Reading(spec, dict(raw.tensors), {})


OURS = Layout("a generator saved by this package", "", _read_ours)


def _fill(reading: Reading) -> Generator:
    """Build what the spec says and give it the state, which must fit exactly."""
    with torch.device("meta"):
        generator = build(reading.spec)
    expected = generator.state_dict()
    # Float32 copies of our own: a file's tensors may be half precision, share storage, or lie in the mapped file.
    state = {
        name: value.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, value in reading.state.items()
    }
    estimate = "mapping.w_avg" not in state and not generator.c_dim
    maps = {name: value for name, value in expected.items() if name.endswith(".noise_const")}
    if maps.keys() & state.keys():
        maps = {}
    absent = maps | ({"mapping.w_avg": expected["mapping.w_avg"]} if estimate else {})
    _compare(expected, state | absent, reading.names)  # before anything of the size the file claims is made
    rng = torch.Generator().manual_seed(0)  # early files have no noise maps; any will do that stay the same
    state |= {name: torch.randn(value.shape, generator=rng) for name, value in maps.items()}
    if estimate:
        state["mapping.w_avg"] = torch.zeros(generator.w_dim)
    generator.load_state_dict(state, assign=True)
    generator.eval().requires_grad_(False)
    if estimate:
        rng = torch.Generator().manual_seed(0)
        z = torch.randn(10_000, generator.z_dim, generator=rng)
        generator.w_avg.copy_(generator.mapping(z).mean(dim=0))
    return generator


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    def some(found: list[str]) -> str:
        return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")

    missing = [names.get(name, name) for name in expected if name not in state]
    extra = [names.get(name, name) for name in state if name not in expected]
    wrong = [
        f"{names.get(name, name)} {list(state[name].shape)} where {list(value.shape)} was expected"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    complaints = [
        f"{word} {some(found)}"
        for word, found in (("missing are", missing), ("unexpected are", extra), ("ill-shaped are", wrong))
        if found
    ]
    if complaints:
        raise CheckpointError(
            f"the tensors do not make up one generator: {'; '.join(complaints)}. "
            "The file is incomplete, or a variant of the architecture that is not supported."
        )


def _guess(raw: RawCheckpoint) -> str:
    if raw.hints.get("kind") == "nada_domain":
        return "a domain; load the generator it was made from and apply it to that one"
    for mark, meaning in _SIGNATURES:
        if any(mark in name for name in raw.tensors):
            return meaning
    return f"none of the usual files; its {len(raw.tensors)} tensors begin with {sorted(raw.tensors)[:3]}"


FAMILIES: dict[str, Callable[..., Generator]] = {StyleGAN2.family: StyleGAN2}


def build(spec: Mapping[str, Any]) -> Generator:
    """The architecture a spec describes, freshly initialised."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"got the spec {spec!r:.80}, expected what Generator.spec() gives: names and values.")
    settings = dict(spec)
    family = settings.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(
            f"spec names the generator family {family!r}; known are {sorted(FAMILIES)}. "
            "A newer version of this package may have written it."
        )
    try:
        return FAMILIES[family](**settings)
    except (TypeError, RuntimeError) as error:  # a wrong kind of value; a size beyond any memory
        raise ValueError(f"spec does not fit the family {family!r}: {error}. Got {sorted(settings)}.") from error
