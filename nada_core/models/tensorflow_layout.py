"""Tensor names of TensorFlow StyleGAN2 files: NVlabs/stylegan2 (configs E and F) and NVlabs/stylegan2-ada.

Kernels are [height, width, in, out], those of upsampling convolutions are mirrored, matrices are [in, out], and style
biases are stored minus 1.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint
from ..io.errors import UnsupportedCheckpointError
from .layout import Layout, Reading, value_at
from .layout_checks import check_filter, check_picture
from .stylegan2_layouts import spec_of

# A setting of the network -> the only supported value.
_ONLY: dict[str, Any] = {
    "nonlinearity": "lrelu",
    "mapping_nonlinearity": "lrelu",
    "architecture": "skip",
    "normalize_latents": True,
    "mapping_func": "G_mapping",
    "dtype": "float32",
}

# Settings that are read elsewhere, follow from tensor shapes, or do not change images.
_KNOWN = {
    *("num_channels", "resolution", "label_size", "latent_size", "dlatent_size", "fmap_base", "fmap_decay"),
    *("fmap_min", "fmap_max", "mapping_layers", "mapping_fmaps", "mapping_lrmul", "label_fmaps", "resample_kernel"),
    *("conv_clamp", "use_noise", "num_fp16_res", "fused_modconv", "randomize_noise", "structure", "synthesis_func"),
    *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val", "style_mixing_prob"),
    *("dlatent_avg_beta", "w_avg_beta", "dlatent_broadcast", "is_training", "is_validation", "return_dlatents"),
}

_REFUSED = {
    "/StyleMod/": "a StyleGAN1, which is not supported",
    "ToRGB_lod": "a StyleGAN2 of configs A to D, which grow progressively; only configs E and F are supported",
    "/Skip/": "a StyleGAN2 with residual blocks; only the skip architecture is supported",
    "LabelConcat/": "a conditional network of the first StyleGAN2 code; only those of stylegan2-ada are supported",
}


def tensorflow_names(resolution: int, mapping_layers: int, conditional: bool) -> dict[str, str]:
    """Map our names to TensorFlow's, for every tensor of a network."""
    names = {"mapping.w_avg": "dlatent_avg", "synthesis.b4.const": "synthesis/4x4/Const/const"}
    dense = {f"mapping.fc{index}": f"mapping/Dense{index}" for index in range(mapping_layers)}
    if conditional:
        dense["mapping.embed"] = "mapping/LabelEmbed"
    for ours, theirs in dense.items():
        names |= {f"{ours}.{part}": f"{theirs}/{part}" for part in ("weight", "bias")}
    convs, colors = {"b4.conv1": "4x4/Conv"}, {"b4.torgb": "4x4/ToRGB"}
    for power in range(3, int(math.log2(resolution)) + 1):
        size = 2**power
        convs |= {f"b{size}.conv0": f"{size}x{size}/Conv0_up", f"b{size}.conv1": f"{size}x{size}/Conv1"}
        colors[f"b{size}.torgb"] = f"{size}x{size}/ToRGB"
    for index, (ours, theirs) in enumerate(convs.items()):
        names[f"synthesis.{ours}.noise_const"] = f"synthesis/noise{index}"
        names[f"synthesis.{ours}.noise_strength"] = f"synthesis/{theirs}/noise_strength"
    for ours, theirs in (convs | colors).items():
        for part, name in (
            ("weight", "weight"),
            ("bias", "bias"),
            ("affine.weight", "mod_weight"),
            ("affine.bias", "mod_bias"),
        ):
            names[f"synthesis.{ours}.{part}"] = f"synthesis/{theirs}/{name}"
    return names


def _convert(name: str, value: Tensor) -> Tensor:
    """Convert a TensorFlow variable to our tensor. Other shapes are returned unchanged; loading them fails later."""
    if name.endswith((".const", ".noise_const")):
        for _ in range(1 if name.endswith(".const") else 2):
            value = value[0] if value.ndim > 2 and len(value) == 1 else value
        return value
    if name.endswith(".affine.bias"):
        return value + 1
    if value.ndim == 4:
        value = value.flip(0, 1) if name.endswith("conv0.weight") else value
        return value.permute(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value


def _read_tensorflow(raw: RawCheckpoint, prefix: str) -> Reading:
    tensors = {name.removeprefix(prefix): value for name, value in raw.tensors.items() if name.startswith(prefix)}
    for part, kind in _REFUSED.items():
        if any(part in name for name in tensors):
            raise UnsupportedCheckpointError(f"the network is {kind}.")
    settings = value_at(raw.hints, prefix.rstrip("."), "static_kwargs") or {}
    sizes = [int(match[1]) for name in tensors if (match := re.match(r"synthesis/(\d{1,4})x\1/ToRGB/weight", name))]
    depth = sum(bool(re.fullmatch(r"mapping/Dense\d+/weight", name)) for name in tensors)
    names = tensorflow_names(max(4, *sizes), depth, "mapping/LabelEmbed/weight" in tensors)
    ours = {theirs: our for our, theirs in names.items()}
    state = {ours.get(name, name): _convert(ours.get(name, name), value) for name, value in tensors.items()}
    for name in ("lod", "synthesis/lod"):  # an unused counter of progressive growing
        state.pop(name, None)
    check_picture(state, names)  # before the settings: forks for other shapes add their own
    _check_settings(settings)
    if settings.get("use_noise", True) is False:  # noise of strength 0 is equivalent
        for name in names:
            if name.endswith(".noise_strength"):
                size = min(int(name.split(".")[1][1:]), 1024)
                state.setdefault(name, torch.zeros(()))
                state.setdefault(name.replace("strength", "const"), torch.zeros(()).expand(size, size))
    lr = settings.get("mapping_lrmul")
    spec = spec_of(state, names) | {"clamp": settings.get("conv_clamp"), "mapping_lr": 0.01 if lr is None else lr}
    return Reading(spec, state, {our: prefix + theirs for our, theirs in names.items()})


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpointError for settings that change images, and for unknown ones."""
    for name, value in settings.items():
        if name == "resample_kernel" and isinstance(value, list | tuple) and len(value) <= 16:
            check_filter(name, torch.tensor([float(tap) for tap in value]))
        elif not isinstance(value, str | int | float | None):
            raise UnsupportedCheckpointError(f"{name} is {reprlib.repr(value)}, expected text or a number.")
        elif name in _ONLY and value is not None and str(value).split(".")[-1] != str(_ONLY[name]):
            raise UnsupportedCheckpointError(
                f"{name} is {reprlib.repr(value)}, expected {_ONLY[name]!r}; other values change images."
            )
        elif name not in _ONLY and name not in _KNOWN:
            raise UnsupportedCheckpointError(
                f"the network has the unknown setting {name} = {value!r:.60} and may be modified. Convert it with the "
                "program that wrote it."
            )


TENSORFLOW = Layout(
    "StyleGAN2 of TensorFlow (stylegan2, stylegan2-ada)", "synthesis/4x4/Conv/mod_weight", _read_tensorflow
)
