"""Settings and phrases by kind of target.

Sources: the notebook of StyleGAN-NADA (arXiv:2108.00946), the domains of HyperDomainNet (arXiv:2210.08884), the
settings of StyleDomain (arXiv:2212.10229) and the losses of SVL (arXiv:2308.10554). The recipes have not been measured
on published generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .config import AdaptConfig

#: Both encoders of the paper. Two architectures share few adversarial patterns.
GUIDES = ("ViT-B-32:openai", "ViT-B-16:openai")


@dataclass(frozen=True)
class Recipe:
    """Changes to a generator's own settings, so that one recipe fits large and small generators.

    Attributes:
        about: the kind of target.
        source, targets: phrases that work.
        steps_factor: factor on the steps.
        settings, layers: new values for fields of AdaptConfig and LayerChoice.
        guides: CLIP models for generators of photos.
    """

    about: str
    source: str
    targets: tuple[str, ...]
    advice: str
    steps_factor: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    guides: tuple[str, ...] = GUIDES

    def config(self, base: AdaptConfig) -> AdaptConfig:
        """Apply the recipe to the generator's own settings; AdaptConfig() for a published one."""
        return replace(
            base,
            steps=round(base.steps * self.steps_factor),
            **self.settings,
            layers=replace(base.layers, **self.layers),
        )


RECIPES: dict[str, Recipe] = {
    "style": Recipe(
        about="a painting, drawing or rendering style; the person stays the same",
        source="Photo",
        targets=("Sketch", "Anime Painting", "3D Render Pixar", "Watercolor Painting", "Ukiyo-e"),
        advice="Name the medium, as in Anime Painting; anime alone is a genre.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25}},
        layers={"mode": "all"},
    ),
    "creature": Recipe(
        about="another kind of being, with other skin and shape",
        source="Human",
        targets=("Werewolf", "Zombie", "Tolkien Elf", "White Walker"),
        advice="Watch the diversity: when every picture shows the same creature, train fewer steps.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25}},
    ),
    "character": Recipe(
        about="one named person or figure; few trained parameters limit the collapse to one face",
        source="Human",
        targets=("The Joker", "Shrek", "Nicolas Cage", "Mona Lisa Painting"),
        advice="Write names with article and capital: The Joker; a joker is also a playing card.",
        steps_factor=5 / 6,
        settings={
            "batch": 4,
            "lr": 0.05,  # styles are of the same size in every generator
            "beta1": 0.9,
            "beta2": 0.999,
            "terms": {"direction": 1.0, "angle": 0.25},
        },
        layers={"mode": "all", "train": "offsets"},
    ),
    "animal": Recipe(
        about="another species; needs many steps",
        source="Dog",
        targets=("Cat", "Fox", "Lion"),
        advice="The source names what the generator makes, such as Dog. Let a held-out CLIP model choose the step.",
        steps_factor=5.0,
        settings={
            "batch": 4,
            "weight_reg": 1.0,
            "fisher_samples": 64,
            "terms": {"direction": 1.0, "relation": 100.0, "covariance": 20.0},
        },
    ),
    "few-images": Recipe(
        about="the style of one to ten pictures, alone or mixed with text",
        source="Photo",
        targets=(),
        advice="Three pictures are better than one; align faces as the generator's are.",
        steps_factor=5 / 3,
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.5}},
        layers={"mode": "all"},
    ),
}
