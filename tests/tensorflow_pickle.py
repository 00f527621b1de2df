"""Writes pickles of the shape NVlabs/stylegan2 and stylegan2-ada give them, without any of their code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nvidia_pickle import dump, foreign_class

from nada_core.models.stylegan2 import StyleGAN2

Variables = dict[str, Any]  # TensorFlow's name -> numpy array or scalar


def write(generator: StyleGAN2, path: Path, settings: dict[str, Any] | None = None) -> Path:
    """A tuple (G, D, Gs), of which Gs is the generator and G another one."""
    average = variables(generator)
    training = {name: value * np.float32(2) for name, value in average.items()}
    networks = [network(training, settings), network({"4x4/Dense0/weight": np.zeros((2, 2), np.float32)})]
    return dump((*networks, network(average, settings)), path)


def network(values: Variables, settings: dict[str, Any] | None = None, module: str = "dnnlib.tflib.network") -> Any:
    """A pickled network; variables that begin with mapping/ or synthesis/ belong to components of that name."""
    components = {}
    for part in ("mapping", "synthesis"):
        inner = {name.removeprefix(f"{part}/"): value for name, value in values.items() if name.startswith(f"{part}/")}
        if inner:
            components[part] = network(inner, settings, module)
    own = [(name, value) for name, value in values.items() if name.partition("/")[0] not in components]
    made = foreign_class(module, "Network")()
    vars(made).update(
        version=4,
        name="Gs",
        static_kwargs={"num_channels": 3} | (settings or {}),
        components=components,
        build_module_src="raise SystemExit('the stored source must not run')",
        build_func_name="G_main",
        variables=own,
    )
    return made


def variables(generator: StyleGAN2) -> Variables:
    """The generator's weights as TensorFlow names and arranges them."""
    state = {name: value.detach().numpy() for name, value in generator.state_dict().items()}
    values: Variables = {"lod": np.float32(0), "dlatent_avg": state["mapping.w_avg"]}
    for index in range(generator.mapping.depth):
        values[f"mapping/Dense{index}/weight"] = state[f"mapping.fc{index}.weight"].T
        values[f"mapping/Dense{index}/bias"] = state[f"mapping.fc{index}.bias"]
    if generator.c_dim:
        values["mapping/LabelEmbed/weight"] = state["mapping.embed.weight"].T
        values["mapping/LabelEmbed/bias"] = state["mapping.embed.bias"]
    values["synthesis/4x4/Const/const"] = state["synthesis.b4.const"][None]
    layers = [("b4.conv1", "4x4/Conv"), ("b4.torgb", "4x4/ToRGB")]
    for size in generator.synthesis.sizes[1:]:
        layers += [(f"b{size}.{ours}", f"{size}x{size}/{theirs}") for ours, theirs in _PARTS]
    convolutions = 0
    for ours, theirs in layers:
        kernel = state[f"synthesis.{ours}.weight"].transpose(2, 3, 1, 0)  # [height, width, in, out]
        values[f"synthesis/{theirs}/weight"] = kernel[::-1, ::-1] if ours.endswith("conv0") else kernel
        values[f"synthesis/{theirs}/bias"] = state[f"synthesis.{ours}.bias"]
        values[f"synthesis/{theirs}/mod_weight"] = state[f"synthesis.{ours}.affine.weight"].T
        values[f"synthesis/{theirs}/mod_bias"] = state[f"synthesis.{ours}.affine.bias"] - 1
        if "torgb" not in ours:
            values[f"synthesis/{theirs}/noise_strength"] = np.float32(state[f"synthesis.{ours}.noise_strength"])
            values[f"synthesis/noise{convolutions}"] = state[f"synthesis.{ours}.noise_const"][None, None]
            convolutions += 1
    return values


_PARTS = (("conv0", "Conv0_up"), ("conv1", "Conv1"), ("torgb", "ToRGB"))
