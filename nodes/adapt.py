"""Training nodes: StyleGAN-NADA (arXiv:2108.00946), recipes and the training plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..nada_core import (
    Adaptation,
    AdaptConfig,
    Generator,
    LayerChoice,
    Step,
    adapt,
    grid,
    plot_heat,
    plot_lines,
    render,
    sample,
)
from ..nada_core.adaptation.recipes import RECIPES, Recipe
from ._host import for_training, io, normal_mode, to_image, watch
from ._types import ROOT, DomainType, GeneratorType, GuideType, LayersType, LikenessType, RecipeType, ShiftType
from ._widgets import settings, widgets

#: Widgets of Adapt Generator. Workflows store values by position: append only.
CONFIG = (
    "steps",
    "batch",
    "lr",
    "seed",
    "terms.direction",
    "terms.global",
    "terms.angle",
    "views",
    "psi",
    "noise",
    "schedule",
    "label",
    "warmup",
    "beta1",
    "beta2",
    "grad_clip",
    "ema",
    "chunk",
    "terms.relation",
    "terms.mean_offset",
    "terms.covariance",
    "mirror",
    "patches",
    "weight_reg",
    "fisher_samples",
    "lpips",
    "id",
    "keep_every",
    "patience",
    "precision",
    "checkpointing",
    "pool",
)
RARE = CONFIG[11:]
SHOWN = 4  # latents in the live preview


class AdaptGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AdaptGenerator",
            display_name="Adapt Generator",
            category=f"{ROOT}/train",
            description="Fine-tunes a copy of the generator with StyleGAN-NADA: the CLIP guide supplies the "
            "loss, and no images of the target domain are needed. The preview shows the same "
            "latents before (top) and after (bottom) training so far. The default settings suit "
            "published generators; the workflow templates use the settings for the built-in one.",
            search_aliases=["stylegan-nada", "train", "fine-tune", "text to domain", "domain adaptation", "nada"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to start from. It is not modified."),
                GuideType.Input("guide", tooltip="One CLIP guide, or several from Combine Guides."),
                ShiftType.Input("shift", tooltip="The direction in CLIP space to train along."),
                LayersType.Input(
                    "layers",
                    optional=True,
                    tooltip="The layers to train, from Choose Layers. Not connected: all layers.",
                ),
                *widgets(AdaptConfig, CONFIG, advanced=RARE),
                GuideType.Input(
                    "judge",
                    optional=True,
                    tooltip="A held-out CLIP guide that is not one of the training guides. It scores the "
                    "generator every keep_every steps; the node returns the state with the best score.",
                ),
                RecipeType.Input(
                    "recipe",
                    optional=True,
                    tooltip="From Choose Recipe. It multiplies steps and lr, replaces the loss weights, and may "
                    "set other settings and layers.",
                ),
                LikenessType.Input(
                    "likeness", optional=True, tooltip="From Load Likeness: the networks for the lpips and id losses."
                ),
            ],
            outputs=[
                GeneratorType.Output(
                    "generator",
                    display_name="adapted",
                    tooltip="The fine-tuned generator. It takes the same latents as the source generator.",
                ),
                DomainType.Output(
                    "domain",
                    display_name="domain",
                    tooltip="The weight changes made by training, for Save Domain or Apply Domain.",
                ),
                io.LossMap.Output(
                    "training",
                    display_name="training",
                    tooltip="The losses and the trained layers of every step, for Plot Training.",
                ),
                io.String.Output(
                    "chosen_because",
                    display_name="chosen because",
                    tooltip="Why the judge selected this step. Empty if no judge is connected.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        guide: tuple,
        shift: Any,
        layers: Any = None,
        judge: tuple = ((None, 1.0),),
        recipe: Recipe | None = None,
        likeness: tuple = (None, None),
        **values: Any,
    ) -> Any:
        config = settings(AdaptConfig, CONFIG, values, layers=layers or LayerChoice())
        config = recipe.config(config) if recipe else config
        with for_training(generator, guide, _single(judge), *likeness) as (
            source,
            guides,
            held_out,
            perceptual,
            identity,
        ):
            tick, preview = watch(config.steps), _preview(source, config.label)
            result = adapt(
                source,
                guides,
                shift,
                config,
                on_step=lambda step: tick(step.index + 1, lambda: preview(step)),
                judge=held_out,
                perceptual=perceptual,
                identity=identity,
            )
            adapted = result.generator.cpu()
        return io.NodeOutput(adapted, result.domain, _training(result), result.chosen_because)


def _single(judge: tuple) -> Any:
    if len(judge) != 1:
        raise ValueError(f"Got {len(judge)} guides as judge, expected 1; connect Load CLIP Guide directly.")
    return judge[0][0]


def _preview(source: Generator, label: int | None) -> Callable[[Step], Tensor]:
    """Render a few latents with the source (top row) and with the generator in training (bottom row)."""
    latents = sample(source, range(SHOWN), psi=0.7, label=label)
    before = render(source, latents)
    return lambda step: grid(torch.cat([before, render(step.generator, latents)]), columns=SHOWN)


def _training(result: Adaptation) -> dict[str, Any]:
    """A ComfyUI LOSS_MAP, which the core loss graph can plot too, plus one curve per loss and the trained layers."""
    history = result.history
    curves = {"loss": [step["loss"] for step in history]}
    if len(result.config.terms) > 1:
        curves |= {term: [step["terms"][term] for step in history] for term in result.config.terms}
    names = [layer.name for layer in result.generator.layers()]
    return {**curves, "layers": {name: [float(name in step["layers"]) for step in history] for name in names}}


class ChooseRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        options = "; ".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items())
        return io.Schema(
            node_id="StyleGANNADA_ChooseRecipe",
            display_name="Choose Recipe",
            category=f"{ROOT}/train",
            description="Preset training settings by kind of target. They combine published advice and have "
            "not been measured on published generators. A recipe multiplies the steps and the "
            "learning rate of Adapt Generator.",
            search_aliases=["preset", "settings", "style", "creature", "character"],
            inputs=[
                io.Combo.Input("recipe", options=list(RECIPES), default=next(iter(RECIPES)), tooltip=f"{options}.")
            ],
            outputs=[
                RecipeType.Output("recipe", display_name="recipe", tooltip="For Adapt Generator."),
                io.String.Output("advice", display_name="advice", tooltip="Example phrases and what to watch for."),
            ],
        )

    @classmethod
    def execute(cls, recipe: str) -> Any:
        chosen = RECIPES[recipe]
        words = f"{chosen.source} to {', '.join(chosen.targets) or 'style images'}"
        return io.NodeOutput(chosen, f"{words}\n{chosen.advice}\nGuides: {', '.join(chosen.guides)}")


class PlotTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PlotTraining",
            display_name="Plot Training",
            category=f"{ROOT}/train",
            description="Plots the losses of a training run and, below them, the layers that each step trained.",
            search_aliases=["loss curve", "loss graph", "training plot", "learning curve"],
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
        return io.NodeOutput(to_image(torch.cat(plots, dim=2)))
