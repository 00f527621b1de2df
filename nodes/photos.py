"""Pictures from outside: cut out, turned into latents, and drawn exactly by tuning the generator a little."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..nada_core import FacePoints, InvertConfig, Latents, TuneConfig, cut_face, grid, invert, portraits, tune
from ..nada_core.cli import report as wording
from ..nada_core.io.images import square
from ._host import for_training, from_image, io, normal_mode, to_image, watch
from ._types import ROOT, DomainType, GeneratorType, LatentsType, LikenessType
from ._widgets import seed_input, settings, widgets

#: The widgets of Invert Photo and Pivotal Tuning in their order; new ones go to the end.
INVERT = (
    "space",
    "steps",
    "lr",
    "seed",
    "mse",
    "lpips",
    "id",
    "optimize_noise",
    "stop_psnr",
    "batch",
    "coarse",
    "delta",
    "w_steps_share",
    "lr_rampup",
    "lr_rampdown",
    "initial_noise_factor",
    "noise_ramp_length",
    "noise_reg",
    "patience",
)
TUNE = (
    "steps",
    "lr",
    "seed",
    "mse",
    "lpips",
    "id",
    "locality",
    "stop_psnr",
    "stop_lpips",
    "batch",
    "lr_rampdown",
    "distance",
    "psi",
    "num_neighbours",
)
#: What Align Face cuts out of a photo, size, points and index of the face given.
CUTS: dict[str, Callable[..., Tensor]] = {
    "the face": cut_face,
    "the face, else the middle": partial(cut_face, middle=True),
    "the middle": lambda photo, size, *_: square(photo, size),
}
_CHANNELS = 4  # a picture with transparency is laid on white
_LIKENESS = "From Load Likeness: what the lpips and id terms see with. Without it, set both to 0."


class AlignFace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AlignFace",
            display_name="Align Face",
            category=f"{ROOT}/photos",
            description="Cuts the face out of a photo the way FFHQ was cut, upright and in one size, which is the only "
            "way its generators and encoders know faces.",
            search_aliases=["ffhq align", "crop face", "face crop", "landmarks"],
            inputs=[
                io.Image.Input("image", tooltip="One photo, or several as a batch."),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=16,
                    max=2048,
                    step=1,
                    tooltip="Pixels a side of the result: as a rule the generator's.",
                ),
                io.Int.Input(
                    "face",
                    default=0,
                    min=0,
                    max=100,
                    step=1,
                    tooltip="Which face, where there are several: 0 is the largest, 1 the next.",
                ),
                io.String.Input(
                    "points",
                    default="",
                    placeholder="120,150 180,150 150,185 125,220 175,220",
                    tooltip="The five points by hand, in pixels of the photo: left eye, right eye, nose, "
                    "left and right corner of the mouth, as seen in the picture; the nose may be "
                    "left out. Empty: they are found, which takes the package mtcnn-runtime.",
                ),
                io.Combo.Input(
                    "cut",
                    options=list(CUTS),
                    default=next(iter(CUTS)),
                    tooltip="What to cut out: the face, and stop with a message where none is found; the "
                    "face, or the middle square as it is where none is found; or the middle square "
                    "without looking.",
                ),
            ],
            outputs=[io.Image.Output("aligned", display_name="aligned", tooltip="The faces, one a photo.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, image: Tensor, size: int, face: int, points: str, cut: str) -> Any:
        marked, photos = FacePoints.parse(points) if points.strip() else None, from_image(image).split(1)
        cuts = [CUTS[cut](photo, size, marked, face) for photo in photos]
        return io.NodeOutput(to_image(torch.cat(cuts)))


class DrawPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_DrawPortrait",
            display_name="Draw Portrait",
            category=f"{ROOT}/photos",
            description="Draws people of the built-in world by formula, without any generator: pictures to try "
            "inversion with, or the true look of a style.",
            search_aliases=["test picture", "example photo", "portraits", "ground truth"],
            inputs=[
                seed_input("The first picture's seed; the next ones count up from it.", redraw=True),
                io.Int.Input("count", default=3, min=1, max=256, step=1, tooltip="How many pictures."),
                io.Combo.Input(
                    "style",
                    options=list(portraits.STYLES),
                    default=portraits.SOURCE,
                    tooltip="How they are drawn. A seed is the same person in every style.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="Pictures of 64 x 64 pixels.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, seed: int, count: int, style: str) -> Any:
        return io.NodeOutput(to_image(portraits.render(portraits.contents(range(seed, seed + count)), style)))


class InvertImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_InvertImage",
            display_name="Invert Photo",  # the host has an "Invert Image", of colours
            category=f"{ROOT}/photos",
            description="Finds the latents whose pictures come closest to the given ones. They can be edited, mixed, "
            "and drawn by every adapted generator. Photos want to be aligned first.",
            search_aliases=["projector", "gan inversion", "encode", "w+", "latent optimisation", "image to latent"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Whose latents; it stays as it is."),
                io.Image.Input("image", tooltip="One picture or more, of any size; the middle square counts."),
                LikenessType.Input("likeness", optional=True, tooltip=_LIKENESS),
                LatentsType.Input(
                    "start",
                    optional=True,
                    tooltip="Where to begin, one latent a picture, as Encode Image gives them. All of "
                    "their rows count in w+ only, elsewhere the mean row. Without it: at the "
                    "mean of w.",
                ),
                *widgets(InvertConfig, INVERT, advanced=INVERT[10:]),
            ],
            outputs=[
                LatentsType.Output("latents", display_name="latents", tooltip="The best found, one a picture."),
                io.Image.Output("inverted", display_name="inverted", tooltip="What the generator makes of them."),
                io.String.Output("report", display_name="report", tooltip="How close they came, a line a picture."),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls, generator: Any, image: Tensor, likeness: tuple = (None, None), start: Latents | None = None, **values: Any
    ) -> Any:
        config, pictures = settings(InvertConfig, INVERT, values), from_image(image, _CHANNELS)
        tick = watch(len(pictures) * config.steps)
        with for_training(generator, (), *likeness) as (source, _, *eyes):
            result = invert(source, pictures, config, *eyes, start, _watched(tick, "done"))
            told = wording.closeness(result.images, result.targets, eyes[0], result.steps)
        return io.NodeOutput(result.latents, to_image(result.images), told)


class PivotalTuning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PivotalTuning",
            display_name="Pivotal Tuning",
            category=f"{ROOT}/photos",
            description="Moves a copy of the generator a little, so that it draws the pictures far more closely from "
            "their latents (PTI). The change is a domain, which an adapted generator takes too.",
            search_aliases=["pti", "fine-tune on photo", "personalise", "pivotal"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The one the latents were found for; it stays as it is."),
                io.Image.Input("image", tooltip="The pictures that were inverted."),
                LatentsType.Input("latents", tooltip="Their latents, from Invert Photo or Encode Image."),
                LikenessType.Input("likeness", optional=True, tooltip=_LIKENESS),
                *widgets(TuneConfig, TUNE, advanced=TUNE[10:]),
            ],
            outputs=[
                GeneratorType.Output("generator", display_name="tuned", tooltip="The generator that knows them."),
                DomainType.Output(
                    "domain",
                    display_name="domain",
                    tooltip="What the tuning changed, for Apply Domain on an adapted generator.",
                ),
                io.Image.Output("drawn", display_name="drawn", tooltip="What it draws of the latents."),
                io.String.Output("report", display_name="report", tooltip="How close it comes, a line a picture."),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls, generator: Any, image: Tensor, latents: Latents, likeness: tuple = (None, None), **values: Any
    ) -> Any:
        config = settings(TuneConfig, TUNE, values)
        tick = watch(config.steps)
        with for_training(generator, (), *likeness) as (source, _, *eyes):
            result = tune(source, from_image(image, _CHANNELS), latents, config, *eyes, _watched(tick, "index"))
            told = wording.closeness(result.images, result.targets, eyes[0])
            tuned = result.generator.cpu()
        return io.NodeOutput(tuned, result.domain, to_image(result.images), told)


def _watched(tick: Callable[..., None], count: str) -> Callable[[Any], None]:
    """Progress with a preview. count: the step's field that says how far it is."""
    return lambda step: tick(getattr(step, count) + (count == "index"), lambda: grid(step.images()))
