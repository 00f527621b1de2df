"""The built-in world: a portrait renderer, a small CLIP and a small StyleGAN2 fitted to it, and an independent judge.

Nothing needs downloading to see an adaptation work from end to end, and because the renderer can draw every content in
every style, the result can be held against the truth. Re-create the weights
with `python -m nada_core.portraits.fitting`.
"""

from __future__ import annotations

from ..adaptation.config import AdaptConfig, LayerChoice
from ..latents.inversion import InvertConfig
from ..latents.pivotal_tuning import TuneConfig
from ..models.generator import changed_settings
from .content import contents
from .judge import Judge, Verdict, examine
from .render import ATTRIBUTES, STYLES, render

#: Who leads in the built-in world, and with what weight: convolutions, which see the shape of an ear, and patches,
#: which see that a picture is made of blocks. Neither alone does both.
GUIDES = (("portraits-64", 1.0), ("portraits-vit", 3.0))
#: Leads nothing unless asked to; for judging and for choosing a step.
HELD_OUT = "portraits"
SOURCE = STYLES[0]
TARGETS = STYLES[1:]

#: What works on a generator this small. A published generator wants the defaults of AdaptConfig instead: its learning
#: rate would not move these weights, which are standard normal and few. All layers come nearer to the truth here than a
#: choice of them; who wants one (mode adaptive) does well with these numbers.
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

#: The same for photos: no noise maps, for this generator draws none, and LPIPS only if its trunk is trained. With more
#: identity the search for some photos ends at somebody alike in the wrong place.
INVERT = InvertConfig(
    steps=300, lr=0.05, lr_rampdown=0.75, initial_noise_factor=0.0, lpips=0.0, id=0.02, optimize_noise=False
)
TUNE = TuneConfig(lr=6e-3, lpips=0.0)

#: The same as JSON: stored in the generator's file by `fitting`, and read from there by whatever trains it.
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
