"""CLIP models of ComfyUI itself: a CLIP_VISION as a guide, and texts from a CONDITIONING."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nada_core import guide_from_vision_tower
from ..nada_core.guidance.pooled_text import shift_from_pooled_text
from ._host import io, normal_mode
from ._types import ROOT, GuideType, ShiftType


class GuideFromClipVision(io.ComfyNode):
    """Takes the weights: gradients cannot pass ComfyUI's own forward pass, which also rounds images to bytes."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_GuideFromClipVision",
            display_name="Guide from CLIP Vision",
            category=f"{ROOT}/load",
            description="Makes a CLIP guide from the model of Load CLIP Vision. It embeds images, not texts: use it "
            "with Shift from Images, Shift from Pairs or Shift from Conditioning.",
            search_aliases=["clip vision", "ipadapter", "unclip", "image encoder", "vit-h", "bigg"],
            inputs=[
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="From Load CLIP Vision: a CLIP model such as ViT-L/14, ViT-H/14 or ViT-bigG/14. SigLIP and "
                    "DINO do not work. It is not modified.",
                )
            ],
            outputs=[GuideType.Output("guide", display_name="guide", tooltip="The frozen CLIP model, with weight 1.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, clip_vision: Any) -> Any:
        guide = guide_from_vision_tower(clip_vision.get_sd(), getattr(clip_vision, "config", None))
        guide.fingerprint  # noqa: B018  computed once here and cached, because it hashes all weights
        return io.NodeOutput(((guide, 1.0),))


class ShiftFromConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromConditioning",
            display_name="Shift from Conditioning",
            category=f"{ROOT}/direction",
            description="The direction in CLIP space between two texts that the text encoder of an SDXL or SD 2.x "
            "checkpoint has encoded. It trains with a guide that has no text encoder of its own.",
            search_aliases=["clip text encode", "pooled output", "text direction", "sdxl", "prompt"],
            inputs=[
                GuideType.Input(
                    "guide",
                    tooltip="From Guide from CLIP Vision: ViT-bigG/14 for SDXL, ViT-H/14 for SD 2.x. Its sizes are "
                    "checked.",
                ),
                io.Conditioning.Input(
                    "source",
                    tooltip="From CLIP Text Encode: what the generator produces now, such as: a photo of a face.",
                ),
                io.Conditioning.Input(
                    "target",
                    tooltip="From CLIP Text Encode with the same checkpoint: what the generator should produce.",
                ),
            ],
            outputs=[ShiftType.Output("shift", display_name="shift", tooltip="The direction, for Adapt Generator.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, guide: tuple, source: list, target: list) -> Any:
        pooled = _pooled("source", source), _pooled("target", target)
        shifts = [shift_from_pooled_text(encoder, *pooled) for encoder, _ in guide]
        return io.NodeOutput(shifts[0])


def _pooled(name: str, conditioning: list) -> Tensor:
    """Copy the pooled text embeddings [K, D] of K prompts to the CPU."""
    outputs = [options.get("pooled_output") for _, options in conditioning]
    if not outputs or any(output is None for output in outputs):
        raise ValueError(
            f"Got a {name} without a pooled output, expected one of CLIP Text Encode. Use an SDXL or SD 2.x checkpoint."
        )
    return torch.cat([output.detach().to("cpu", torch.float32, copy=True) for output in outputs])
