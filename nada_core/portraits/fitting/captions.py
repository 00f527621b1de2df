"""Captions for fitting the CLIP models: style words, attribute words, and which captions are true of which pictures.

A caption names a style and some attributes. It fits every picture for which all of that is true, so a picture has
many positives in a batch (multi-positive InfoNCE), as in web captions, where "a photo" fits many photos.

Letters: N captions or pictures, A attributes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ...guidance.prompts import TEMPLATES
from ..judge import BROKEN, CLASSES
from ..render import ATTRIBUTES, STYLES, visible

#: Words for equal slices of 0..1. Captions do not mention a slice whose word is empty.
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
    """Sentences and their claims: classes [N] and slices [N, A], -1 for an attribute that is not mentioned."""

    sentences: list[str]
    classes: Tensor
    slices: Tensor

    def fits(self, classes: Tensor, attributes: Tensor) -> Tensor:
        """Return a mask [pictures, captions] of the captions that are true of each picture."""
        actual, claims = slices_of(attributes)[:, None], self.slices[None]
        return (classes[:, None] == self.classes[None]) & ((claims < 0) | (claims == actual)).all(-1)


def slices_of(attributes: Tensor) -> Tensor:
    """Return the index [N, A] of each attribute's word in `WORDS`."""
    return (attributes * _SLICES).long().minimum(_SLICES - 1)


def describe(classes: Tensor, attributes: Tensor, rng: random.Random) -> Captions:
    """Write a true caption for each picture: half name only the style, the rest also one to seven attributes."""
    sentences, claims = [], torch.full(attributes.shape, -1, dtype=torch.long)
    slices = slices_of(attributes)
    for i, label in enumerate(classes.tolist()):
        phrase = CLASSES[label]
        if CLASSES[label] != BROKEN and rng.random() < 0.5:
            columns = visible(STYLES[label]).nonzero().flatten().tolist()
            words = []
            for column in rng.sample(columns, min(len(columns), rng.randint(1, 7))):
                word = WORDS[ATTRIBUTES[column]][int(slices[i, column])]
                if word:
                    words.append(word)
                    claims[i, column] = slices[i, column]
            phrase = " with ".join([phrase, " and ".join(words)]) if words else phrase
        sentences.append(rng.choice(TEMPLATES).format(phrase))
    return Captions(sentences, classes, claims)
