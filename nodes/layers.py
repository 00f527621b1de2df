"""Layer selection nodes: adaptive layer freezing (StyleGAN-NADA, section 4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..nada_core import AdaptConfig, LayerChoice, inspect_layers, plot_bars
from ..nada_core.runtime.config import describe
from ._host import for_training, io, normal_mode, to_image, ui
from ._types import ROOT, GeneratorType, GuideType, LayersType, ShiftType
from ._widgets import AUTOMATIC, changes, changes_inputs, class_of, label_input, seed_input
from .training_options import layer_choice

DETAIL = "in detail"
#: Widgets of Choose Layers by mode. Workflows store values by position: append only.
MODES: dict[str, tuple[str, ...]] = {
    "adaptive": ("count",),
    f"adaptive {DETAIL}": ("count", "every"),
    "all": (),
    "named": (),
}
#: Further widgets of "adaptive in detail", with this prefix: Adapt Generator has other steps and batches.
MEASURE, MEASUREMENT = "measure_", ("steps", "batch", "chunk", "rate")
#: What Choose Layers trains besides the layers: the fields rgb and noise.
EXTRAS = {
    AUTOMATIC: {},
    "nothing": {"rgb": False, "noise": False},
    "ToRGB": {"rgb": True, "noise": False},
    "noise strengths": {"rgb": False, "noise": True},
    "both": {"rgb": True, "noise": True},
}


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
            inputs=[_mode_input(), _train_input(), _extra_input()],
            outputs=[
                LayersType.Output("layers", display_name="layers", tooltip="The layer selection, for Adapt Generator.")
            ],
        )

    @classmethod
    def execute(cls, mode: dict[str, Any], train: dict[str, Any], extra: str) -> Any:
        fields = {"mode": mode["mode"].partition(" ")[0], **changes(LayerChoice, MODES[mode["mode"]], mode)}
        if DETAIL in mode["mode"]:
            fields |= changes(LayerChoice, MEASUREMENT, mode, MEASURE)
        if fields["mode"] == "named":
            fields["names"] = tuple(mode["names"].replace(",", " ").split())
            if not fields["names"]:
                raise ValueError("names is empty; enter layer names as StyleGAN Loader lists them, or choose all.")
        rank = changes(LayerChoice, ("rank",), train) if train["train"] == "low-rank" else {}
        trained = {} if train["train"] == AUTOMATIC else {"train": train["train"]}
        return io.NodeOutput({**fields, **trained, **rank, **EXTRAS[extra]})


def _mode_input() -> Any:
    names = io.String.Input(
        "names", default="", tooltip="Layer names from StyleGAN Loader, separated by commas or spaces."
    )
    inputs = {mode: changes_inputs(LayerChoice, fields) for mode, fields in MODES.items()}
    inputs["named"] += [names]
    inputs[f"adaptive {DETAIL}"] += changes_inputs(LayerChoice, MEASUREMENT, MEASURE)
    return io.DynamicCombo.Input(
        "mode",
        options=[io.DynamicCombo.Option(mode, own) for mode, own in inputs.items()],
        tooltip="adaptive: the layers that the text moves most. adaptive in detail: the same with all its settings. "
        "all: all layers. named: the layers in names.",
    )


def _train_input() -> Any:
    (item,) = (item for item in describe(LayerChoice) if item.name == "train")
    return io.DynamicCombo.Input(
        "train",
        options=[
            io.DynamicCombo.Option(part, changes_inputs(LayerChoice, ("rank",)) if part == "low-rank" else [])
            for part in (AUTOMATIC, *(item.choices or ()))
        ],
        tooltip=f"{item.help[0].upper()}{item.help[1:]}.",
    )


def _extra_input() -> Any:
    return io.Combo.Input(
        "extra",
        options=list(EXTRAS),
        default=AUTOMATIC,
        tooltip="What is trained besides the chosen layers: ToRGB layers (not for named), noise strengths, both or "
        "nothing.",
    )


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
            is_output_node=True,
            has_intermediate_output=True,
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
                    tooltip="The selected layers by name, plus the ToRGB layers if they are trained, too. They stay "
                    "fixed during training.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls, generator: Any, guide: tuple, shift: Any, seed: int, label: int, layers: dict[str, Any] | None = None
    ) -> Any:
        own = generator.recommended_settings("adapt", AdaptConfig).layers
        choice = layer_choice(generator, replace(own, mode="adaptive"), layers)
        with for_training(generator, guide) as (lent, guides):
            moves = inspect_layers(lent, guides, shift, choice, seed, class_of(label))
        changes = {layer.name: change for layer, change in moves}
        names = tuple(sorted(changes, key=lambda name: -changes[name])[: choice.count])
        title = "Change of each layer's latents toward the target"
        chart = to_image(plot_bars(changes, title, "mean change of w", names))
        rgb = (layer.name for layer in generator.layers() if layer.kind == "rgb" and choice.rgb)
        fixed = {**(layers or {}), "mode": "named", "names": tuple(dict.fromkeys((*names, *rgb)))}
        return io.NodeOutput(chart, fixed, ui=ui.PreviewImage(chart, cls=cls))
