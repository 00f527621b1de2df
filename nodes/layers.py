"""Layer selection nodes: adaptive layer freezing (StyleGAN-NADA, section 4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..nada_core import LayerChoice, inspect_layers, plot_bars
from ._host import for_training, io, normal_mode, to_image
from ._types import ROOT, GeneratorType, GuideType, LayersType, ShiftType
from ._widgets import class_of, label_input, seed_input, settings, widgets

#: Widgets of Choose Layers. Workflows store values by position: append only.
CHOICE = ("mode", "count", "names", "steps", "batch", "chunk", "every", "rate", "rgb", "noise", "train", "rank")
RARE = ("steps", "batch", "chunk", "rate", "noise")


class ChooseLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ChooseLayers",
            display_name="Choose Layers",
            category=f"{ROOT}/train",
            description="Selects the layers that a training step updates. adaptive (StyleGAN-NADA, section "
            "4.2) optimizes a few latents toward the target and trains the layers whose latents "
            "change most, which limits damage to the generator in large changes.",
            search_aliases=["freeze layers", "adaptive layer freezing", "unfreeze", "trainable layers"],
            inputs=widgets(LayerChoice, CHOICE, LayerChoice(mode="adaptive"), RARE),
            outputs=[
                LayersType.Output("layers", display_name="layers", tooltip="The layer selection, for Adapt Generator.")
            ],
        )

    @classmethod
    def execute(cls, **values: Any) -> Any:
        return io.NodeOutput(settings(LayerChoice, CHOICE, values))


class InspectLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_InspectLayers",
            display_name="Inspect Layers",
            category=f"{ROOT}/train",
            description="Measures how much the latents of each layer change when they are optimized toward "
            "the target, and draws a bar chart. It shows which layers adaptive selection would "
            "train first. Nothing is trained.",
            search_aliases=["layer importance", "bar chart", "which layers", "adaptive layer freezing"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to measure."),
                GuideType.Input("guide", tooltip="The CLIP guide that supplies the loss."),
                ShiftType.Input("shift", tooltip="The direction in CLIP space."),
                LayersType.Input(
                    "layers",
                    optional=True,
                    tooltip="Settings of the measurement and the number of layers to select. Not connected: the "
                    "defaults.",
                ),
                seed_input("Seed of the latents that are measured."),
                label_input(),
            ],
            outputs=[
                io.Image.Output(
                    "chart", display_name="chart", tooltip="One bar per layer. Selected layers are highlighted."
                ),
                LayersType.Output(
                    "chosen",
                    display_name="chosen",
                    tooltip="The selected layers by name, plus the ToRGB layers if rgb is on. They stay fixed "
                    "during training.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, guide: tuple, shift: Any, seed: int, label: int, layers: Any = None) -> Any:
        choice = layers or LayerChoice(mode="adaptive")
        with for_training(generator, guide) as (lent, guides):
            moves = inspect_layers(lent, guides, shift, choice, seed, class_of(label))
        changes = {layer.name: change for layer, change in moves}
        names = tuple(sorted(changes, key=lambda name: -changes[name])[: choice.count])
        chart = plot_bars(changes, "Change of each layer's latents toward the target", "mean change of w", names)
        rgb = (layer.name for layer in generator.layers() if layer.kind == "rgb" and choice.rgb)
        fixed = replace(choice, mode="named", names=tuple(dict.fromkeys((*names, *rgb))))
        return io.NodeOutput(to_image(chart), fixed)
