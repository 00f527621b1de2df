"""Training nodes: StyleGAN-NADA (arXiv:2108.00946) and the training plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..nada_core import Adaptation, AdaptConfig, Generator, Step, adapt, grid, plot_heat, plot_lines, render, sample
from ..nada_core.adaptation.provenance import run_fingerprint
from ..nada_core.adaptation.resume import saved_progress
from ._host import for_training, io, normal_mode, to_image, ui
from ._runs import autosave_path, recent, stoppable
from ._server import send_text
from ._status import few, watch_steps
from ._types import ROOT, DomainType, GeneratorType, GuideType, LayersType, OptionsType, ShiftType, SimilarityType
from ._widgets import seed_input
from .training_options import settings_input, training_config

SHOWN = 4  # latents in the live preview


class AdaptGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AdaptGenerator",
            display_name="Adapt Generator",
            category=f"{ROOT}/train",
            description="Fine-tunes a copy of the generator with StyleGAN-NADA: the CLIP guide supplies the loss, and "
            "no images of the target domain are needed. The preview shows the same latents before (top) and after "
            "(bottom) training so far. By default, the settings are those that the generator's file recommends.",
            search_aliases=["stylegan-nada", "train", "fine-tune", "text to domain", "domain adaptation", "nada"],
            has_intermediate_output=True,
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to start from. It is not modified."),
                GuideType.Input("guide", tooltip="One CLIP guide, or several from Combine CLIP Guides."),
                ShiftType.Input("shift", tooltip="The direction in CLIP space to train along."),
                LayersType.Input(
                    "layers",
                    optional=True,
                    tooltip="The layers to train, from Choose Layers. Not connected: automatic.",
                ),
                settings_input(),
                seed_input("Random seed of the training. It stays fixed after a run."),
                GuideType.Input(
                    "judge",
                    optional=True,
                    tooltip="A held-out CLIP guide that is not one of the training guides. It scores the "
                    "generator about 12 times, or as StyleGAN Training Options say; the node returns the state with "
                    "the best score.",
                ),
                SimilarityType.Input(
                    "similarity_networks",
                    optional=True,
                    tooltip="From Load LPIPS and Identity: the networks for the lpips and id losses.",
                ),
                OptionsType.Input(
                    "options", optional=True, tooltip="From StyleGAN Training Options: less frequently used settings."
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
                    tooltip="The weight changes made by training, for Save StyleGAN Domain or Apply StyleGAN Domain.",
                ),
                io.LossMap.Output(
                    "training",
                    display_name="training",
                    tooltip="The losses and the trained layers of every step, for Plot StyleGAN Training.",
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
        settings: dict[str, Any],
        seed: int,
        layers: dict[str, Any] | None = None,
        judge: tuple = ((None, 1.0),),
        similarity_networks: tuple = (None, None),
        options: dict[str, Any] | None = None,
    ) -> Any:
        held_out = _single(judge)
        config = training_config(generator, settings, seed, layers, options, judged=held_out is not None)
        fingerprint = run_fingerprint(generator, guide, shift, config, held_out, *similarity_networks)
        result = recent.get(fingerprint)
        if result is None:
            result = _train(generator, guide, shift, config, held_out, similarity_networks, fingerprint)
        else:
            send_text(f"{config.steps} steps, remembered from an earlier run")
        outputs, sheet = result
        return io.NodeOutput(*outputs, ui=ui.PreviewImage(sheet, cls=cls))


def _train(
    generator: Any,
    guide: tuple,
    shift: Any,
    config: AdaptConfig,
    judge: Any,
    similarity_networks: tuple,
    fingerprint: str,
) -> tuple[tuple[Any, ...], Tensor]:
    """Return the outputs of the node and the images before and after the training.

    The training continues from its autosave, if there is one. A finished training is remembered.
    """
    path = autosave_path(fingerprint)
    if done := saved_progress(path, fingerprint).get("index", 0):
        send_text(f"Continuing after step {done}/{config.steps}")
    else:
        path.unlink(missing_ok=True)  # a file that cannot be read
    with (
        for_training(generator, guide, judge, *similarity_networks) as (source, guides, held_out, *networks),
        stoppable() as stop,
    ):
        tick, preview = watch_steps(config.steps), _preview(source, config.label)
        continued = (f"continued after step {done}",) if done else ()

        def on_step(step: Step) -> None:
            details = f"loss {step.loss:.3f}", few(step.layers), *continued
            tick(step.index + 1, lambda: preview(step.generator), *details)

        result = adapt(
            source,
            guides,
            shift,
            config,
            on_step=on_step,
            autosave=path,
            resume=True,
            judge=held_out,
            perceptual=networks[0],
            identity=networks[1],
            stop=stop,
            threads=0,
        )
        sheet = to_image(preview(result.generator))
        adapted = result.generator.cpu()
    steps, reason = len(result.history), result.chosen_because
    if stopped := result.domain.provenance.get("stopped_after"):
        reason = f"Stopped after {steps} of {config.steps} steps. {reason}".strip()
    outputs = (adapted, result.domain, _training(result), reason)
    if not stopped:
        recent.add(fingerprint, (outputs, sheet))
        path.unlink(missing_ok=True)
    send_text(reason or f"{steps} steps, loss {result.history[-1]['loss']:.3f}")
    return outputs, sheet


def _single(judge: tuple) -> Any:
    if len(judge) != 1:
        raise ValueError(f"Got {len(judge)} guides as judge, expected 1; connect Load CLIP Guide directly.")
    return judge[0][0]


def _preview(source: Generator, label: int | None) -> Callable[[Generator], Tensor]:
    """Render a few latents with the source (top row) and with the generator in training (bottom row)."""
    latents = sample(source, range(SHOWN), psi=0.7, label=label)
    before = render(source, latents)
    return lambda student: grid(torch.cat([before, render(student, latents)]), columns=SHOWN)


def _training(result: Adaptation) -> dict[str, Any]:
    """A ComfyUI LOSS_MAP, which the core loss graph can plot too, plus one curve per loss and the trained layers."""
    history = result.history
    curves = {"loss": [step["loss"] for step in history]}
    if len(result.config.terms) > 1:
        curves |= {term: [step["terms"][term] for step in history] for term in result.config.terms}
    names = [layer.name for layer in result.generator.layers()]
    return {**curves, "layers": {name: [float(name in step["layers"]) for step in history] for name in names}}


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
