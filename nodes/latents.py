"""Latents and their pictures: sample, mix, walk, render, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..nada_core import Latents, compare_grid, interpolate, mix, render, sample
from ._host import io, normal_mode, on_device, to_image, watch
from ._types import ROOT, GeneratorType, LatentsType
from ._widgets import class_of, label_input, seed_input

_LATENTS = "Latents; they fit the generator they come from and every one adapted from it."


class SampleLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SampleLatents",
            display_name="Sample Latents",
            category=f"{ROOT}/latents",
            description="Draws latents from the generator's mapping network. A seed is the same picture in any batch "
            "and with every generator adapted from this one.",
            search_aliases=["seed", "random latents", "truncation", "psi", "stylegan sampler"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Whose latents; an adapted generator has its source's."),
                seed_input("The first picture's seed; the next ones count up from it.", redraw=True),
                io.Int.Input("count", default=6, min=1, max=1024, step=1, tooltip="How many latents."),
                io.Float.Input(
                    "psi",
                    default=0.7,
                    min=0.0,
                    max=1.5,
                    step=0.05,
                    round=0.001,
                    tooltip="Truncation: 0 gives the mean picture, 1 the full variety, 0.7 the usual compromise.",
                ),
                io.Int.Input(
                    "cutoff",
                    default=-1,
                    min=-1,
                    max=64,
                    step=1,
                    advanced=True,
                    tooltip="Truncate only the first so many rows, which are the coarse ones. -1: all.",
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
            display_name="Mix Latents",
            category=f"{ROOT}/latents",
            description="Takes some rows of the first latents towards the second: the early rows carry pose and "
            "shape, the late ones colour and texture (style mixing, StyleGAN section 3.1).",
            search_aliases=["style mixing", "blend latents", "lerp", "crossover"],
            inputs=[
                LatentsType.Input("first", tooltip="Where to start."),
                LatentsType.Input("second", tooltip="Where to go: as many latents, or one for all."),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How far: 0 the first, 1 the second, beyond exaggerates.",
                ),
                io.Int.Input("from_row", default=0, min=0, max=64, step=1, tooltip="The first row that moves."),
                io.Int.Input(
                    "to_row",
                    default=-1,
                    min=-1,
                    max=64,
                    step=1,
                    tooltip="The row before which it ends. -1: up to the last one.",
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
            display_name="Interpolate Latents",
            category=f"{ROOT}/latents",
            description="A walk from each latent to the next, for animations: render it and give the pictures to a "
            "video node.",
            search_aliases=["latent walk", "animation", "morph", "interpolation", "video"],
            inputs=[
                LatentsType.Input("latents", tooltip="The key frames, two or more."),
                io.Int.Input(
                    "frames", default=16, min=1, max=1000, step=1, tooltip="Pictures from one key frame to the next."
                ),
                io.Boolean.Input("loop", default=False, tooltip="Walk back from the last one to the first."),
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
            display_name="Render",
            category=f"{ROOT}/latents",
            description="Draws latents with a generator. The same latents through an adapted generator are the same "
            "pictures in the new domain.",
            search_aliases=["generate", "synthesize", "stylegan sampler", "draw", "decode"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Who draws."),
                LatentsType.Input("latents", tooltip="What is drawn, one picture a latent."),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=64,
                    step=1,
                    advanced=True,
                    tooltip="Pictures at once; fewer need less memory and give the same pictures.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="One picture a latent.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, latents: Latents, batch: int = 4) -> Any:
        return io.NodeOutput(to_image(_draw(generator, latents, batch, watch(len(latents)))))


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        def another(which: str) -> Any:
            return GeneratorType.Input(which, optional=True, tooltip=f"A {which} generator, or nothing.")

        return io.Schema(
            node_id="StyleGANNADA_Compare",
            display_name="Compare",
            category=f"{ROOT}/latents",
            description="Draws the same latents with two to four generators, side by side and labelled.",
            search_aliases=["before after", "grid", "side by side", "contact sheet"],
            inputs=[
                LatentsType.Input("latents", tooltip="What is drawn, one row a latent."),
                GeneratorType.Input("before", tooltip="The first column."),
                GeneratorType.Input("after", tooltip="The second column."),
                another("third"),
                another("fourth"),
                io.String.Input(
                    "labels",
                    default="before\nafter",
                    multiline=True,
                    tooltip="What stands above the columns, one line a column.",
                ),
                io.String.Input("title", default="", tooltip="What stands above it all; may stay empty."),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="One picture with all of it.")],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        latents: Latents,
        before: Any,
        after: Any,
        labels: str,
        title: str = "",
        third: Any = None,
        fourth: Any = None,
    ) -> Any:
        generators = [one for one in (before, after, third, fourth) if one is not None]
        names = [line.strip() for line in labels.strip().splitlines()]
        if len(names) != len(generators) or len(set(names)) != len(names):
            raise ValueError(
                f"Got the labels {names} for {len(generators)} generators; expected one line a generator, "
                "each different."
            )
        tick = watch(len(generators) * len(latents))
        columns = {
            name: _draw(one, latents, 4, tick, index * len(latents))
            for index, (name, one) in enumerate(zip(names, generators, strict=True))
        }
        return io.NodeOutput(to_image(compare_grid(columns, title=title or None)))


def _draw(generator: Any, latents: Latents, batch: int, tick: Callable[[int], None], before: int = 0) -> Tensor:
    """before: how many pictures the progress bar has already."""
    with on_device(generator, need=batch * _PER_PIXEL * generator.resolution**2) as (lent,):
        return render(lent, latents, batch, lambda done, _: tick(before + done))


#: Bytes a pixel that drawing may take beyond the weights, a guess: eight float32 maps of 32 channels at full size.
_PER_PIXEL = 4 * 32 * 8
