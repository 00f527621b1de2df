"""Prompt templates for text directions (StyleGAN-NADA, arXiv:2108.00946, section 4.1; CLIP, arXiv:2103.00020, 3.1.4).

A phrase such as "sketch" is embedded through many templates and averaged, which makes the direction between two
phrases far less noisy. The templates are the ImageNet list published with CLIP (MIT licence) without its single
plural one, "a photo of many {}.": a generator makes one subject an image.
"""

from __future__ import annotations

from collections.abc import Sequence

TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

BARE: tuple[str, ...] = ("{}",)  # the phrase as it stands, for layer selection and for prompts written in full


def fill(phrase: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Put a phrase into every template, in order.

    Raises:
        ValueError: for an empty phrase, for no templates, and for a template without "{}".
    """
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"Got the phrase {phrase!r}, expected words for a domain, such as 'photo' or 'sketch'.")
    if not templates:
        raise ValueError("Got no prompt templates, expected at least one. Use BARE to embed the phrase as it stands.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"Got the template {template!r}, expected exactly one {{}} where the phrase goes.")
    return [template.replace("{}", phrase.strip()) for template in templates]
