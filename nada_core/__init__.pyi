"""The public names of nada_core and where they are defined; read by type checkers and by `__init__.py`."""

from .adaptation.adapt import Adaptation, Step, adapt
from .adaptation.adapt_to_pairs import adapt_to_pairs
from .adaptation.config import AdaptConfig, LayerChoice, PairsConfig
from .adaptation.layer_selection import inspect_layers
from .adaptation.recipes import RECIPES, Recipe, load_recipe, save_recipe
from .adaptation.search import FoundSettings, find_settings
from .adaptation.search_space import SearchConfig
from .adaptation.snapshots import Snapshot, filmstrip, find_snapshots, judge_snapshots, pick_snapshot
from .guidance.clip_losses import TERMS, Views
from .guidance.prompt_check import check_prompts
from .guidance.shifts import EmbeddingShift, ImageShift, MixedShift, PairShift, TextShift
from .io.checkpoint_file import RawCheckpoint
from .io.errors import CheckpointError
from .io.grid import compare_grid, grid
from .io.images import load_image, save_image
from .io.plots import plot_bars, plot_heat, plot_lines
from .latents.directions import Directions, boundary, edit, load_directions, principal, save_directions, sefa
from .latents.encoder import Encoder, load_encoder
from .latents.face_alignment import align, align_faces, cut_face
from .latents.face_detection import NoFaceError, find_face
from .latents.face_frame import FaceFrame, load_frames, save_frames
from .latents.face_paste import PasteConfig, paste_faces
from .latents.face_points import FacePoints
from .latents.inversion import Inversion, InvertConfig, invert
from .latents.pivotal_tuning import TuneConfig, Tuning, tune
from .latents.sampling import Latents, interpolate, load_latents, mix, render, sample, save_latents
from .latents.text_edit import TextEditConfig, edit_by_text
from .models.arcface import Identity, load_identity
from .models.checkpoints import build, export_rosinality, load_generator, read_provenance, save_generator
from .models.clip import ClipGuide, GuideError
from .models.clip_loading import load_guide
from .models.clip_transformers import guide_from_vision_tower
from .models.domain import Domain, load_domain, read_domain, save_domain
from .models.generator import Generator, Layer
from .models.lpips import Perceptual, load_perceptual
from .models.onnx_export import export_onnx

__version__: str

__all__ = [
    "AdaptConfig",
    "Adaptation",
    "CheckpointError",
    "ClipGuide",
    "Directions",
    "Domain",
    "EmbeddingShift",
    "Encoder",
    "FaceFrame",
    "FacePoints",
    "FoundSettings",
    "Generator",
    "GuideError",
    "Identity",
    "ImageShift",
    "Inversion",
    "InvertConfig",
    "Latents",
    "Layer",
    "LayerChoice",
    "MixedShift",
    "NoFaceError",
    "PairShift",
    "PairsConfig",
    "PasteConfig",
    "Perceptual",
    "RECIPES",
    "RawCheckpoint",
    "Recipe",
    "SearchConfig",
    "Snapshot",
    "Step",
    "TERMS",
    "TextEditConfig",
    "TextShift",
    "TuneConfig",
    "Tuning",
    "Views",
    "adapt",
    "adapt_to_pairs",
    "align",
    "align_faces",
    "boundary",
    "build",
    "check_prompts",
    "compare_grid",
    "cut_face",
    "edit",
    "edit_by_text",
    "export_onnx",
    "export_rosinality",
    "filmstrip",
    "find_face",
    "find_settings",
    "find_snapshots",
    "grid",
    "guide_from_vision_tower",
    "inspect_layers",
    "interpolate",
    "invert",
    "judge_snapshots",
    "load_directions",
    "load_domain",
    "load_encoder",
    "load_frames",
    "load_generator",
    "load_guide",
    "load_identity",
    "load_image",
    "load_latents",
    "load_perceptual",
    "load_recipe",
    "mix",
    "paste_faces",
    "pick_snapshot",
    "plot_bars",
    "plot_heat",
    "plot_lines",
    "principal",
    "read_domain",
    "read_provenance",
    "render",
    "sample",
    "save_directions",
    "save_domain",
    "save_frames",
    "save_generator",
    "save_image",
    "save_latents",
    "save_recipe",
    "sefa",
    "tune",
]
