"""Settings and phrases by kind of target, and recipe files.

Sources: the notebook of StyleGAN-NADA (arXiv:2108.00946), the domains of HyperDomainNet (arXiv:2210.08884), the
settings of StyleDomain (arXiv:2212.10229) and the losses of SVL (arXiv:2308.10554). The recipes have not been measured
on published generators. The covariance loss of `style` and `creature` keeps images apart where text
directions are wrong, as measured in the built-in world (docs/results.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..io.metadata import replace_atomically
from .config import AdaptConfig

#: Both encoders of the paper. Two architectures share few adversarial patterns.
GUIDES = ("ViT-B-32:openai", "ViT-B-16:openai")
_FORMAT = "stylegan-nada recipe 1"
#: Settings of a single run, which a recipe leaves alone.
_OF_ONE_RUN = ("seed", "label", "keep_every", "patience", "autosave_every", "chunk", "checkpointing")


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

    @classmethod
    def between(cls, base: AdaptConfig, config: AdaptConfig, **texts: Any) -> Recipe:
        """Return the recipe that turns a generator's own settings into `config`. texts: the other attributes."""
        changed = changed_fields(base, config)
        layers, _ = changed.pop("layers", {}), changed.pop("steps", None)
        return cls(steps_factor=config.steps / base.steps, settings=changed, layers=layers, **texts)

    def config(self, base: AdaptConfig) -> AdaptConfig:
        """Apply the recipe to the generator's own settings; AdaptConfig() for a published one."""
        return replace(
            base,
            steps=round(base.steps * self.steps_factor),
            **self.settings,
            layers=replace(base.layers, **self.layers),
        )


def changed_fields(base: AdaptConfig, config: AdaptConfig) -> dict[str, Any]:
    """Return the fields of `config` that differ from `base`, those of its layers as a dict, without `_OF_ONE_RUN`."""
    before, after = asdict(base), asdict(config)
    changed = {name: value for name, value in after.items() if value != before[name] and name not in _OF_ONE_RUN}
    if "layers" in changed:
        changed["layers"] = {name: v for name, v in after["layers"].items() if v != before["layers"][name]}
    return changed


def save_recipe(recipe: Recipe, path: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a recipe as a .json file, for `load_recipe`. notes: further JSON-ready values, such as how it was found."""
    path = Path(path)
    values = {"format": _FORMAT, **asdict(recipe), "notes": dict(notes or {})}
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load_recipe(name: str | Path) -> Recipe:
    """Return a recipe of this package by its name, or read a recipe file.

    Raises:
        ValueError: for an unknown name, and for a file that is no recipe or has unknown or invalid settings.
    """
    if name in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(
            f"Got the recipe {str(name)!r}, expected one of {', '.join(RECIPES)}, or a recipe file (.json)."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT!r}")
        known = {item.name for item in fields(Recipe)}
        values = {key: _tuples(value) for key, value in values.items() if key in known}
        recipe = Recipe(**values)
        recipe.config(AdaptConfig())
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: got a file that is no recipe ({error}); write one with the search command."
        ) from error
    return recipe


def _tuples(value: Any) -> Any:
    """Turn the lists of a JSON value into tuples, as settings have them."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


RECIPES: dict[str, Recipe] = {
    "style": Recipe(
        about="a painting, drawing or rendering style; the person stays the same",
        source="Photo",
        targets=("Sketch", "Anime Painting", "3D Render Pixar", "Watercolor Painting", "Ukiyo-e"),
        advice="Name the medium, as in Anime Painting; anime alone is a genre.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25, "covariance": 1.0}},
        layers={"mode": "all"},
    ),
    "creature": Recipe(
        about="another kind of being, with other skin and shape",
        source="Human",
        targets=("Werewolf", "Zombie", "Tolkien Elf", "White Walker"),
        advice="Watch the diversity: when every picture shows the same creature, train fewer steps.",
        settings={"batch": 4, "terms": {"direction": 1.0, "angle": 0.25, "covariance": 1.0}},
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
