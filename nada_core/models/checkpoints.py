"""Load and save generators.

Our own format is safetensors: the state dict, and as JSON metadata `family`, `spec`, the `version` of the format,
`provenance`, and optionally `recommended` settings. A `license` in the metadata is read, and never guessed.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..io.checkpoint_file import BUILTIN, RawCheckpoint, read_checkpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from ..io.metadata import read_description, read_metadata, read_object, write_safetensors, write_torch
from .file_kinds import describe
from .generator import Generator
from .layout import Layout, Reading, find_network
from .state_dict import check_finite, load_weights
from .stylegan2 import StyleGAN2
from .stylegan2_layouts import LAYOUTS, to_rosinality
from .tensorflow_layout import TENSORFLOW

BUILTINS = {"portraits": BUILTIN / "generator.safetensors"}

VERSION = 1


def load_generator(path_or_builtin: str | Path) -> Generator:
    """Load a generator: float32, on the CPU, frozen, in evaluation mode.

    Args:
        path_or_builtin: "portraits", or a file: our safetensors, or StyleGAN2 as NVIDIA (.pkl), rosinality (.pt) or
            TensorFlow (.pkl) store it. If the file has several copies, the moving average is used.

    Raises:
        CheckpointError: the file is missing, damaged, ambiguous, or of another kind.
    """
    path = Path(BUILTINS.get(str(path_or_builtin), path_or_builtin))
    raw = read_checkpoint(path)
    layout, prefix = _find_layout(path, raw)
    try:
        generator = assemble(layout.read(raw, prefix))
    except CheckpointError as error:
        raise type(error)(f"{path}, read as {layout.name}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}, read as {layout.name}: {error}") from error
    generator.source = raw.sha256
    generator.layout = layout.name
    if raw.container == "safetensors":
        generator.recommended = read_object(path, raw.hints, "recommended")
        generator.license = "MIT" if path in BUILTINS.values() else _license(raw.hints)
    return generator


def _license(hints: Mapping[str, Any]) -> str | None:
    """The license in the metadata of a file, under the name that other programs use, too."""
    stated = hints.get("license") or hints.get("modelspec.license")
    return stated.strip() or None if isinstance(stated, str) else None


def _find_layout(path: Path, raw: RawCheckpoint) -> tuple[Layout, str]:
    if raw.container == "safetensors" and "spec" in raw.hints:
        return OURS, ""
    layouts = (*LAYOUTS, TENSORFLOW)
    tried = "; ".join(layout.name for layout in (OURS, *layouts))
    try:
        network = find_network(raw, layouts)
    except UnsupportedCheckpointError as error:
        raise UnsupportedCheckpointError(f"{path}: {error} Tried: {tried}.") from error
    if network is None or any("encoder.body." in name for name in raw.tensors):  # an encoder contains a generator
        raise UnsupportedCheckpointError(
            f"{path}: no generator; it looks like {describe(raw, 'as a generator')}. Tried: {tried}."
        )
    return network


def read_recommended(path_or_builtin: str | Path) -> dict[str, Any]:
    """Read the recommended settings of a generator file without its weights; empty for files without any.

    Raises:
        CheckpointError: when the file does not exist or its metadata is damaged.
    """
    path = Path(BUILTINS.get(str(path_or_builtin), path_or_builtin))
    return read_object(path, read_metadata(path), "recommended") if path.suffix == ".safetensors" else {}


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
    check_finite(state, half)
    spec = generator.spec()
    recommended = generator.recommended if recommended is None else recommended
    description = {"family": json.dumps(spec["family"]), "spec": spec, "version": VERSION}
    optional = {"recommended": dict(recommended)} if recommended else {}
    write_safetensors(path, state, {**description, "provenance": dict(provenance), **optional})


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Read the provenance that `save_generator` stored; empty if there is none."""
    return read_object(path, read_metadata(path), "provenance")


def export_rosinality(generator: Generator, path: str | Path) -> None:
    """Write a .pt in the format of rosinality/stylegan2-pytorch, {"g_ema", "latent_avg"}, which many tools read.

    Raises:
        ValueError: for settings that the format cannot express.
    """
    if not isinstance(generator, StyleGAN2):
        raise ValueError(f"Got a {generator.family}, expected a StyleGAN2; use save_generator.")
    write_torch(path, {"g_ema": to_rosinality(generator), "latent_avg": generator.w_avg.detach().cpu().clone()})


def _read_ours(raw: RawCheckpoint, _: str) -> Reading:
    spec = read_description("metadata", {"version": "0", **raw.hints}, VERSION, "spec")["spec"]
    return Reading(spec, dict(raw.tensors), {})


OURS = Layout("a generator saved by this package", "", _read_ours)


def assemble(reading: Reading) -> Generator:
    """Build the generator of a reading and load its weights: float32, frozen, in evaluation mode.

    Noise maps and w_avg, which some files lack, are drawn with a fixed seed and estimated.

    Raises:
        CheckpointError: tensors are missing, unexpected, or have another shape.
        ValueError: the spec describes no generator.
    """
    with torch.device("meta"):
        generator = build(reading.spec)
    expected = generator.state_dict()
    absent = [name for name in expected if name.endswith(".noise_const")]
    if any(name in reading.state for name in absent):
        absent = []
    estimate_w_avg = "mapping.w_avg" not in reading.state and not generator.c_dim
    load_weights(generator, reading.state, reading.names, [*absent, *(["mapping.w_avg"] if estimate_w_avg else [])])

    rng = torch.Generator().manual_seed(0)
    generator.load_state_dict(
        {name: torch.randn(expected[name].shape, generator=rng) for name in absent}, strict=False, assign=True
    )
    if estimate_w_avg:
        z = torch.randn(10_000, generator.z_dim, generator=torch.Generator().manual_seed(0))
        generator.mapping.register_buffer("w_avg", generator.mapping(z).mean(dim=0))
    return generator


FAMILIES: dict[str, Callable[..., Generator]] = {StyleGAN2.family: StyleGAN2}


def build(spec: Mapping[str, Any]) -> Generator:
    """Build a generator from `Generator.spec()`, with new weights.

    Raises:
        ValueError: for an unknown family or settings that do not fit it.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"got the spec {spec!r:.80}, expected the result of Generator.spec().")
    settings = dict(spec)
    family = settings.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"Got the generator family {family!r}, known are {sorted(FAMILIES)}. Update this package.")
    try:
        return FAMILIES[family](**settings)
    except (OverflowError, RuntimeError, TypeError) as error:  # a value of a wrong type, or a size beyond any memory
        raise ValueError(f"The spec does not fit the family {family!r}: {error}. Got {sorted(settings)}.") from error
