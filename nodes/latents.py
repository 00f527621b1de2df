"""Latent nodes: sample, mix, interpolate, render, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..nada_core import Latents, compare_grid, interpolate, mix, render, sample
from ._host import io, normal_mode, on_device, to_image, ui
from ._server import watch
from ._types import ROOT, GeneratorType, LatentsType, several
from ._widgets import class_of, label_input, seed_input

_LATENTS = "Latents for this generator and every generator fine-tuned from it."


class SampleLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SampleLatents",
            display_name="Sample StyleGAN Latents",
            category=f"{ROOT}/latents",
            description="Samples latents from the generator's mapping network. A seed gives the same image in "
            "any batch, and a matching image with every generator fine-tuned from this one.",
            search_aliases=["seed", "random latents", "truncation", "psi", "stylegan sampler"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator to sample from. A fine-tuned generator has the same latents as its source.",
                ),
                seed_input("Seed of the first image; the following images use the next seeds.", redraw=True),
                io.Int.Input("count", default=6, min=1, max=1024, step=1, tooltip="Number of latents."),
                io.Float.Input(
                    "psi",
                    default=0.7,
                    min=0.0,
                    max=1.5,
                    step=0.05,
                    round=0.001,
                    tooltip="Truncation: 0 gives the mean image, 1 the full variety. 0.7 is a common compromise.",
                ),
                io.Int.Input(
                    "cutoff",
                    default=-1,
                    min=-1,
                    max=64,
                    step=1,
                    advanced=True,
                    tooltip="Truncate only the first rows, which control coarse features; this is their number. "
                    "-1: all rows.",
                ),
                label_input(),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip=_LATENTS)],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, seed: int, count: int, psi: float, cutoff: int = -1, label: int = -1) -> Any:
        rows = None if cutoff == -1 else cutoff
        return io.NodeOutput(sample(generator, range(seed, seed + count), psi, rows, class_of(label)))


class MixLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_MixLatents",
            display_name="Mix StyleGAN Latents",
            category=f"{ROOT}/latents",
            description="Style mixing (StyleGAN, section 3.1): moves some rows of the first latents toward "
            "the second. Early rows control pose and shape, late rows color and texture.",
            search_aliases=["style mixing", "blend latents", "lerp", "crossover"],
            inputs=[
                LatentsType.Input("first", tooltip="The latents to start from."),
                LatentsType.Input(
                    "second",
                    tooltip="The latents to move toward: the same number as in first, or a single one for all.",
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Interpolation weight: 0 gives the first, 1 the second. Other values extrapolate "
                    "outside 0 to 1.",
                ),
                io.Int.Input("from_row", default=0, min=0, max=64, step=1, tooltip="First row to mix."),
                io.Int.Input(
                    "to_row",
                    default=-1,
                    min=-1,
                    max=64,
                    step=1,
                    tooltip="End of the row range; this row is not included. -1: up to the last row.",
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip=_LATENTS)],
        )

    @classmethod
    @normal_mode()
    def execute(cls, first: Latents, second: Latents, amount: float, from_row: int, to_row: int) -> Any:
        end = first.ws.shape[1] if to_row == -1 else to_row
        return io.NodeOutput(mix(first, second, amount, (from_row, end)))


class InterpolateLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_InterpolateLatents",
            display_name="Interpolate StyleGAN Latents",
            category=f"{ROOT}/latents",
            description="Interpolates from each latent to the next, for animations. Render the result and "
            "pass the images to a video node.",
            search_aliases=["latent walk video", "latent walk", "stylegan video", "animation", "morph"],
            inputs=[
                LatentsType.Input("latents", tooltip="The key frames, two or more."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=1000,
                    step=1,
                    tooltip="Number of frames from one key frame to the next.",
                ),
                io.Boolean.Input(
                    "loop", default=False, tooltip="Also interpolate from the last key frame back to the first."
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip=_LATENTS)],
        )

    @classmethod
    @normal_mode()
    def execute(cls, latents: Latents, frames: int, loop: bool) -> Any:
        return io.NodeOutput(interpolate(latents, frames, loop))


class Render(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_Render",
            display_name="Render StyleGAN",
            category=f"{ROOT}/latents",
            description="Generates images from latents. A fine-tuned generator renders the same latents in "
            "its new domain.",
            search_aliases=["generate", "synthesize", "stylegan sampler", "draw", "decode"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to use."),
                LatentsType.Input("latents", tooltip="The latents to render, one image each."),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=64,
                    step=1,
                    advanced=True,
                    tooltip="Images per forward pass. Smaller batches use less memory; the images are the same.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="One image per latent.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, latents: Latents, batch: int = 4) -> Any:
        return io.NodeOutput(to_image(_render(generator, latents, batch, watch(len(latents)))))


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_Compare",
            display_name="Compare Generators",
            category=f"{ROOT}/latents",
            description="Renders the same latents with two to eight generators as a labeled grid.",
            search_aliases=["before after", "grid", "side by side", "contact sheet"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                LatentsType.Input("latents", tooltip="The latents to render, one row each."),
                several("generators", "generator", GeneratorType, "The generator of one column, from left to right."),
                io.String.Input(
                    "labels", default="before\nafter", multiline=True, tooltip="Column labels, one line per generator."
                ),
                io.String.Input("title", default="", tooltip="Title above the grid. Optional."),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="The grid as one image.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, latents: Latents, generators: dict[str, Any], labels: str, title: str = "") -> Any:
        names = [line.strip() for line in labels.strip().splitlines()]
        if len(names) != len(generators) or len(set(names)) != len(names):
            raise ValueError(
                f"Got labels {names} for {len(generators)} generators; expected one line per generator, without "
                "duplicates."
            )
        tick = watch(len(generators) * len(latents))
        columns = {
            name: _render(one, latents, 4, tick, index * len(latents))
            for index, (name, one) in enumerate(zip(names, generators.values(), strict=True))
        }
        sheet = to_image(compare_grid(columns, title=title or None))
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _render(generator: Any, latents: Latents, batch: int, tick: Callable[[int], None], before: int = 0) -> Tensor:
    """Render on the compute device. before: number of images already counted by the progress bar."""
    with on_device(generator, need=batch * _PER_PIXEL * generator.resolution**2) as (lent,):
        return render(lent, latents, batch, lambda done, _: tick(before + done))


#: Estimated memory of rendering beyond the weights, in bytes per pixel: eight float32 maps of 32 channels.
_PER_PIXEL = 4 * 32 * 8
