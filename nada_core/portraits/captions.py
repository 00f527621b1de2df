"""What is said of the pictures: style words, attribute words, and which sentence is true of which picture.

A caption claims a style and some attributes. A picture fits every caption whose claims are all true of it, so a batch
has many positives per picture (multi-positive InfoNCE), as web captions do: "a photo" fits many photos.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance.prompts import TEMPLATES
from .render import ATTRIBUTES, STYLES, visible

#: The eleventh class: pictures that are none of the ten styles (tinted, torn, blurred, noisy).
BROKEN = "broken image"
CLASSES = (*STYLES, BROKEN)

#: Words for equal slices of 0..1; an empty word is never said.
WORDS: dict[str, tuple[str, ...]] = {
    "face_width": ("a narrow face", "", "a wide face"),
    "face_height": ("a short face", "", "a tall face"),
    "jaw": ("a round chin", "", "a pointed chin"),
    "skin": ("pale skin", "tan skin", "dark skin"),
    "hair_colour": ("black hair", "brown hair", "red hair", "blond hair"),
    "hair_length": ("short hair", "", "long hair"),
    "hair_volume": ("flat hair", "", "big hair"),
    "fringe": ("a high forehead", "", "a deep fringe"),
    "eye_size": ("small eyes", "", "large eyes"),
    "eye_gap": ("close eyes", "", "distant eyes"),
    "mouth_curve": ("a sad mouth", "", "a smile"),
    "mouth_width": ("a small mouth", "", "a wide mouth"),
    "glasses": ("no glasses", "glasses"),
    "background_hue": ("a pink wall", "a yellow wall", "a green wall", "a blue wall", "a purple wall"),
    "background_light": ("a dark wall", "", "a bright wall"),
    "shift_x": ("standing left", "", "standing right"),
    "shift_y": ("standing high", "", "standing low"),
    "shirt_hue": ("a red shirt", "a yellow shirt", "a green shirt", "a blue shirt", "a purple shirt"),
}
_SLICES = torch.tensor([len(WORDS[name]) for name in ATTRIBUTES])


@dataclass(frozen=True)
class Captions:
    """Sentences and what they claim: classes [N], slices [N, A] with -1 where nothing is said."""

    sentences: list[str]
    classes: Tensor
    slices: Tensor

    def fits(self, classes: Tensor, attributes: Tensor) -> Tensor:
        """Which pictures every caption is true of: bool [pictures, captions]."""
        seen = slices_of(attributes)[:, None]
        claims = self.slices[None]
        return (classes[:, None] == self.classes[None]) & ((claims < 0) | (claims == seen)).all(-1)


def slices_of(attributes: Tensor) -> Tensor:
    """Which word's slice every attribute falls into: long [N, A]."""
    return (attributes * _SLICES).long().minimum(_SLICES - 1)


def describe(classes: Tensor, attributes: Tensor, rng: random.Random) -> Captions:
    """One true caption a picture; half of them name the style only, the rest up to seven attributes as well."""
    sentences, claims = [], torch.full(attributes.shape, -1, dtype=torch.long)
    slices = slices_of(attributes)
    for i, label in enumerate(classes.tolist()):
        phrase = CLASSES[label]
        if CLASSES[label] != BROKEN and rng.random() < 0.5:
            shown = visible(STYLES[label]).nonzero().flatten().tolist()
            spoken = []
            for column in rng.sample(shown, min(len(shown), rng.randint(1, 7))):
                word = WORDS[ATTRIBUTES[column]][int(slices[i, column])]
                if word:
                    spoken.append(word)
                    claims[i, column] = slices[i, column]
            phrase = " with ".join([phrase, " and ".join(spoken)]) if spoken else phrase
        sentences.append(rng.choice(TEMPLATES).format(phrase))
    return Captions(sentences, classes, claims)
