"""Tensor names of StyleGAN2 files: NVlabs/stylegan2-ada-pytorch and rosinality/stylegan2-pytorch.

The architecture follows from the shapes of the tensors. rosinality stores the same numbers under other names, some with
extra axes of length one.
"""

import functools
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint
from .layout import Layout, Reading, file_settings, value_at
from .layout_checks import check_filter, check_picture, check_settings, only_value
from .ops.fir import TAPS
from .state_dict import shape
from .stylegan2 import StyleGAN2

_MOST_UPS = 9  # beyond 1024 pixels, so that StyleGAN2 refuses the file


def rosinality_names(resolution: int, mapping_layers: int) -> dict[str, str]:
    """Map our names to rosinality's, for every tensor except mapping.w_avg, which is stored outside the network."""
    names = {"synthesis.b4.const": "input.input"}
    for index in range(mapping_layers):
        for part in ("weight", "bias"):
            names[f"mapping.fc{index}.{part}"] = f"style.{index + 1}.{part}"
    convs = {"b4.conv1": "conv1"}
    colors = {"b4.torgb": "to_rgb1"}
    for block in range(int(math.log2(resolution)) - 2):
        size = 8 * 2**block
        convs |= {f"b{size}.conv0": f"convs.{2 * block}", f"b{size}.conv1": f"convs.{2 * block + 1}"}
        colors[f"b{size}.torgb"] = f"to_rgbs.{block}"
    for index, (ours, theirs) in enumerate(convs.items()):
        names[f"synthesis.{ours}.noise_const"] = f"noises.noise_{index}"
        names[f"synthesis.{ours}.noise_strength"] = f"{theirs}.noise.weight"
        names[f"synthesis.{ours}.bias"] = f"{theirs}.activate.bias"
    for ours, theirs in colors.items():
        names[f"synthesis.{ours}.bias"] = f"{theirs}.bias"
    for ours, theirs in (convs | colors).items():
        names[f"synthesis.{ours}.weight"] = f"{theirs}.conv.weight"
        for part in ("weight", "bias"):
            names[f"synthesis.{ours}.affine.{part}"] = f"{theirs}.conv.modulation.{part}"
    return names


def to_rosinality(generator: StyleGAN2) -> dict[str, Tensor]:
    """Return the state dict for a strict load into rosinality's Generator, including its filters.

    Raises:
        ValueError: for settings that the format cannot express.
    """
    if generator.c_dim or generator.clamp or generator.z_dim != generator.w_dim or generator.mapping.lr != 0.01:
        raise ValueError(
            f"Got {generator.spec()}, expected no label, no clamp, z_dim equal to w_dim and mapping_lr 0.01: "
            "rosinality's format has nothing else. Save it as safetensors."
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
    """Return the shape in which rosinality stores our tensor."""
    if name.endswith("noise_const"):
        return 1, 1, *shape
    if name.endswith("torgb.bias"):
        return 1, *shape, 1, 1
    if name.endswith((".const", ".noise_strength")) or len(shape) == 4:
        return 1, *shape
    return shape


def _axes_dropped(name: str, value: Tensor) -> Tensor:
    """Undo `_axes_added`. A tensor of another shape is returned unchanged; loading it fails later."""
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


def _read_rosinality(raw: RawCheckpoint, prefix: str) -> Reading:
    tensors = _network_tensors(raw, prefix, r".*\.kernel")
    settings = file_settings(raw, prefix)
    check_settings(settings)
    mean = tensors.pop("latent_avg", None)
    for parent in _parents(prefix):
        mean = raw.tensors.get(f"{parent}latent_avg") if mean is None else mean
    ups = min(sum(bool(re.fullmatch(r"to_rgbs\.\d+\.conv\.weight", name)) for name in tensors), _MOST_UPS)
    depth = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in tensors)
    names = rosinality_names(4 * 2**ups, depth)
    ours = {theirs: our for our, theirs in names.items()}
    state = {ours.get(name, name): _axes_dropped(ours.get(name, name), value) for name, value in tensors.items()}
    if mean is not None and (w_avg := _single_row(mean, 2 * ups + 2)) is not None:
        state["mapping.w_avg"] = w_avg
    lr = only_value(settings, r"style\.\d+\.lr_mul")
    spec = spec_of(state, names) | ({} if lr is None else {"mapping_lr": lr})
    return Reading(spec, state, {our: prefix + theirs for our, theirs in names.items()})


def _parents(prefix: str) -> list[str]:
    """List where latent_avg may be: for "state_dict.decoder." that prefix, "state_dict." and ""."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts), -1, -1)]


def _single_row(mean: Tensor, rows: int) -> Tensor | None:
    """Return w_avg as [C]. pSp and e4e store [L, C]; None if the rows differ."""
    if mean.ndim != 2 or mean.shape[0] not in (1, rows):
        return mean.flatten()
    if torch.allclose(mean, mean[:1]):
        return mean[0]
    logging.getLogger(__name__).warning("latent_avg differs from row to row; the mean of w is estimated instead")
    return None


def _read_nvidia(raw: RawCheckpoint, prefix: str) -> Reading:
    state = _network_tensors(raw, prefix, r".*resample_filter")
    # Attributes of the layers take precedence over the arguments, whose defaults differ between repositories.
    settings = file_settings(raw, prefix)
    arguments = value_at(raw.hints, prefix.rstrip("."), "init_kwargs")
    if not settings and arguments is None:
        logging.getLogger(__name__).warning(
            "A bare state dict does not say its activation, clamp and mapping lr multiplier; using leaky ReLU, no "
            "clamp and 0.01. If the pictures look wrong, load the .pkl it was saved from."
        )
    settings = _from_arguments(arguments) | settings
    check_settings(settings)
    clamp = only_value(settings, r"synthesis\.b\d+\.(conv[01]|torgb)\.conv_clamp")
    lr = only_value(settings, r"mapping\.fc\d+\.bias_gain")
    _add_silent_noise(state, settings)
    spec = spec_of(state, {}) | {"clamp": clamp, "mapping_lr": 0.01 if lr is None else lr}
    return Reading(spec, state, {name: prefix + name for name in state})


def _from_arguments(arguments: Any) -> dict[str, Any]:
    """Return the constructor arguments that change images, under the names of the layers' attributes."""
    settings: dict[str, Any] = {}
    for path, name in (
        (("mapping_kwargs", "activation"), "mapping.fc0.activation"),
        (("mapping_kwargs", "lr_multiplier"), "mapping.fc0.bias_gain"),
        (("synthesis_kwargs", "activation"), "synthesis.b4.conv1.activation"),
        (("synthesis_kwargs", "architecture"), "synthesis.architecture"),
        (("synthesis_kwargs", "conv_clamp"), "synthesis.b4.conv1.conv_clamp"),
    ):
        if isinstance(value := value_at(arguments, *path), str | int | float):
            settings[name] = value
    return settings


def _add_silent_noise(state: dict[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Add noise of strength 0 to layers without noise, which is equivalent."""
    for name, value in settings.items():
        layer = name.removesuffix(".use_noise")
        if re.fullmatch(r"synthesis\.b\d+\.conv[01]\.use_noise", name) and value is False:
            size = min(int(layer.split(".")[1][1:]), 1024)
            state.setdefault(f"{layer}.noise_strength", torch.zeros(()))
            state.setdefault(f"{layer}.noise_const", torch.zeros(()).expand(size, size))


def _network_tensors(raw: RawCheckpoint, prefix: str, derived: str) -> dict[str, Tensor]:
    """Return the tensors of the network without their prefix. Filters are checked and dropped."""
    tensors: dict[str, Tensor] = {}
    for name, value in raw.tensors.items():
        if not name.startswith(prefix):
            continue
        if re.fullmatch(derived, name):
            check_filter(name, value)
        else:
            tensors[name.removeprefix(prefix)] = value
    return tensors


def spec_of(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Any]:
    """Derive the spec from the shapes of tensors. names: our name -> the name in the file, for messages."""
    size = functools.partial(shape, state, names=names)
    check_picture(state, names)
    widths: list[int] = []
    while f"synthesis.b{4 * 2 ** len(widths)}.conv1.weight" in state:
        widths.append(size(f"synthesis.b{4 * 2 ** len(widths)}.conv1.weight", 4)[0])
    depth = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in state)
    embedded, c_dim = size("mapping.embed.weight", 2) if "mapping.embed.weight" in state else (0, 0)
    return {
        "family": StyleGAN2.family,
        "resolution": 2 * 2 ** len(widths),
        "z_dim": size("mapping.fc0.weight", 2)[1] - embedded,
        "w_dim": size("synthesis.b4.conv1.affine.weight", 2)[1],
        "c_dim": c_dim,
        "mapping_layers": depth,
        "widths": widths,
    }


LAYOUTS = (
    Layout("StyleGAN2 of NVlabs/stylegan2-ada-pytorch", "synthesis.b4.conv1.affine.weight", _read_nvidia),
    Layout("StyleGAN2 of rosinality/stylegan2-pytorch", "conv1.conv.modulation.weight", _read_rosinality),
)
