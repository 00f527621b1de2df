"""The training itself (StyleGAN-NADA, arXiv:2108.00946), and a look at how it went."""

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

#: The widgets of Adapt Generator in their order; new ones go to the end.
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
            description="StyleGAN-NADA: trains a copy of the generator so that, in the eyes of the guide, every "
            "picture moves along the shift. The preview shows the same latents before (top) and now. The "
            "settings shown at first suit published generators; the workflow templates have those of the "
            "built-in one.",
            search_aliases=["stylegan-nada", "train", "fine-tune", "text to domain", "domain adaptation", "nada"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Where to start. It stays as it is."),
                GuideType.Input("guide", tooltip="One CLIP, or several combined."),
                ShiftType.Input("shift", tooltip="Where to go."),
                LayersType.Input("layers", optional=True, tooltip="Which layers learn; without it, all of them."),
                *widgets(AdaptConfig, CONFIG, advanced=RARE),
                GuideType.Input(
                    "judge",
                    optional=True,
                    tooltip="A guide that is not among those that lead. With keep_every it looks on and "
                    "chooses which step's generator comes out.",
                ),
                RecipeType.Input(
                    "recipe",
                    optional=True,
                    tooltip="From Choose Recipe: it changes what the widgets and the layers say, steps "
                    "and learning rate in proportion, the loss weights as a whole.",
                ),
                LikenessType.Input(
                    "likeness",
                    optional=True,
                    tooltip="From Load Likeness: what the lpips and id terms see with, which keep "
                    "pictures near what they were.",
                ),
            ],
            outputs=[
                GeneratorType.Output(
                    "generator",
                    display_name="adapted",
                    tooltip="The new generator. It takes the same latents as the old one.",
                ),
                DomainType.Output(
                    "domain",
                    display_name="domain",
                    tooltip="What the training changed, to be saved, or applied with a strength.",
                ),
                io.LossMap.Output(
                    "training",
                    display_name="training",
                    tooltip="The losses of every step and the layers it trained, for Plot Training.",
                ),
                io.String.Output(
                    "chosen_because",
                    display_name="chosen because",
                    tooltip="Why the judge chose the step it chose; empty without one.",
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
        with for_training(generator, guide, _one(judge), *likeness) as (source, guides, *seers):
            tick, look = watch(config.steps), _before_and_now(source, config.label)
            result = adapt(
                source,
                guides,
                shift,
                config,
                lambda step: tick(step.index + 1, lambda: look(step)),
                None,
                False,
                *seers,
            )
            adapted = result.generator.cpu()
        return io.NodeOutput(adapted, result.domain, _training(result), result.chosen_because)


def _one(judge: tuple) -> Any:
    if len(judge) != 1:
        raise ValueError(f"Got {len(judge)} guides combined as judge, expected one; connect Load CLIP Guide itself.")
    return judge[0][0]


def _before_and_now(source: Generator, label: int | None) -> Callable[[Step], Tensor]:
    """The live preview: the same few latents by the source, above, and by the generator as it is now."""
    latents = sample(source, range(SHOWN), psi=0.7, label=label)
    before = render(source, latents)
    return lambda step: grid(torch.cat([before, render(step.generator, latents)]), columns=SHOWN)


def _training(result: Adaptation) -> dict[str, Any]:
    """ComfyUI's LOSS_MAP, so that its own loss graph draws it too, with more curves and the layers beside it."""
    history = result.history
    curves = {"loss": [step["loss"] for step in history]}
    if len(result.config.terms) > 1:
        curves |= {term: [step["terms"][term] for step in history] for term in result.config.terms}
    layers = result.generator.layers()
    return {**curves, "layers": {one.name: [float(one.name in step["layers"]) for step in history] for one in layers}}


class ChooseRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        told = "; ".join(f"{name}: {recipe.about}" for name, recipe in RECIPES.items())
        return io.Schema(
            node_id="StyleGANNADA_ChooseRecipe",
            display_name="Choose Recipe",
            category=f"{ROOT}/train",
            description="Settings by kind of target, put together from what was published; not measured here on "
            "published generators. They change those of Adapt Generator, steps and learning rate in "
            "proportion.",
            search_aliases=["preset", "settings", "style", "creature", "character"],
            inputs=[io.Combo.Input("recipe", options=list(RECIPES), default=next(iter(RECIPES)), tooltip=f"{told}.")],
            outputs=[
                RecipeType.Output("recipe", display_name="recipe", tooltip="For Adapt Generator."),
                io.String.Output("advice", display_name="advice", tooltip="Words that work, and what to watch."),
            ],
        )

    @classmethod
    def execute(cls, recipe: str) -> Any:
        chosen = RECIPES[recipe]
        words = f"{chosen.source} to {', '.join(chosen.targets) or 'pictures'}"
        return io.NodeOutput(chosen, f"{words}\n{chosen.advice}\nGuides: {', '.join(chosen.guides)}")


class PlotTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PlotTraining",
            display_name="Plot Training",
            category=f"{ROOT}/train",
            description="Draws the losses of a training, and below them which layers each step trained.",
            search_aliases=["loss curve", "loss graph", "training plot", "learning curve"],
            inputs=[
                io.LossMap.Input("training", tooltip="From Adapt Generator, or another node that trains."),
                io.Float.Input(
                    "smoothing",
                    default=0.9,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    tooltip="Decay of the moving average drawn over the pale raw curve. 0: none.",
                ),
            ],
            outputs=[io.Image.Output("plot", display_name="plot", tooltip="Curves above, layers below.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, training: dict[str, Any], smoothing: float) -> Any:
        curves = {name: [float(v) for v in values] for name, values in training.items() if name != "layers"}
        plots = [plot_lines(curves, "Loss", smooth=smoothing)]
        if isinstance(layers := training.get("layers"), dict):
            plots.append(plot_heat(list(layers.values()), list(layers), "Layers trained"))
        return io.NodeOutput(to_image(torch.cat(plots, dim=2)))
