"""The nodes, and the extension that hands them to ComfyUI."""

from ._host import ComfyExtension, io
from .adapt import AdaptGenerator, PlotTraining
from .latents import Compare, InterpolateLatents, MixLatents, Render, SampleLatents
from .layers import ChooseLayers, InspectLayers
from .load import CombineGuides, LoadGenerator, LoadGuide
from .save import ApplyDomain, LoadDomain, SaveDomain, SaveGenerator
from .shift import ShiftFromImages, ShiftFromText

NODES: list[type[io.ComfyNode]] = [
    LoadGenerator, LoadGuide, CombineGuides, ShiftFromText, ShiftFromImages, ChooseLayers, InspectLayers,
    AdaptGenerator, PlotTraining, SampleLatents, MixLatents, InterpolateLatents, Render, Compare, SaveGenerator,
    SaveDomain, LoadDomain, ApplyDomain,
]  # fmt: skip


class StyleGANNADA(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> StyleGANNADA:
    return StyleGANNADA()
