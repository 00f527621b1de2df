"""Encoder nodes: predict latents from images (pSp, e4e, ReStyle)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import load_encoder
from ._host import ENCODERS, file_stamp, files, find, from_image, io, missing, normal_mode, on_device
from ._server import watch
from ._types import ROOT, EncoderType, GeneratorType, LatentsType

_NONE = "(no encoder found)"  # ComfyUI rejects a combo box without options


class LoadEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadEncoder",
            display_name="Load StyleGAN Encoder",
            category=f"{ROOT}/load",
            description="Loads a pSp, e4e or ReStyle checkpoint: an encoder, which predicts latents from "
            "images, and the generator it was trained with.",
            search_aliases=["psp", "e4e", "restyle", "encoder4editing", "pixel2style2pixel"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files(ENCODERS) or [_NONE],
                    tooltip="A file in models/stylegan_nada/encoders. Press R to refresh the list.",
                )
            ],
            outputs=[
                EncoderType.Output("encoder", display_name="encoder", tooltip="For Encode Photo."),
                GeneratorType.Output(
                    "generator", display_name="generator", tooltip="The generator stored in the same file."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return missing(ENCODERS, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> Any:
        return file_stamp(ENCODERS, file)

    @classmethod
    @normal_mode()
    def execute(cls, file: str) -> Any:
        encoder = load_encoder(find(ENCODERS, file))
        return io.NodeOutput(encoder, encoder.decoder)


class EncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_EncodeImage",
            display_name="Encode Photo",
            category=f"{ROOT}/photos",
            description="Predicts the latents of images with an encoder, without optimization. For a closer "
            "match, pass the result to Invert Photo as start.",
            search_aliases=["psp", "e4e", "restyle", "encoder inversion", "image to latent"],
            inputs=[
                EncoderType.Input("encoder", tooltip="From Load StyleGAN Encoder."),
                io.Image.Input("image", tooltip="Images aligned like the encoder's training images."),
                GeneratorType.Input(
                    "generator",
                    optional=True,
                    tooltip="The generator that will render the latents, if it is not the encoder's own. It must "
                    "have the same mapping network; it may be fine-tuned.",
                ),
                io.Int.Input(
                    "iterations",
                    default=5,
                    min=1,
                    max=20,
                    step=1,
                    tooltip="Refinement passes of a ReStyle encoder. Other encoders use one pass.",
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="One latent per image.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, encoder: Any, image: Tensor, iterations: int, generator: Any = None) -> Any:
        tick = watch(len(image) * (iterations if encoder.iterative else 1))
        with on_device(encoder) as (lent,):
            latents = lent.encode(from_image(image, 4), iterations, generator, on_pass=lambda done, _: tick(done))
        return io.NodeOutput(latents)
