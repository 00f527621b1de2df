"""How StyleGAN2 files in the world name their tensors: NVlabs/stylegan2-ada-pytorch and rosinality/stylegan2-pytorch.

Everything about the architecture is read off the tensors' shapes. Where the second implementation stores the same
numbers under other names and with extra axes of length one, `rosinality_names` pairs the names.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint
from ..io.errors import CheckpointError, UnsupportedCheckpointError
from .ops.fir import TAPS
from .stylegan2 import StyleGAN2


@dataclass(frozen=True)
class Reading:
    """A file's content in our terms. `state` may lack mapping.w_avg or every noise map: not all files have them."""

    spec: dict[str, Any]
    state: dict[str, Tensor]  # by our names; what fits none of them keeps the file's name
    names: dict[str, str]  # our name -> the file's, for messages


@dataclass(frozen=True)
class Layout:
    """One way of naming tensors. Exactly one layout must claim a file."""

    name: str
    claims: Callable[[RawCheckpoint], bool]
    read: Callable[[RawCheckpoint], Reading]


def rosinality_names(resolution: int, mapping_layers: int) -> dict[str, str]:
    """Our name -> rosinality's, for every tensor but mapping.w_avg, which lies beside the network there."""
    names = {"synthesis.b4.const": "input.input"}
    for index in range(mapping_layers):
        for part in ("weight", "bias"):
            names[f"mapping.fc{index}.{part}"] = f"style.{index + 1}.{part}"
    convs = {"b4.conv1": "conv1"}
    colours = {"b4.torgb": "to_rgb1"}
    for block in range(int(math.log2(resolution)) - 2):
        size = 8 * 2**block
        convs |= {f"b{size}.conv0": f"convs.{2 * block}", f"b{size}.conv1": f"convs.{2 * block + 1}"}
        colours[f"b{size}.torgb"] = f"to_rgbs.{block}"
    for index, (ours, theirs) in enumerate(convs.items()):
        names[f"synthesis.{ours}.noise_const"] = f"noises.noise_{index}"
        names[f"synthesis.{ours}.noise_strength"] = f"{theirs}.noise.weight"
        names[f"synthesis.{ours}.bias"] = f"{theirs}.activate.bias"
    for ours, theirs in colours.items():
        names[f"synthesis.{ours}.bias"] = f"{theirs}.bias"
    for ours, theirs in (convs | colours).items():
        names[f"synthesis.{ours}.weight"] = f"{theirs}.conv.weight"
        for part in ("weight", "bias"):
            names[f"synthesis.{ours}.affine.{part}"] = f"{theirs}.conv.modulation.{part}"
    return names


def to_rosinality(generator: StyleGAN2) -> dict[str, Tensor]:
    """The network's state as a strict load into rosinality's Generator wants it, derived filters included."""
    if generator.c_dim or generator.clamp or generator.z_dim != generator.w_dim or generator.mapping.lr != 0.01:
        raise ValueError(
            "this generator has a label, a clamp, z_dim != w_dim or a mapping_lr other than 0.01, and "
            f"rosinality's format can say none of that: {generator.spec()}. Save it as safetensors."
        )
    state = generator.state_dict()
    exported: dict[str, Tensor] = {}
    for ours, theirs in rosinality_names(generator.resolution, generator.mapping.depth).items():
        value = state[ours].detach().cpu()
        exported[theirs] = value.reshape(_axes_added(ours, tuple(value.shape))).clone()
    taps = torch.tensor(TAPS)
    for block in range(int(math.log2(generator.resolution)) - 2):
        exported[f"convs.{2 * block}.conv.blur.kernel"] = torch.outer(taps, taps)
        exported[f"to_rgbs.{block}.upsample.kernel"] = torch.outer(taps, taps)
    return exported


def _axes_added(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape under which rosinality stores our tensor."""
    if name.endswith("noise_const"):
        return 1, 1, *shape
    if name.endswith("torgb.bias"):
        return 1, *shape, 1, 1
    if name.endswith((".const", ".noise_strength")) or len(shape) == 4:
        return 1, *shape
    return shape


def _axes_dropped(name: str, value: Tensor) -> Tensor:
    """Undo `_axes_added`; a tensor of another shape is left alone, and the loader will complain about it."""
    shape = tuple(value.shape)
    if name.endswith("torgb.bias"):
        bare = shape[1:2]
    elif name.endswith("noise_const"):
        bare = shape[2:]
    elif name.endswith((".const", ".noise_strength")) or len(shape) == 5:
        bare = shape[1:]
    else:
        return value
    return value.reshape(bare) if _axes_added(name, bare) == shape else value


def _prefix(raw: RawCheckpoint, prefixes: tuple[str, ...], probe: str) -> str | None:
    return next((prefix for prefix in prefixes if prefix + probe in raw.tensors), None)


def _rosinality_prefix(raw: RawCheckpoint) -> str | None:
    return _prefix(raw, ("g_ema.", "g.", ""), "conv1.conv.modulation.weight")


def _nvidia_prefix(raw: RawCheckpoint) -> str | None:
    if "spec" in raw.hints:  # one of our own files, which borrow these names
        return None
    return _prefix(raw, ("G_ema.", "G.", ""), "synthesis.b4.conv1.affine.weight")


def _read_rosinality(raw: RawCheckpoint) -> Reading:
    prefix = _rosinality_prefix(raw) or ""
    tensors = _own(raw, prefix, r".*\.kernel")
    w_avg = tensors.pop("latent_avg", raw.tensors.get("latent_avg"))
    ups = sum(bool(re.fullmatch(r"to_rgbs\.\d+\.conv\.weight", name)) for name in tensors)
    depth = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in tensors)
    names = rosinality_names(4 * 2**ups, depth)
    ours = {theirs: mine for mine, theirs in names.items()}
    state = {ours.get(name, name): _axes_dropped(ours.get(name, name), value) for name, value in tensors.items()}
    if w_avg is not None:
        state["mapping.w_avg"] = w_avg.flatten()
    return Reading(_spec(state, names), state, {mine: prefix + theirs for mine, theirs in names.items()})


def _read_nvidia(raw: RawCheckpoint) -> Reading:
    prefix = _nvidia_prefix(raw) or ""
    state = _own(raw, prefix, r".*resample_filter")
    network = prefix.rstrip(".")
    # What the layers were actually built with; it differs by repository where the arguments leave it to a default.
    clamp = _told(raw.hints, network, "attributes", "synthesis.b4.conv1.conv_clamp")
    if clamp is None:
        clamp = _told(raw.hints, network, "init_kwargs", "synthesis_kwargs", "conv_clamp")
    lr = _told(raw.hints, network, "attributes", "mapping.fc0.bias_gain")
    spec = _spec(state, {}) | {"clamp": clamp, "mapping_lr": 0.01 if lr is None else lr}
    return Reading(spec, state, {name: prefix + name for name in state})


def _told(hints: Any, *path: str) -> Any:
    """What a file says at the end of this path; None where it says nothing."""
    for key in path:
        hints = hints.get(key) if isinstance(hints, Mapping) else None
    return hints


def _own(raw: RawCheckpoint, prefix: str, derived: str) -> dict[str, Tensor]:
    """The network's tensors without their prefix and without the filters, which must be the one we have built in."""
    taps = torch.tensor(TAPS)
    own: dict[str, Tensor] = {}
    for name, value in raw.tensors.items():
        if not name.startswith(prefix):
            continue
        if not re.fullmatch(derived, name):
            own[name.removeprefix(prefix)] = value
            continue
        value = value.float()
        if value.shape != (4, 4) or not torch.allclose(4 * value / value.sum(), torch.outer(taps, taps), atol=1e-5):
            raise UnsupportedCheckpointError(
                f"{name} is not the filter [1, 3, 3, 1]; the network was trained with "
                "another resampling filter, and only this one is supported."
            )
    return own


def _spec(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Any]:
    """The architecture, from shapes."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != axes:
            got = f"with {state[name].ndim} axes" if name in state else "missing"
            raise CheckpointError(
                f"{names.get(name, name)} is {got}, expected a tensor with {axes} axes; "
                "without it the size of the network cannot be told. Is the file complete?"
            )
        return tuple(state[name].shape)

    widths: list[int] = []
    while f"synthesis.b{4 * 2 ** len(widths)}.conv1.weight" in state:
        widths.append(shape(f"synthesis.b{4 * 2 ** len(widths)}.conv1.weight", 4)[0])
    depth = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in state)
    embedded, c_dim = shape("mapping.embed.weight", 2) if "mapping.embed.weight" in state else (0, 0)
    return {
        "family": StyleGAN2.family,
        "resolution": 2 * 2 ** len(widths),
        "z_dim": shape("mapping.fc0.weight", 2)[1] - embedded,
        "w_dim": shape("synthesis.b4.conv1.affine.weight", 2)[1],
        "c_dim": c_dim,
        "mapping_layers": depth,
        "widths": widths,
    }


LAYOUTS = (
    Layout("StyleGAN2 of NVlabs/stylegan2-ada-pytorch", lambda raw: _nvidia_prefix(raw) is not None, _read_nvidia),
    Layout(
        "StyleGAN2 of rosinality/stylegan2-pytorch", lambda raw: _rosinality_prefix(raw) is not None, _read_rosinality
    ),
)
