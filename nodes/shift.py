"""Directions in CLIP space, from text or from style images (StyleGAN-NADA, sections 4.1 and 4.4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import ImageShift, MixedShift, TextShift, check_prompts
from ..nada_core.guidance.prompts import BARE, TEMPLATES
from ._host import from_image, io, normal_mode
from ._server import send_text
from ._types import ROOT, GuideType, ShiftType

TEMPLATE_SETS = {"templates": TEMPLATES, "bare": BARE}


class ShiftFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromText",
            display_name="Shift from Text",
            category=f"{ROOT}/direction",
            description="The direction in CLIP space from one text to another. Training moves every image "
            "along this direction from its own position, so images stay different from each other.",
            search_aliases=["text direction", "source target", "target text", "clip text"],
            inputs=[
                io.String.Input(
                    "source",
                    default="photo",
                    placeholder="photo",
                    tooltip="What the generator produces now: photo, human, dog, church ...",
                ),
                io.String.Input(
                    "target",
                    default="zombie",
                    placeholder="watercolor painting",
                    tooltip="What the generator should produce. The built-in guide knows pencil sketch, "
                    "watercolor painting, 3d render, pixel art, zombie, elf, anime, joker, marble statue.",
                ),
                io.Combo.Input(
                    "wording",
                    options=list(TEMPLATE_SETS),
                    default="templates",
                    advanced=True,
                    tooltip='templates: average the text embedding over 79 prompts such as "a photo of a ...", as '
                    "in the paper. bare: use the text as it is, for whole sentences.",
                ),
            ],
            outputs=[
                ShiftType.Output(
                    "shift",
                    display_name="shift",
                    tooltip="The direction, for Adapt Generator and Edit StyleGAN by Text.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, source: str | None, target: str | None) -> bool | str:
        for name, text in (("source", source), ("target", target)):
            if text is not None and not text.strip():  # None: from another node
                return f"Got {text!r} as {name}, expected one or more words, such as photo or zombie."
        if source and target and source.lower().split() == target.lower().split():
            return f"Got {source!r} and {target!r}, expected a target that differs from the source."
        return True

    @classmethod
    @normal_mode()
    def execute(cls, source: str, target: str, wording: str = "templates") -> Any:
        return io.NodeOutput(TextShift(source, target, TEMPLATE_SETS[wording]))


class ShiftFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromImages",
            display_name="Shift from Images",
            category=f"{ROOT}/direction",
            description="The direction in CLIP space from the generator's own images to one to ten style "
            "images. Use it for styles that are hard to describe in words.",
            search_aliases=["style image", "reference image", "few shot", "image direction"],
            inputs=[io.Image.Input("images", tooltip="One to ten images in the target style, as a batch.")],
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
            description="Weighted average of two directions. Text and image embeddings share one CLIP space, "
            "so both kinds can be mixed.",
            search_aliases=["combine directions", "text and image", "blend prompts", "hybrid domain"],
            inputs=[
                ShiftType.Input("first", tooltip="From Shift from Text or Shift from Images."),
                ShiftType.Input("second", tooltip="Another direction of either kind."),
                io.Float.Input(
                    "share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the second direction: 0 uses only the first, 1 only the second.",
                ),
            ],
            outputs=[
                ShiftType.Output("shift", display_name="shift", tooltip="The mixed direction, for Adapt Generator.")
            ],
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
            description="Checks before training whether the CLIP guide can tell source and target apart, and "
            "whether its prompt templates agree on the direction between them.",
            search_aliases=["prompt check", "ambiguous", "test words"],
            inputs=[
                GuideType.Input("guide", tooltip="One CLIP guide, or several from Combine CLIP Guides."),
                ShiftType.Input("shift", tooltip="From Shift from Text. Image directions are not checked."),
            ],
            outputs=[
                io.String.Output(
                    "doubts", display_name="doubts", tooltip="One line per warning, or a line that says there are none."
                )
            ],
        )

    @classmethod
    @normal_mode()
    def execute(cls, guide: tuple, shift: Any) -> Any:
        warnings = [warning for encoder, _ in guide for warning in check_prompts(encoder, shift)]
        doubts = "\n".join(warnings) or "No warnings: the guide can tell source and target apart."
        send_text(doubts)
        return io.NodeOutput(doubts)
