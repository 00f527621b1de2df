"""The built-in world: a portrait renderer, small CLIP models and a small StyleGAN2 fitted to it, and a classifier.

An adaptation runs from end to end without a download. Because the renderer draws every content in every style, the
result can be compared with the true picture. `python -m nada_core.portraits.fitting` fits the weights again.
"""

from __future__ import annotations

from ..adaptation.config import AdaptConfig, LayerChoice
from ..latents.inversion import InvertConfig
from ..latents.pivotal_tuning import TuneConfig
from ..models.generator import changed_settings
from .content import contents
from .judge import Judge, Verdict, examine
from .render import ATTRIBUTES, STYLES, render

#: The CLIP models of the demo and their weights: a ResNet for shapes and a ViT for textures.
GUIDES = (("portraits-64", 1.0), ("portraits-vit", 3.0))
#: A CLIP model that the demo does not train with, for validation and tests.
HELD_OUT = "portraits"
SOURCE = STYLES[0]
TARGETS = STYLES[1:]

#: Settings for the built-in generator. It is small and its weights are standard normal, so it needs a much larger
#: learning rate than a published generator, for which the defaults of AdaptConfig are meant.
RECIPE = AdaptConfig(
    steps=400,
    batch=4,
    lr=0.015,
    schedule="cosine",
    beta2=0.99,
    views=1,
    mirror=True,
    noise="const",
    terms={"direction": 1.0, "angle": 0.25},
    pool=100,
    layers=LayerChoice(mode="all", count=5, batch=4, every=4, rgb=True),
)

#: The same for photos. The generator has no noise, and LPIPS would need a download. A larger identity weight makes some
#: inversions end at a similar face in another position.
INVERT = InvertConfig(
    steps=300, lr=0.05, lr_rampdown=0.75, initial_noise_factor=0.0, lpips=0.0, id=0.02, optimize_noise=False
)
TUNE = TuneConfig(lr=6e-3, lpips=0.0)

#: The same as JSON: `fitting` stores it in the generator's file, and the commands and nodes read it from there.
RECOMMENDED = {
    "adapt": changed_settings(RECIPE),
    "invert": changed_settings(INVERT),
    "tune": changed_settings(TUNE),
    "guides": [list(pair) for pair in GUIDES],
    "held_out": HELD_OUT,
    "identity": "portraits",
    "source": SOURCE,
}

__all__ = [
    "ATTRIBUTES",
    "GUIDES",
    "HELD_OUT",
    "INVERT",
    "RECOMMENDED",
    "RECIPE",
    "SOURCE",
    "STYLES",
    "TARGETS",
    "TUNE",
    "Judge",
    "Verdict",
    "contents",
    "examine",
    "render",
]
