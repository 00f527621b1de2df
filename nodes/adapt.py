"""Training nodes: StyleGAN-NADA (arXiv:2108.00946) and the training plot."""

from __future__ import annotations

from typing import Any

import torch

from ..nada_core import plot_heat, plot_lines
from ..nada_core.adaptation.provenance import run_fingerprint
from ..nada_core.adaptation.snapshots import MAX_SNAPSHOTS
from ._host import io, normal_mode, to_image, ui
from ._training import adapt_run, train
from ._types import ROOT, DomainType, GeneratorType, GuideType, OptionsType, ShiftType, SnapshotsType
from ._widgets import seed_input
from .training_options import layers_input, recipe_stamp, settings_input, similarity_input, training_config


class AdaptGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AdaptGenerator",
            display_name="Adapt Generator (Train StyleGAN-NADA)",
            category=f"{ROOT}/train",
            description="Fine-tunes a copy of the generator with StyleGAN-NADA: the CLIP guide supplies the loss, and "
            "no images of the target domain are needed. The preview shows the same latents before (top) and after "
            "(bottom) training so far. By default, the settings are those that the generator's file recommends.",
            search_aliases=[
                "nada",
                "stylegan-nada",
                "train stylegan",
                "finetune gan",
                "fine-tune gan",
                "text to domain",
                "domain adaptation",
            ],
            has_intermediate_output=True,
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to start from. It is not modified."),
                GuideType.Input("guide", tooltip="One CLIP guide, or several from Combine CLIP Guides."),
                ShiftType.Input("shift", tooltip="The direction in CLIP space to train along."),
                layers_input(),
                settings_input(),
                seed_input("Random seed of the training. It stays fixed after a run."),
                snapshot_input(),
                GuideType.Input(
                    "judge",
                    optional=True,
                    tooltip="A held-out CLIP guide that is not one of the training guides. It scores the "
                    "generator about 12 times, or as StyleGAN Training Options say; the node returns the state with "
                    "the best score.",
                ),
                similarity_input(),
                OptionsType.Input(
                    "options", optional=True, tooltip="From StyleGAN Training Options or Find Settings: more settings."
                ),
            ],
            outputs=training_outputs(
                io.String.Output(
                    "chosen_because",
                    display_name="chosen because",
                    tooltip="Why the judge selected this step, and after how many steps the training was stopped with "
                    "Stop and keep. Empty otherwise.",
                )
            ),
        )

    @classmethod
    def fingerprint_inputs(cls, settings: dict[str, Any] | None = None, **_: Any) -> Any:
        return recipe_stamp(settings)

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        guide: tuple,
        shift: Any,
        settings: dict[str, Any],
        seed: int,
        snapshot_every: int = 0,
        layers: dict[str, Any] | None = None,
        judge: tuple = ((None, 1.0),),
        similarity_networks: tuple = (None, None),
        options: dict[str, Any] | None = None,
    ) -> Any:
        held_out = single_judge(judge)
        config = training_config(generator, settings, seed, layers, options, judged=held_out is not None)
        fingerprint = run_fingerprint(generator, guide, shift, config, held_out, *similarity_networks)
        run, others = adapt_run(shift, config), (held_out, *similarity_networks)
        outputs, snapshots, sheet = train(run, config, generator, guide, others, fingerprint, snapshot_every)
        return io.NodeOutput(*outputs, snapshots, ui=ui.PreviewImage(sheet, cls=cls))


def snapshot_input() -> Any:
    return io.Int.Input(
        "snapshot_every",
        default=0,
        min=0,
        max=100_000,
        step=1,
        tooltip="Save a snapshot every so many steps and at the end, for Pick Snapshot; at most "
        f"{MAX_SNAPSHOTS}. They do not change the training. 0: none. The files lie in "
        "output/stylegan_nada/runs and take about 50 MB each at 1024 pixels; old ones are removed.",
    )


def training_outputs(reason: Any) -> list[Any]:
    """The outputs of a node that trains. reason: its text output."""
    return [
        GeneratorType.Output(
            "generator",
            display_name="adapted",
            tooltip="The fine-tuned generator. It takes the same latents as the source generator.",
        ),
        DomainType.Output(
            "domain",
            display_name="domain",
            tooltip="The weight changes made by training, for Save StyleGAN Domain or Apply StyleGAN Domain.",
        ),
        io.LossMap.Output(
            "training",
            display_name="training",
            tooltip="The losses and the trained layers of every step, for Plot StyleGAN Training.",
        ),
        reason,
        SnapshotsType.Output(
            "snapshots",
            display_name="snapshots",
            tooltip="The training every snapshot_every steps, for Pick Snapshot. Empty if snapshot_every is 0.",
        ),
    ]


def single_judge(judge: tuple) -> Any:
    """Return the only guide of a judge input; None if it is not connected."""
    if len(judge) != 1:
        raise ValueError(f"Got {len(judge)} guides as judge, expected 1; connect Load CLIP Guide directly.")
    return judge[0][0]


class PlotTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PlotTraining",
            display_name="Plot StyleGAN Training",
            category=f"{ROOT}/train",
            description="Plots the losses of a training run and, below them, the layers that each step trained.",
            search_aliases=["loss curve", "loss graph", "training plot", "learning curve"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.LossMap.Input(
                    "training", tooltip="From Adapt Generator, or any other node that outputs a LOSS_MAP."
                ),
                io.Float.Input(
                    "smoothing",
                    default=0.9,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    tooltip="Decay of the moving average; the raw curve is drawn in a lighter color. 0: no average.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Loss curves at the top, trained layers at the bottom."
                )
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, training: dict[str, Any], smoothing: float) -> Any:
        curves = {name: [float(v) for v in values] for name, values in training.items() if name != "layers"}
        plots = [plot_lines(curves, "Loss", smooth=smoothing)]
        if isinstance(layers := training.get("layers"), dict):
            plots.append(plot_heat(list(layers.values()), list(layers), "Layers trained"))
        plot = to_image(torch.cat(plots, dim=2))
        return io.NodeOutput(plot, ui=ui.PreviewImage(plot, cls=cls))
