"""Fit a CLIP model by captions alone, as published CLIP models are (Radford et al., arXiv:2103.00020, section 2.3).

The captions are noisy, as alt texts are: words are missing or wrong. The loss is InfoNCE between each picture and its
own caption. No loss compares one content in two styles, so the text directions are as aligned with the pictures as this
makes them. The adversarial steps are those of the other fits. The model measures how methods work with such a
misalignment; it is not part of the package.

Letters: N pictures, D embedding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...guidance.prompts import TEMPLATES
from ..judge import BROKEN, CLASSES
from ..render import ATTRIBUTES, STYLES
from .captions import WORDS, slices_of
from .corrupt import corrupt
from .guide import CONFIGS, Batch, Gallery, Losses, Stage, augment, run_stages

_STYLED, _BROKEN = 60, 4  # pictures in a batch
_MISSING, _WRONG = 0.15, 0.1  # the shares of style words that are missing or those of another style
_WRONG_ATTRIBUTE = 0.15


def alt_texts(classes: Tensor, attributes: Tensor, rng: random.Random) -> list[str]:
    """Write a caption for each picture whose words are partly missing or wrong: half name only the style."""
    sentences = []
    for label, slices in zip(classes.tolist(), slices_of(attributes).tolist(), strict=True):
        names = (CLASSES[label], rng.choice(CLASSES), "picture")
        phrase = rng.choices(names, (1 - _WRONG - _MISSING, _WRONG, _MISSING))[0]
        count = rng.randint(1, 7) if CLASSES[label] != BROKEN and rng.random() < 0.5 else 0
        words = []
        for column in rng.sample(range(len(ATTRIBUTES)), count):
            options = WORDS[ATTRIBUTES[column]]
            words.append(rng.choice(options) if rng.random() < _WRONG_ATTRIBUTE else options[slices[column]])
        details = " and ".join(filter(None, words))
        sentences.append(rng.choice(TEMPLATES).format(f"{phrase} with {details}" if details else phrase))
    return sentences


def fit(folder: Path, minutes: float, contents: int = 1000, seed: int = 300, log: Path | None = None) -> Path:
    """Fit for a time budget and write guide-captions.safetensors and .json into folder; return the path of the last."""
    path = folder / "guide-captions.safetensors"
    run_stages(CaptionStage, path, CONFIGS["guide-64"], minutes, contents, seed, log)
    return path.with_suffix(".json")


class CaptionStage(Stage):
    """One stage of `fit`. Captions teach more slowly than the other losses, so the first steps are clean."""

    clean = 0.4

    def batches(self, gallery: Gallery, seed: int) -> Iterator[Batch]:
        """Yield random pictures, each of a content and a style of its own, and a few corrupted ones."""
        rng = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(gallery.attributes), (_STYLED + _BROKEN,), generator=rng)
            styles = torch.randint(len(STYLES), (_STYLED + _BROKEN,), generator=rng)
            pictures = gallery.pictures_of(styles, rows)
            pictures = torch.cat([augment(pictures[:_STYLED], rng), corrupt(pictures[_STYLED:], rng)])
            styles[_STYLED:] = CLASSES.index(BROKEN)
            yield Batch(pictures, styles, gallery.attributes[rows], torch.empty(0))

    def objective(self, batch: Batch) -> Callable[[Tensor, bool], Losses]:
        texts, scale = self.embed_texts(alt_texts(batch.classes, batch.attributes, self.words_rng)), self.scale
        own, zero = torch.arange(len(texts)), torch.zeros(())

        def losses(images: Tensor, detach: bool) -> Losses:
            logits = scale * images @ (texts.detach() if detach else texts).mT
            caption = (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
            return Losses(caption, zero, zero, zero)

        return losses
