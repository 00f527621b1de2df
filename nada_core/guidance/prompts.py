"""Prompt templates for text directions (StyleGAN-NADA, arXiv:2108.00946, section 4.1; CLIP, arXiv:2103.00020, 3.1.4).

A phrase such as "sketch" is embedded in many templates and averaged, which makes the direction between two phrases
less noisy. `templates.txt` is the ImageNet list published with CLIP (MIT licence) without its only plural template,
"a photo of many {}.", because a generator draws one subject per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TEMPLATES: tuple[str, ...] = tuple(Path(__file__).with_name("templates.txt").read_text(encoding="utf-8").splitlines())

BARE: tuple[str, ...] = ("{}",)  # the phrase alone, for layer selection and for prompts written in full


def fill(phrase: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Insert a phrase into every template in place of its "{}", in order."""
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"Got the phrase {phrase!r}, expected words for a domain, such as 'photo' or 'sketch'.")
    if not templates:
        raise ValueError("Got no prompt templates, expected at least one. Use BARE to embed the phrase alone.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"Got the template {template!r}, expected exactly one {{}} where the phrase goes.")
    return [template.replace("{}", phrase.strip()) for template in templates]
