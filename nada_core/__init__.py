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
from .domains import Domain, load_domain, read_domain, save_domain
from .files import CheckpointError, RawCheckpoint
from .generators import Generator, Layer, build
from .images import compare_grid, grid, load_image, save_image
from .latents import Latents, interpolate, mix, render, sample
from .layers import LayerChoice, inspect_layers
from .losses import TERMS, Views
from .plots import plot_bars, plot_heat, plot_lines
from .recipes import RECIPES, check_prompts

__version__ = "0.1.0"

__all__ = [
    "AdaptConfig", "Adaptation", "CheckpointError", "ClipGuide", "Domain", "Generator", "GuideError", "ImageShift",
    "Latents", "Layer", "LayerChoice", "MixedShift", "RECIPES", "RawCheckpoint", "Step", "TERMS", "TextShift", "Views",
    "adapt", "build", "check_prompts", "compare_grid", "export_rosinality", "grid", "inspect_layers", "interpolate",
    "load_domain", "load_generator", "load_guide", "load_image", "mix", "plot_bars", "plot_heat", "plot_lines",
    "read_domain", "read_provenance", "render", "sample", "save_domain", "save_generator", "save_image",
]  # fmt: skip
