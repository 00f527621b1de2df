"""Latents and directions to files and back."""

from __future__ import annotations

from typing import Any

from ..nada_core import Directions, Latents, __version__, load_directions, load_latents, save_directions, save_latents
from ._host import DIRECTIONS, LATENTS, file_stamp, files, find, io, metadata, missing, normal_mode, save_path
from ._types import ROOT, DirectionsType, GeneratorType, LatentsType
from .editing import directions_outputs
from .save import path_output, prefix_input


class SaveLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveLatents",
            display_name="Save Latents",
            category=f"{ROOT}/save",
            description="Writes latents into output/stylegan_nada/latents, where Load Latents finds them after R: an "
            "inverted face need not be inverted again.",
            search_aliases=["export latents", "save w", "npz"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[LatentsType.Input("latents", tooltip="The latents to write."), prefix_input("latents")],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, latents: Latents, filename_prefix: str) -> Any:
        path = save_path(filename_prefix, ".safetensors", "latents")
        save_latents(latents, path, {"version": __version__, **metadata(cls.hidden)})
        return io.NodeOutput(str(path))


class LoadLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadLatents",
            display_name="Load Latents",
            category=f"{ROOT}/load",
            description="Reads latents: those of Save Latents, NVIDIA's projected_w.npz, and the .npy and .pt that "
            "encoders and projectors write.",
            search_aliases=["import latents", "projected_w", "npz", "npy"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The one they belong to; files of other programs do not say."),
                _file(LATENTS, "latents"),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="As the file has them.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return missing(LATENTS, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> Any:
        return file_stamp(LATENTS, file)

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, file: str) -> Any:
        return io.NodeOutput(load_latents(find(LATENTS, file), generator))


class SaveDirections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveDirections",
            display_name="Save Directions",
            category=f"{ROOT}/save",
            description="Writes directions into output/stylegan_nada/directions, where Load Directions finds them "
            "after R.",
            search_aliases=["export directions", "save boundary"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[DirectionsType.Input("directions", tooltip="The directions to write."), prefix_input("directions")],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, directions: Directions, filename_prefix: str) -> Any:
        path = save_path(filename_prefix, ".safetensors", "directions")
        save_directions(directions, path, {"version": __version__, **metadata(cls.hidden)})
        return io.NodeOutput(str(path))


class LoadDirections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadDirections",
            display_name="Load Directions",
            category=f"{ROOT}/load",
            description="Reads directions: those of Save Directions, InterFaceGAN's boundaries (.npy, .pt) and "
            "GANSpace's components (.npz, .pt).",
            search_aliases=["interfacegan", "boundary", "ganspace", "import directions"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The one they belong to; files of other programs do not say."),
                _file(DIRECTIONS, "directions"),
            ],
            outputs=directions_outputs(),
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return missing(DIRECTIONS, file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> Any:
        return file_stamp(DIRECTIONS, file)

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, file: str) -> Any:
        found = load_directions(find(DIRECTIONS, file), generator)
        return io.NodeOutput(found, "\n".join(found.names))


def _file(kind: str, word: str) -> Any:
    """An empty list would make the page refuse the node."""
    return io.Combo.Input(
        "file",
        options=files(kind) or [f"(no {word} there yet)"],
        tooltip=f"A file in models/stylegan_nada/{word} or output/stylegan_nada/{word}. Press R to see new files.",
    )
