"""Export StyleGAN2 to ONNX (https://onnx.ai): the mapping network, and the synthesis network with W+ as its input.

The graphs are written operator by operator from the weights. They need no operator that is newer than opset 18, and no
native convolution.

Shapes: N batch, L rows of ws (num_ws), C w_dim, I and O input and output channels, R resolution of the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.metadata import replace_atomically
from .generator import Generator
from .ops.activation import GAIN, SLOPE
from .ops.fir import TAPS
from .state_dict import check_finite
from .stylegan2 import Convolution, Linear, StyleGAN2, ToRGB

KIND = "nada_onnx"
VERSION = 1

OPSET = 20  # read by onnxruntime 1.17 and newer
_OLDEST_OPSET = 18  # the axes of ReduceMean became an input

Shape = Sequence[int | str]


def onnx_paths(path: str | Path) -> tuple[Path, Path]:
    """Return the files of `export_onnx`: NAME.onnx, the synthesis network, and NAME-mapping.onnx."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"Got {path.name} to write, expected a name ending in .onnx.")
    return path, path.with_name(f"{path.stem}-mapping.onnx")


def export_onnx(
    generator: Generator, path: str | Path, provenance: Mapping[str, Any] | None = None, opset: int = OPSET
) -> tuple[Path, Path]:
    """Write a generator as two ONNX models, float32, for any batch size.

    NAME.onnx maps `ws` [N, L, C] to `images` [N, 3, R, R] in about -1..1, with the constant noise of the generator.
    NAME-mapping.onnx maps `z` [N, z_dim] and `psi` to `ws`. `psi` is the truncation, one number or one per row of W+:
    1 leaves w unchanged, 0 gives the mean. A conditional generator also takes `label` [N, c_dim], one-hot.

    Args:
        path: NAME.onnx.
        provenance: JSON-ready description of where the weights come from.
        opset: version of the operators.

    Returns:
        Both paths.

    Raises:
        ValueError: the package `onnx` is not installed; another generator than StyleGAN2; an opset that `onnx` does not
            know; weights with NaN or infinity.
    """
    synthesis_path, mapping_path = onnx_paths(path)
    newest = _import_onnx().defs.onnx_opset_version()
    if not isinstance(generator, StyleGAN2):
        raise ValueError(f"Got a {generator.family}, expected a StyleGAN2; only its networks have an ONNX export.")
    if not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"Got opset {opset}, expected {_OLDEST_OPSET} to {newest}, the newest of the installed onnx.")
    check_finite(generator.state_dict(), half=False)
    metadata = {
        "kind": KIND,
        "version": VERSION,
        "spec": generator.spec(),
        "rows": generator.num_ws,
        "space": generator.space(),
        "provenance": dict(provenance or {}),
    }
    with torch.no_grad(), replace_atomically(synthesis_path) as first, replace_atomically(mapping_path) as second:
        first.write_bytes(_synthesis(generator).model("synthesis", metadata, opset))
        second.write_bytes(_mapping(generator).model("mapping", metadata, opset))
    return synthesis_path, mapping_path


class _Graph:
    """A graph under construction. Values are named; every method that adds one returns its name."""

    def __init__(self) -> None:
        self.onnx = _import_onnx()
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: dict[str, Shape] = {}
        self.outputs: dict[str, Shape] = {}

    def input(self, name: str, shape: Shape) -> str:
        self.inputs[name] = shape
        return name

    def weight(self, value: Tensor) -> str:
        name = f"weight{len(self.weights)}"
        array = value.detach().cpu().contiguous().numpy()
        self.weights.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        return self.weight(torch.tensor(values, dtype=torch.int64))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"value{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def output(self, name: str, value: str, shape: Shape) -> None:
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name], name))
        self.outputs[name] = shape

    def model(self, name: str, metadata: Mapping[str, Any], opset: int) -> bytes:
        """Return the checked model as the content of a file."""
        helper = self.onnx.helper
        inputs, outputs = (
            [helper.make_tensor_value_info(key, self.onnx.TensorProto.FLOAT, list(shape)) for key, shape in values]
            for values in (self.inputs.items(), self.outputs.items())
        )
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        version = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph, opset_imports=version, ir_version=helper.find_min_ir_version_for(version), producer_name="nada_core"
        )
        interface = {"network": name, "inputs": self.inputs, "outputs": self.outputs}
        texts = {**metadata, **interface}
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
        helper.set_model_props(model, texts)
        self.onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
        return content


def _mapping(generator: StyleGAN2) -> _Graph:
    """z [N, z_dim], psi [1 or L] and a label [N, c_dim] if conditional -> ws [N, L, C]."""
    graph, mapping, rows = _Graph(), generator.mapping, generator.num_ws
    x = _normalize(graph, graph.input("z", ["N", generator.z_dim]))
    if mapping.embed is not None:
        label = graph.input("label", ["N", generator.c_dim])
        x = graph.add("Concat", x, _normalize(graph, _linear(graph, label, mapping.embed)), axis=1)
    psi = graph.input("psi", ["1 or L"])
    for index in range(mapping.depth):
        layer = mapping.get_submodule(f"fc{index}")
        assert isinstance(layer, Linear)
        x = graph.add("LeakyRelu", _linear(graph, x, layer, GAIN), alpha=SLOPE)
    mean = graph.weight(generator.w_avg)
    change = graph.add("Unsqueeze", graph.add("Sub", x, mean), graph.integers(1))  # [N, 1, C]
    change = graph.add("Mul", change, graph.add("Unsqueeze", psi, graph.integers(1)))
    ws = graph.add("Expand", graph.add("Add", change, mean), graph.integers(1, rows, 1))
    graph.output("ws", ws, ["N", rows, generator.w_dim])
    return graph


def _synthesis(generator: StyleGAN2) -> _Graph:
    """ws [N, L, C] -> images [N, 3, R, R]."""
    graph, rows, size = _Graph(), generator.num_ws, generator.resolution
    ws = graph.input("ws", ["N", rows, generator.w_dim])
    row = [graph.add("Gather", ws, graph.weight(torch.tensor(index)), axis=1) for index in range(rows)]  # [N, C] each
    x = graph.weight(generator.get_parameter("synthesis.b4.const")[None])
    rgb, next_row = "", 0
    for block in generator.synthesis.blocks():
        for _, conv in block.convolutions():
            x = _convolution(graph, x, row[next_row], conv)
            next_row += 1
        own = _to_rgb(graph, x, row[next_row], block.torgb)
        rgb = graph.add("Add", _upsample(graph, rgb), own) if rgb else own
    graph.output("images", rgb, ["N", 3, size, size])
    return graph


def _normalize(graph: _Graph, x: str) -> str:
    """Scale every row to unit second moment."""
    energy = graph.add("ReduceMean", graph.add("Mul", x, x), graph.integers(1))
    return graph.add("Div", x, graph.add("Sqrt", graph.add("Add", energy, graph.weight(torch.tensor(1e-8)))))


def _linear(graph: _Graph, x: str, layer: Linear, gain: float = 1.0) -> str:
    weight = layer.weight.T * (gain * layer.lr / math.sqrt(layer.weight.shape[1]))
    return graph.add("Gemm", x, graph.weight(weight), graph.weight(layer.bias * (gain * layer.lr)))


def _convolution(graph: _Graph, x: str, w: str, layer: Convolution) -> str:
    """x [N, I, H, W], w [N, C] -> [N, O, H, W], or [N, O, 2 H, 2 W] if the layer doubles the resolution."""
    style = _linear(graph, w, layer.affine)
    energy = graph.weight(layer.weight.square().sum((2, 3)).T / GAIN**2)  # [I, O]; the gain of the activation
    energy = graph.add("MatMul", graph.add("Mul", style, style), energy)
    norm = graph.add("Sqrt", graph.add("Add", energy, graph.weight(torch.tensor(1e-8 / GAIN**2))))
    x = graph.add("Mul", x, _per_channel(graph, style))
    if layer.up:
        x = graph.add("ConvTranspose", x, graph.weight(layer.weight.transpose(0, 1)), strides=[2, 2])
        x = graph.add("Conv", x, _filter(graph, len(layer.weight)), pads=[1] * 4, group=len(layer.weight))
    else:
        x = graph.add("Conv", x, graph.weight(layer.weight), pads=[1] * 4)
    x = graph.add("Div", x, _per_channel(graph, norm))
    noise = layer.noise_const * layer.noise_strength
    x = graph.add("Add", x, graph.weight(noise[None, None] * GAIN))
    x = graph.add("Add", x, graph.weight(layer.bias[None, :, None, None] * GAIN))
    return _clamp(graph, graph.add("LeakyRelu", x, alpha=SLOPE), layer.clamp)


def _to_rgb(graph: _Graph, x: str, w: str, layer: ToRGB) -> str:
    style = _linear(graph, w, layer.affine, 1 / math.sqrt(layer.weight.shape[1]))
    x = graph.add(
        "Conv", graph.add("Mul", x, _per_channel(graph, style)), *map(graph.weight, (layer.weight, layer.bias))
    )
    return _clamp(graph, x, layer.clamp)


def _upsample(graph: _Graph, rgb: str) -> str:
    """Insert zeros and filter: one transposed convolution per color."""
    return graph.add("ConvTranspose", rgb, _filter(graph, 3), strides=[2, 2], pads=[1] * 4, group=3)


def _filter(graph: _Graph, channels: int) -> str:
    taps = torch.tensor(TAPS)
    return graph.weight(torch.outer(taps, taps).expand(channels, 1, 4, 4))


def _per_channel(graph: _Graph, values: str) -> str:
    return graph.add("Unsqueeze", values, graph.integers(2, 3))


def _clamp(graph: _Graph, x: str, limit: float | None) -> str:
    if limit is None:
        return x
    return graph.add("Clip", x, *(graph.weight(torch.tensor(end)) for end in (-float(limit), float(limit))))


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ValueError(
            f"The export needs the Python package onnx ({error}). Install it with `pip install onnx`."
        ) from error
    return onnx
