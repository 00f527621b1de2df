"""The flags that adapt and search share: what is trained, towards what, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Fixed, Suppress, arg

from ..adaptation.config import AdaptConfig, PairsConfig
from ..adaptation.recipes import RECIPES, load_recipe
from ..guidance.shifts import ImageShift, MixedShift, TextShift
from ..io.errors import CheckpointError
from ..io.images import load_image, square
from ..models.arcface import load_identity
from ..models.checkpoints import read_recommended
from ..models.clip import ClipGuide
from ..models.clip_loading import load_guide
from ..models.generator import build_settings
from ..models.lpips import load_perceptual
from .arguments import (
    Command,
    Files,
    GeneratorName,
    Guides,
    Identity,
    Perceptual,
    Text,
    draft,
    flag,
    value,
    with_defaults,
)


def _recipe_name(text: str) -> str:
    if not text.endswith(".json"):
        load_recipe(text)
    return text


RecipeName = Annotated[str | None, value(f"{{{','.join(RECIPES)}}}|FILE", _recipe_name)]


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(Command):
    """Flags of a command that adapts a generator; the defaults depend on its file."""

    generator: GeneratorName
    guide: Guides = flag(
        (),
        "CLIP model: a built-in name, ARCHITECTURE:TAG (downloaded on first use) or ARCHITECTURE:FILE; default: those"
        " stored in the generator's file",
    )
    stored_guides: Suppress[Fixed[Any]] = ()
    stored_judge: Suppress[Fixed[Any]] = None
    source: str = flag("photo", "text for what the generator draws now")
    target: Text = flag(None, "text for what it should draw")
    image: Files = flag((), "an image of the target style, instead of --target or with it; up to ten")
    image_weight: float = flag(0.5, "share of the images where there is a target text too, from 0 to 1")
    recipe: RecipeName = flag(
        None,
        "use the settings of a recipe file that `search` wrote, or of a kind of target: "
        + "; ".join(f"{name}, {one.about}" for name, one in RECIPES.items()),
    )
    perceptual: Perceptual = None
    identity: Identity = None
    config: Annotated[AdaptConfig, arg(name="training")] = AdaptConfig()

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Any:
        known = draft(cls, words)
        stored = stored_settings(known.generator if known else "")
        config = build_settings(AdaptConfig, stored.get("adapt", {}))
        source = stored.get("source", "photo")
        if known and known.recipe and (known.recipe in RECIPES or Path(known.recipe).is_file()):
            recipe = load_recipe(known.recipe)
            config, source = recipe.config(config), stored.get("source", recipe.source)
        if getattr(known, "pairs", None):
            config = PairsConfig.for_training(config).training
        guides = tuple((name, weight) for name, weight in stored.get("guides", ()))
        judge = stored.get("held_out")
        return with_defaults(cls, config=config, source=source, stored_guides=guides, stored_judge=judge)

    def load_guides(self, device: torch.device) -> list[tuple[ClipGuide, float]]:
        return [(load_guide(name, device=device), weight) for name, weight in self.guide or self.stored_guides]

    def check(self, needs_guides: bool = True) -> None:
        """Refuse a missing recipe file and missing guides."""
        if self.recipe:
            load_recipe(self.recipe)
        if needs_guides and not self.guide and not self.stored_guides:
            raise ValueError("--guide is missing: the generator's file names no CLIP models; try ViT-B-32:openai.")

    def load_networks(self, device: torch.device) -> tuple[Any, Any]:
        """The networks of the lpips and id terms."""
        perceptual = load_perceptual(self.perceptual, device) if self.perceptual else None
        return perceptual, load_identity(self.identity, device) if self.identity else None

    def shift(self, size: int) -> TextShift | ImageShift | MixedShift | None:
        """What the guides are asked for; None without text and images. size: pixels of the generator."""
        text = TextShift(self.source, self.target) if self.target else None
        if not self.image:
            return text
        images = ImageShift(torch.cat([square(load_image(name), size) for name in self.image]))
        share = self.image_weight
        return images if text is None else MixedShift((text, images), (1 - share, share))


def stored_settings(generator: str) -> Mapping[str, Any]:
    """The recommended settings in a generator's file; none where it cannot be read, which loading it will report."""
    try:
        return read_recommended(generator)
    except CheckpointError:
        return {}
