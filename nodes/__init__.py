"""The list of nodes and the ComfyUI extension entry point."""

from ._host import ComfyExtension, io
from .adapt import AdaptGenerator, PlotTraining
from .core_clip import GuideFromClipVision, ShiftFromConditioning
from .editing import EditByText, EditLatents, FindDirections
from .encode import EncodeImage, LoadEncoder
from .faces import AlignFace, PasteFace
from .latents import Compare, InterpolateLatents, MixLatents, Render, SampleLatents
from .latents_io import LoadDirections, LoadLatents, SaveDirections, SaveLatents
from .layers import ChooseLayers, InspectLayers
from .load import CombineGuides, LoadGenerator, LoadGuide, LoadLikeness
from .pairs import AdaptToPairs, ShiftFromPairs
from .photos import DrawPortrait, InvertImage, PivotalTuning
from .save import ApplyDomain, LoadDomain, SaveDomain, SaveGenerator
from .search import FindSettings
from .shift import CheckPrompts, MixShifts, ShiftFromImages, ShiftFromText
from .snapshots import PickSnapshot
from .training_options import TrainingOptions

NODES: list[type[io.ComfyNode]] = [
    LoadGenerator,
    LoadGuide,
    CombineGuides,
    ShiftFromText,
    ShiftFromImages,
    ChooseLayers,
    InspectLayers,
    AdaptGenerator,
    PlotTraining,
    SampleLatents,
    MixLatents,
    InterpolateLatents,
    Render,
    Compare,
    SaveGenerator,
    SaveDomain,
    LoadDomain,
    ApplyDomain,
    AlignFace,
    DrawPortrait,
    LoadLikeness,
    InvertImage,
    PivotalTuning,
    LoadEncoder,
    EncodeImage,
    FindDirections,
    EditLatents,
    EditByText,
    SaveLatents,
    LoadLatents,
    SaveDirections,
    LoadDirections,
    TrainingOptions,
    MixShifts,
    CheckPrompts,
    GuideFromClipVision,
    ShiftFromConditioning,
    PickSnapshot,
    ShiftFromPairs,
    AdaptToPairs,
    PasteFace,
    FindSettings,
]


class StyleGANNADA(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> StyleGANNADA:
    return StyleGANNADA()
