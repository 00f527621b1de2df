"""Where to go: from one phrase to another, or to a few style images (StyleGAN-NADA, sections 4.1 and 4.4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import ImageShift, MixedShift, TextShift, check_prompts
from ..nada_core.guidance.prompts import BARE, TEMPLATES
from ._host import from_image, io, normal_mode
from ._types import ROOT, GuideType, ShiftType

WORDINGS = {"templates": TEMPLATES, "bare": BARE}


class ShiftFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromText",
            display_name="Shift from Text",
            category=f"{ROOT}/direction",
            description="The direction from one text to another. Every picture will be moved along it, each from "
            "where it is, so pictures stay different from each other.",
            search_aliases=["prompt", "text direction", "source target", "clip text", "nada"],
            inputs=[
                io.String.Input(
                    "source",
                    default="photo",
                    placeholder="photo",
                    tooltip="What the generator makes now: photo, human, dog, church ...",
                ),
                io.String.Input(
                    "target",
                    default="zombie",
                    placeholder="watercolor painting",
                    tooltip="What it shall make. The built-in guide knows pencil sketch, watercolor "
                    "painting, 3d render, pixel art, zombie, elf, anime, joker, marble statue.",
                ),
                io.Combo.Input(
                    "wording",
                    options=list(WORDINGS),
                    default="templates",
                    advanced=True,
                    tooltip='templates: the mean over 79 sentences such as "a photo of a ...", as in the '
                    "paper. bare: the texts as they are, for whole sentences of your own.",
                ),
            ],
            outputs=[
                ShiftType.Output(
                    "shift", display_name="shift", tooltip="The direction, for Adapt Generator and Edit by Text."
                )
            ],
        )

    @classmethod
    def execute(cls, source: str, target: str, wording: str = "templates") -> Any:
        return io.NodeOutput(TextShift(source, target, WORDINGS[wording]))


class ShiftFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromImages",
            display_name="Shift from Images",
            category=f"{ROOT}/direction",
            description="The direction from the generator's own pictures to one to ten style images, where no words "
            "name the style.",
            search_aliases=["style image", "reference image", "few shot", "image direction"],
            inputs=[io.Image.Input("images", tooltip="One to ten pictures in the style, as a batch.")],
            outputs=[ShiftType.Output("shift", display_name="shift", tooltip="The direction, for Adapt Generator.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, images: Tensor) -> Any:
        return io.NodeOutput(ImageShift(from_image(images)))


class MixShifts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_MixShifts",
            display_name="Mix Shifts",
            category=f"{ROOT}/direction",
            description="Goes two ways at once: words and style images live in one space, so their directions add up.",
            search_aliases=["combine directions", "text and image", "blend prompts", "hybrid domain"],
            inputs=[
                ShiftType.Input("first", tooltip="From Shift from Text or Shift from Images."),
                ShiftType.Input("second", tooltip="The other one."),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="The share of the second: 0 the first alone, 1 the second alone.",
                ),
            ],
            outputs=[ShiftType.Output("shift", display_name="shift", tooltip="Both, for Adapt Generator.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, first: Any, second: Any, share: float) -> Any:
        return io.NodeOutput(MixedShift((first, second), (1 - share, share)))


class CheckPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_CheckPrompts",
            display_name="Check Prompts",
            category=f"{ROOT}/direction",
            description="Asks the guide whether it tells source and target apart and sees one way between them: a "
            "look that saves a training.",
            search_aliases=["prompt check", "ambiguous", "test words"],
            inputs=[
                GuideType.Input("guide", tooltip="One CLIP, or several combined."),
                ShiftType.Input("shift", tooltip="From Shift from Text; pictures are not doubted."),
            ],
            outputs=[
                io.String.Output(
                    "doubts", display_name="doubts", tooltip="A sentence for every doubt, or that there is none."
                )
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, guide: tuple, shift: Any) -> Any:
        doubts = [doubt for one, _ in guide for doubt in check_prompts(one, shift)]
        return io.NodeOutput("\n".join(doubts) or "Nothing to doubt: the guide tells them apart.")
