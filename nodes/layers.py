"""Which layers learn: adaptive layer freezing (StyleGAN-NADA, section 4.2), chosen and looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..nada_core import LayerChoice, inspect_layers, plot_bars
from ._host import for_training, io, normal_mode, to_image
from ._types import ROOT, GeneratorType, GuideType, LayersType, ShiftType
from ._widgets import class_of, label_input, seed_input, settings, widgets

#: The widgets of Choose Layers in their order; new ones go to the end.
CHOICE = ("mode", "count", "names", "steps", "batch", "chunk", "every", "rate", "rgb", "noise", "train", "rank")
RARE = ("steps", "batch", "chunk", "rate", "noise")


class ChooseLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ChooseLayers",
            display_name="Choose Layers",
            category=f"{ROOT}/train",
            description="Says which layers a training step may change. adaptive: latents are moved a little towards "
            "the text, and the layers whose latents moved most are trained, which keeps a hard change "
            "from wrecking the generator.",
            search_aliases=["freeze layers", "adaptive layer freezing", "unfreeze", "trainable layers"],
            inputs=widgets(LayerChoice, CHOICE, LayerChoice(mode="adaptive"), RARE),
            outputs=[LayersType.Output("layers", display_name="layers", tooltip="The choice, for Adapt Generator.")],
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
            description="Measures how far each layer's latents move when they are led towards the goal, and draws it "
            "as bars: a look at what an adaptive choice would train first. Nothing is trained.",
            search_aliases=["layer importance", "bar chart", "which layers", "adaptive layer freezing"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to look at."),
                GuideType.Input("guide", tooltip="The CLIP that leads."),
                ShiftType.Input("shift", tooltip="Where to."),
                LayersType.Input(
                    "layers",
                    optional=True,
                    tooltip="How to measure, and how many layers to mark; without it, the defaults.",
                ),
                seed_input("Which random latents are measured."),
                label_input(),
            ],
            outputs=[
                io.Image.Output("chart", display_name="chart", tooltip="One bar a layer, the chosen ones strong."),
                LayersType.Output(
                    "chosen",
                    display_name="chosen",
                    tooltip="The layers that moved most, by name, and the ToRGB layers where the choice "
                    "has them: the same ones at every step.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, guide: tuple, shift: Any, seed: int, label: int, layers: Any = None) -> Any:
        choice = layers or LayerChoice(mode="adaptive")
        with for_training(generator, guide) as (lent, guides):
            moves = inspect_layers(lent, guides, shift, choice, seed, class_of(label))
        found = {layer.name: far for layer, far in moves}
        names = tuple(sorted(found, key=lambda name: -found[name])[: choice.count])
        chart = plot_bars(found, "How far each layer's latents move towards the goal", "mean change of w", names)
        rgb = (layer.name for layer in generator.layers() if layer.kind == "rgb" and choice.rgb)
        fixed = replace(choice, mode="named", names=tuple(dict.fromkeys((*names, *rgb))))
        return io.NodeOutput(to_image(chart), fixed)
