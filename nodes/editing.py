"""Latent editing: directions (SeFa, GANSpace) and text (StyleCLIP)."""

from __future__ import annotations

from typing import Any

from ..nada_core import Directions, Latents, TextEditConfig, edit, edit_by_text, grid, principal, sefa
from ..nada_core.latents.directions import parse_direction
from ._host import for_training, io, normal_mode
from ._status import watch_steps
from ._types import ROOT, DirectionsType, GeneratorType, GuideType, LatentsType, ShiftType, SimilarityType
from ._widgets import numbers, seed_input, settings_input, settings_of

#: Widgets of Edit StyleGAN by Text. Workflows store values by position: append only.
TEXT_EDIT = (
    "objective",
    "space",
    "steps",
    "lr",
    "l2",
    "id",
    "clip",
    "views",
    "first_row",
    "last_row",
    "batch",
    "lr_rampup",
    "lr_rampdown",
)
SHOWN = ("steps", "l2", "id")  # those of the mode "automatic"
METHODS = {"SeFa": sefa, "PCA": principal}


class FindDirections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_FindDirections",
            display_name="Find StyleGAN Directions",
            category=f"{ROOT}/editing",
            description="Finds editing directions in latent space from the generator alone. It needs no "
            "training and no images.",
            search_aliases=["sefa", "ganspace", "pca", "semantic directions", "closed form factorization"],
            inputs=[
                GeneratorType.Input(
                    "generator",
                    tooltip="The generator to analyze. Its directions also work with generators fine-tuned from it.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="SeFa",
                    tooltip="SeFa: directions with the largest effect, computed from the layer weights. PCA: "
                    "directions in which random latents vary most (GANSpace).",
                ),
                io.Int.Input(
                    "count", default=10, min=1, max=512, step=1, tooltip="Number of directions, strongest first."
                ),
                *_rows("First row that the directions change. Early rows control pose and shape, late rows color."),
            ],
            outputs=directions_outputs(),
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, method: str, count: int, from_row: int, to_row: int) -> Any:
        directions = METHODS[method](generator, count, layers=_range(from_row, to_row, generator.num_ws))
        return io.NodeOutput(directions, "\n".join(directions.names))


class EditLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_EditLatents",
            display_name="Edit StyleGAN Latents",
            category=f"{ROOT}/editing",
            description="Moves latents along one direction, in all rows or some of them. Chain several nodes "
            "for several edits.",
            search_aliases=["edit direction", "latent edit", "slider", "interfacegan", "attribute"],
            inputs=[
                LatentsType.Input("latents", tooltip="The latents to edit."),
                DirectionsType.Input(
                    "directions", tooltip="From Find StyleGAN Directions or Load StyleGAN Directions."
                ),
                io.String.Input(
                    "direction", default="0", tooltip="The direction to use: its number, counted from 0, or its name."
                ),
                io.Float.Input(
                    "strength",
                    default=2.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Step length. It is in standard deviations of w where the direction stores them. "
                    "Negative values move the opposite way.",
                ),
                *_rows("First row to edit."),
                io.String.Input(
                    "per_row",
                    default="",
                    placeholder="0 0 0 1 1 1 ...",
                    tooltip="One factor for each row, multiplied by the strength. Empty: 1 for all rows.",
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="The edited latents.")],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        latents: Latents,
        directions: Directions,
        direction: str,
        strength: float,
        from_row: int,
        to_row: int,
        per_row: str,
    ) -> Any:
        strengths = [strength * value for value in numbers("per_row", per_row)]
        rows = _range(from_row, to_row, latents.ws.shape[1])
        return io.NodeOutput(edit(latents, parse_direction(directions, direction), strengths or strength, rows))


class EditByText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_EditByText",
            display_name="Edit StyleGAN by Text",
            category=f"{ROOT}/editing",
            description="Optimizes latents so that CLIP matches the images to the target phrase, while an L2 "
            "penalty keeps them near the start (StyleCLIP). The generator is not modified.",
            search_aliases=["styleclip", "text edit", "prompt edit", "latent optimisation"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator that renders the latents."),
                LatentsType.Input("latents", tooltip="The latents to start from."),
                GuideType.Input("guide", tooltip="One CLIP guide, or several from Combine CLIP Guides."),
                ShiftType.Input(
                    "shift",
                    tooltip="From Shift from Text. Source: what the images show now. Target: the same with the "
                    "change, such as photo and photo with glasses.",
                ),
                SimilarityType.Input(
                    "similarity_networks",
                    optional=True,
                    tooltip="From Load LPIPS and Identity: the face recognition network for the id loss.",
                ),
                settings_input(TextEditConfig, TEXT_EDIT, SHOWN, "the settings for published generators"),
                seed_input("Seed of the views. Without views, nothing is random."),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="The edited latents.")],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        latents: Latents,
        guide: tuple,
        shift: Any,
        settings: dict[str, Any],
        seed: int,
        similarity_networks: tuple = (None, None),
    ) -> Any:
        config = settings_of(TextEditConfig(), TEXT_EDIT, settings, SHOWN, seed=seed)
        tick = watch_steps(config.steps)
        with for_training(generator, guide, similarity_networks[1]) as (source, guides, identity):
            edited = edit_by_text(
                source,
                latents,
                guides,
                shift,
                config,
                identity=identity,
                on_step=lambda step: tick(step.index + 1, lambda: grid(step.images())),
            )
        return io.NodeOutput(edited)


def _rows(first: str) -> list[Any]:
    return [
        io.Int.Input("from_row", default=0, min=0, max=64, step=1, tooltip=first),
        io.Int.Input(
            "to_row",
            default=-1,
            min=-1,
            max=64,
            step=1,
            tooltip="End of the row range; this row is not included. -1: up to the last row.",
        ),
    ]


def _range(first: int, last: int, rows: int) -> tuple[int, int]:
    return first, rows if last == -1 else last


def directions_outputs() -> list[Any]:
    """Outputs of the nodes that compute or load directions."""
    return [
        DirectionsType.Output(
            "directions", display_name="directions", tooltip="All directions, for Edit StyleGAN Latents."
        ),
        io.String.Output(
            "names",
            display_name="names",
            tooltip="The direction names, one per line, as Edit StyleGAN Latents expects them.",
        ),
    ]
