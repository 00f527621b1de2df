"""Settings and words that work, by kind of target, and a look at whether two phrases say anything to a guide.

What is published: the table of StyleGAN-NADA's notebook (arXiv:2108.00946), the domains of HyperDomainNet
(arXiv:2210.08884), the shipped settings of StyleDomain (arXiv:2212.10229) and SVL's losses (arXiv:2308.10554). On
published generators of faces none of the recipes was measured here.

Letters: K templates, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .config import AdaptConfig

#: Both of the paper's encoders: two that are built differently are harder to fool than one.
GUIDES = ("ViT-B-32:openai", "ViT-B-16:openai")


@dataclass(frozen=True)
class Recipe:
    """Changes to the settings that suit a generator anyway, so that one recipe serves large and small ones.

    about: which targets. source, targets: words that work. advice: what to know. length, pace: factors of steps and
    learning rate. settings, layers: fields of AdaptConfig and LayerChoice. guides: for generators of real pictures.
    """

    about: str
    source: str
    targets: tuple[str, ...]
    advice: str
    length: float = 1.0
    pace: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    guides: tuple[str, ...] = GUIDES

    def config(self, base: AdaptConfig) -> AdaptConfig:
        """The settings for a generator whose own are `base`: AdaptConfig() for a published one."""
        return replace(
            base,
            steps=round(base.steps * self.length),
            lr=base.lr * self.pace,
            **self.settings,
            layers=replace(base.layers, **self.layers),
        )


RECIPES: dict[str, Recipe] = {
    "style": Recipe(
        about="a way of painting, drawing or rendering, which leaves the person alone",
        source="Photo",
        targets=("Sketch", "Anime Painting", "3D Render Pixar", "Watercolor Painting", "Ukiyo-e"),
        advice="Name the thing that is made, as in Anime Painting; anime alone is a genre.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25}},
        layers={"mode": "all"},
    ),
    "creature": Recipe(
        about="another kind of being, whose skin and shape differ",
        source="Human",
        targets=("Werewolf", "Zombie", "Tolkien Elf", "White Walker"),
        advice="Watch the diversity: a creature that looks the same in every picture has been trained too long.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25}},
    ),
    "character": Recipe(
        about="one named person or figure; few degrees of freedom keep it from becoming one face",
        source="Human",
        targets=("The Joker", "Shrek", "Nicolas Cage", "Mona Lisa Painting"),
        advice="Write names as names, with article and capital: a joker is a playing card, too.",
        length=5 / 6,
        pace=25.0,
        settings={"batch": 4, "beta1": 0.9, "beta2": 0.999, "terms": {"direction": 1.0, "angle": 0.25}},
        layers={"mode": "all", "train": "offsets"},
    ),
    "animal": Recipe(
        about="another species, which takes long and must not collapse on the way",
        source="Dog",
        targets=("Cat", "Fox", "Lion"),
        advice="The source names what the generator makes: Dog for dogs. Let a held-out guide choose the step.",
        length=5.0,
        settings={
            "batch": 4,
            "weight_reg": 1.0,
            "fisher_samples": 64,
            "terms": {"direction": 1.0, "relation": 100.0, "covariance": 20.0},
        },
    ),
    "few-images": Recipe(
        about="the look of one to ten pictures, alone or mixed with words",
        source="Photo",
        targets=(),
        advice="Three pictures are better than one; faces cut and turned like the generator's work best.",
        length=5 / 3,
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.5}},
        layers={"mode": "all"},
    ),
}
