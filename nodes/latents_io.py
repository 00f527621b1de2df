"""Nodes that save and load latents and directions."""

from __future__ import annotations

from typing import Any

from ..nada_core import Directions, Latents, __version__, load_directions, load_latents, save_directions, save_latents
from ._host import DIRECTIONS, LATENTS, file_stamp, files, find, io, metadata, missing, normal_mode
from ._types import ROOT, DirectionsType, GeneratorType, LatentsType
from .editing import directions_outputs
from .save import path_output, prefix_input, save_numbered


class SaveLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_SaveLatents",
            display_name="Save StyleGAN Latents",
            category=f"{ROOT}/save",
            description="Saves latents to output/stylegan_nada/latents. Press R to list the file in "
            "Load StyleGAN Latents. Saves you from inverting an image again.",
            search_aliases=["export latents", "save w", "npz"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[LatentsType.Input("latents", tooltip="The latents to save."), prefix_input("latents")],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, latents: Latents, filename_prefix: str) -> Any:
        provenance = {"version": __version__, **metadata(cls.hidden)}
        return save_numbered(lambda path: save_latents(latents, path, provenance), filename_prefix, folder="latents")


class LoadLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadLatents",
            display_name="Load StyleGAN Latents",
            category=f"{ROOT}/load",
            description="Loads latents saved by Save StyleGAN Latents, projected_w.npz of NVIDIA's projector, and the "
            ".npy and .pt files of other encoders and projectors.",
            search_aliases=["import latents", "projected_w", "npz", "npy"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the latents belong to. Files of other programs do not record it, so it "
                    "cannot be checked.",
                ),
                _file(LATENTS, "latents"),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="The latents in the file.")],
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
            display_name="Save StyleGAN Directions",
            category=f"{ROOT}/save",
            description="Saves directions to output/stylegan_nada/directions. Press R to list the file in "
            "Load StyleGAN Directions.",
            search_aliases=["export directions", "save boundary"],
            is_output_node=True,
            hidden=[io.Hidden.prompt],
            inputs=[DirectionsType.Input("directions", tooltip="The directions to save."), prefix_input("directions")],
            outputs=[path_output()],
        )

    @classmethod
    @normal_mode()
    def execute(cls, directions: Directions, filename_prefix: str) -> Any:
        provenance = {"version": __version__, **metadata(cls.hidden)}
        return save_numbered(
            lambda path: save_directions(directions, path, provenance), filename_prefix, folder="directions"
        )


class LoadDirections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_LoadDirections",
            display_name="Load StyleGAN Directions",
            category=f"{ROOT}/load",
            description="Loads directions saved by Save StyleGAN Directions, InterFaceGAN boundaries (.npy, .pt) and "
            "GANSpace components (.npz, .pt).",
            search_aliases=["interfacegan", "boundary", "ganspace", "import directions"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator the directions belong to. Files of other programs do not record it, so "
                    "it cannot be checked.",
                ),
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
        directions = load_directions(find(DIRECTIONS, file), generator)
        return io.NodeOutput(directions, "\n".join(directions.names))


def _file(kind: str, word: str) -> Any:
    """A file list with a placeholder when empty: ComfyUI rejects a combo box without options."""
    return io.Combo.Input(
        "file",
        options=files(kind) or [f"(no {word} found)"],
        tooltip=f"A file in models/stylegan_nada/{word} or output/stylegan_nada/{word}. Press R to refresh the list.",
    )
