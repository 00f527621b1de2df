"""Encoders: photos to latents in one look (pSp, e4e, ReStyle)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import load_encoder
from ._host import ENCODERS, file_stamp, files, find, from_image, io, missing, normal_mode, on_device, watch
from ._types import ROOT, EncoderType, GeneratorType, LatentsType

_NONE = "(no encoder there yet)"  # an empty list would make the page refuse the node


class LoadEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadEncoder",
            display_name="Load Encoder",
            category=f"{ROOT}/load",
            description="Reads a pSp, e4e or ReStyle checkpoint: an encoder, which turns photos into latents, and the "
            "generator it was trained for.",
            search_aliases=["psp", "e4e", "restyle", "encoder4editing", "pixel2style2pixel"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files(ENCODERS) or [_NONE],
                    tooltip="A file in models/stylegan_nada/encoders. Press R to see new files.",
                )
            ],
            outputs=[
                EncoderType.Output("encoder", display_name="encoder", tooltip="For Encode Image."),
                GeneratorType.Output("generator", display_name="generator", tooltip="The generator in the same file."),
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
            display_name="Encode Image",
            category=f"{ROOT}/photos",
            description="Turns pictures into latents in one look, by a trained encoder. A short Invert Photo that "
            "starts from them comes closer.",
            search_aliases=["psp", "e4e", "restyle", "encoder inversion", "image to latent"],
            inputs=[
                EncoderType.Input("encoder", tooltip="From Load Encoder."),
                io.Image.Input("image", tooltip="Pictures aligned as those it was trained on."),
                GeneratorType.Input(
                    "generator",
                    optional=True,
                    tooltip="Who will draw the latents, where that is not the encoder's own generator: "
                    "one with the same mapping network, adapted or not.",
                ),
                io.Int.Input(
                    "iterations",
                    default=5,
                    min=1,
                    max=20,
                    step=1,
                    tooltip="Looks of a ReStyle encoder, each at what is still wrong; others take one.",
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="One a picture.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, encoder: Any, image: Tensor, iterations: int, generator: Any = None) -> Any:
        tick = watch(len(image) * (iterations if encoder.iterative else 1))
        with on_device(encoder) as (lent,):
            found = lent.encode(from_image(image, 4), iterations, generator, on_pass=lambda done, _: tick(done))
        return io.NodeOutput(found)
