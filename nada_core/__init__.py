"""StyleGAN-NADA without ComfyUI: take a StyleGAN2 generator into a new domain from words alone.

    from nada_core import AdaptConfig, TextShift, adapt, load_generator, load_guide, save_generator

    source = load_generator("portraits")
    guide = load_guide("portraits")
    result = adapt(source, guide, TextShift("photo", "zombie"), AdaptConfig(steps=200, lr=0.015))
    save_generator(result.generator, "zombie.safetensors", {"target": "zombie"})
"""

from .adapt import Adaptation, AdaptConfig, Step, adapt
from .checkpoints import export_rosinality, load_generator, read_provenance, save_generator
from .clip import ClipGuide, GuideError, ImageShift, MixedShift, TextShift, load_guide
from .directions import Directions, boundary, edit, load_directions, principal, save_directions, sefa
from .domains import Domain, load_domain, read_domain, save_domain
from .encoders import Encoder, load_encoder
from .faces import FacePoints, NoFaceError, align, cut_face, find_face
from .files import CheckpointError, RawCheckpoint
from .generators import Generator, Layer, build
from .identity import Identity, load_identity
from .images import compare_grid, grid, load_image, save_image
from .invert import Inversion, InvertConfig, invert
from .latents import Latents, interpolate, load_latents, mix, render, sample, save_latents
from .layers import LayerChoice, inspect_layers
from .losses import TERMS, Views
from .perceptual import Perceptual, load_perceptual
from .pivotal import TuneConfig, Tuning, tune
from .plots import plot_bars, plot_heat, plot_lines
from .recipes import RECIPES, check_prompts
from .text_edit import TextEditConfig, edit_by_text

__version__ = "0.1.0"

__all__ = [
    "AdaptConfig", "Adaptation", "CheckpointError", "ClipGuide", "Directions", "Domain", "Encoder", "FacePoints",
    "Generator", "GuideError", "Identity", "ImageShift", "Inversion", "InvertConfig", "Latents", "Layer", "LayerChoice",
    "MixedShift", "NoFaceError", "Perceptual", "RECIPES", "RawCheckpoint", "Step", "TERMS", "TextEditConfig",
    "TextShift", "TuneConfig", "Tuning", "Views", "adapt", "align", "boundary", "build", "check_prompts",
    "compare_grid", "cut_face", "edit", "edit_by_text", "export_rosinality", "find_face", "grid", "inspect_layers",
    "interpolate", "invert", "load_directions", "load_domain", "load_encoder", "load_generator", "load_guide",
    "load_identity", "load_image", "load_latents", "load_perceptual", "mix", "plot_bars", "plot_heat", "plot_lines",
    "principal", "read_domain", "read_provenance", "render", "sample", "save_directions", "save_domain",
    "save_generator", "save_image", "save_latents", "sefa", "tune",
]  # fmt: skip
