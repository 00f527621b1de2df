"""The built-in world: a portrait renderer, a small CLIP and a small StyleGAN2 fitted to it, and an independent judge.

Nothing needs downloading to see an adaptation work from end to end, and because the renderer can draw every content in
every style, the result can be held against the truth. Re-create the weights with `python -m nada_core.portraits.fit`.
"""

from __future__ import annotations

from ..adapt import AdaptConfig
from ..invert import InvertConfig
from ..layers import LayerChoice
from ..pivotal import TuneConfig
from .content import contents
from .judge import Judge, Verdict, examine
from .render import ATTRIBUTES, STYLES, render

#: The guides that ship with the pack, which differ in build; the demo is led by both.
GUIDES = ("portraits", "portraits-64")
SOURCE = STYLES[0]
TARGETS = STYLES[1:]

#: What works on a generator this small. A published generator wants the defaults of AdaptConfig instead: its learning
#: rate would not move these weights, which are standard normal and few.
RECIPE = AdaptConfig(
    steps=240, batch=4, lr=0.015, schedule="cosine", beta2=0.99, views=2, mirror=True, noise="const",
    terms={"direction": 1.0, "angle": 0.25},
    layers=LayerChoice(mode="adaptive", count=5, batch=4, every=4, rgb=True),
)  # fmt: skip

#: The same for photos: no noise maps, for this generator draws none, and LPIPS only if its trunk is trained. With more
#: identity the search for some photos ends at somebody alike in the wrong place.
INVERT = InvertConfig(steps=300, lr=0.05, fall=0.75, search=0.0, lpips=0.0, id=0.02, maps=False)
TUNE = TuneConfig(lr=6e-3, lpips=0.0)

__all__ = [
    "ATTRIBUTES", "GUIDES", "INVERT", "RECIPE", "SOURCE", "STYLES", "TARGETS", "TUNE", "Judge", "Verdict",
    "contents", "examine", "render",
]  # fmt: skip
