"""Latents moved along directions and by words; the people stay who they are."""

from __future__ import annotations

from typing import Any

from ..nada_core import Directions, Latents, TextEditConfig, edit, edit_by_text, grid, principal, sefa
from ..nada_core.latents.directions import chosen
from ._host import for_training, io, normal_mode, watch
from ._types import ROOT, DirectionsType, GeneratorType, GuideType, LatentsType, LikenessType, ShiftType
from ._widgets import settings, widgets

#: The widgets of Edit by Text in their order; new ones go to the end.
TEXT_EDIT = (
    "objective",
    "space",
    "steps",
    "lr",
    "seed",
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
METHODS = {"SeFa": sefa, "PCA": principal}


class FindDirections(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_FindDirections",
            display_name="Find Directions",
            category=f"{ROOT}/editing",
            description="Finds directions of the latents along which pictures change in one way, from the generator "
            "alone: nothing is trained and no pictures are needed.",
            search_aliases=["sefa", "ganspace", "pca", "semantic directions", "closed form factorization"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Whose directions; those adapted from it understand them."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="SeFa",
                    tooltip="SeFa: what the layers answer to most, from their weights. PCA: in what the "
                    "latents differ most (GANSpace).",
                ),
                io.Int.Input(
                    "count", default=10, min=1, max=512, step=1, tooltip="How many; the strongest come first."
                ),
                *_rows("The first row they move; early rows steer pose and shape, late ones colour."),
            ],
            outputs=directions_outputs(),
        )

    @classmethod
    @normal_mode()
    def execute(cls, generator: Any, method: str, count: int, from_row: int, to_row: int) -> Any:
        found = METHODS[method](generator, count, layers=_range(from_row, to_row, generator.num_ws))
        return io.NodeOutput(found, "\n".join(found.names))


class EditLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_EditLatents",
            display_name="Edit Latents",
            category=f"{ROOT}/editing",
            description="Moves latents along one direction, all their rows or some, each as far as wanted. Chain the "
            "node for several edits.",
            search_aliases=["edit direction", "latent edit", "slider", "interfacegan", "attribute"],
            inputs=[
                LatentsType.Input("latents", tooltip="What is moved."),
                DirectionsType.Input("directions", tooltip="From Find Directions or Load Directions."),
                io.String.Input(
                    "direction", default="0", tooltip="Which one: its number, counted from 0, or its name."
                ),
                io.Float.Input(
                    "strength",
                    default=2.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How far, in standard deviations of w where the direction knows them; below 0 "
                    "the other way.",
                ),
                *_rows("The first row that moves."),
                io.String.Input(
                    "per_row",
                    default="",
                    placeholder="0 0 0 1 1 1 ...",
                    tooltip="A strength of its own for each row, as many numbers as rows; multiplied by "
                    "the strength. Empty: 1 for all.",
                ),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="The moved ones.")],
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
        each = [strength * value for value in _numbers(per_row)]
        rows = _range(from_row, to_row, latents.ws.shape[1])
        return io.NodeOutput(edit(latents, chosen(directions, direction), each or strength, rows))


class EditByText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_EditByText",
            display_name="Edit by Text",
            category=f"{ROOT}/editing",
            description="Moves latents until the guide sees the target phrase in their pictures, and holds them near "
            "where they were (StyleCLIP). The generator stays as it is.",
            search_aliases=["styleclip", "text edit", "prompt edit", "latent optimisation"],
            inputs=[
                GeneratorType.Input("generator", tooltip="Who draws the latents."),
                LatentsType.Input("latents", tooltip="Where to start."),
                GuideType.Input("guide", tooltip="One CLIP, or several combined."),
                ShiftType.Input(
                    "shift",
                    tooltip="From Shift from Text: what the pictures show now, and the same with "
                    "what is wanted, such as photo and photo with glasses.",
                ),
                LikenessType.Input(
                    "likeness", optional=True, tooltip="From Load Likeness: the recogniser that the id term sees with."
                ),
                *widgets(TextEditConfig, TEXT_EDIT, advanced=TEXT_EDIT[8:]),
            ],
            outputs=[LatentsType.Output("latents", display_name="latents", tooltip="The edited ones.")],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls, generator: Any, latents: Latents, guide: tuple, shift: Any, likeness: tuple = (None, None), **values: Any
    ) -> Any:
        config, tick = settings(TextEditConfig, TEXT_EDIT, values), watch(values["steps"])
        with for_training(generator, guide, likeness[1]) as (source, guides, identity):
            edited = edit_by_text(
                source,
                latents,
                guides,
                shift,
                config,
                identity,
                lambda step: tick(step.index + 1, lambda: grid(step.images())),
            )
        return io.NodeOutput(edited)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"Got {text!r} for per_row, expected a number for each row, such as 0 0 1 1.") from None


def _rows(first: str) -> list[Any]:
    return [
        io.Int.Input("from_row", default=0, min=0, max=64, step=1, tooltip=first),
        io.Int.Input(
            "to_row",
            default=-1,
            min=-1,
            max=64,
            step=1,
            tooltip="The row before which it ends. -1: up to the last one.",
        ),
    ]


def _range(first: int, last: int, rows: int) -> tuple[int, int]:
    return first, rows if last == -1 else last


def directions_outputs() -> list[Any]:
    """What every node gives that makes or reads directions."""
    return [
        DirectionsType.Output("directions", display_name="directions", tooltip="All of them, for Edit Latents."),
        io.String.Output("names", display_name="names", tooltip="Their names, one a line, as Edit Latents takes them."),
    ]
