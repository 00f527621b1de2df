"""The settings of a training: those of the generator's file, with what the user changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..nada_core import AdaptConfig, Generator, LayerChoice, load_recipe
from ..nada_core.adaptation.layer_selection import selectable_layers
from ..nada_core.adaptation.recipes import RECIPES
from ._host import RECIPE_FILES, file_stamp, files, find, io
from ._types import ROOT, LayersType, OptionsType, SimilarityType
from ._widgets import AUTOMATIC, BY_HAND, changes, changes_inputs

KIND, RECIPE_FILE = "kind of target", "recipe file"
_NONE = "(no recipe found)"  # ComfyUI rejects a combo box without options

#: Widgets of Adapt Generator in the mode "by hand". Workflows store values by position: append only.
HAND = ("steps", "batch", "lr", "terms.direction", "terms.global", "terms.angle")

#: Recipes by the name that Adapt Generator shows.
KINDS = {name.replace("-", " "): recipe for name, recipe in RECIPES.items()}

#: Subjects of StyleGAN Training Options and their widgets: append only.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "images": ("views", "mirror", "psi", "noise", "label"),
    "similarity": ("terms.relation", "terms.covariance", "lpips", "id", "weight_reg", "fisher_samples"),
    "optimizer": ("schedule", "warmup", "beta1", "beta2", "grad_clip", "ema"),
    "judge": ("keep_every", "patience"),
    "memory": ("chunk", "precision", "checkpointing", "pool"),
}
_VALIDATIONS = 12  # about so many in a training, where only a judge is connected


def settings_input() -> Any:
    """The input of Adapt Generator that says where its settings come from."""
    kinds = ". ".join(f"{name}: {recipe.about}" for name, recipe in KINDS.items())
    kind = io.Combo.Input("kind", options=list(KINDS), default=next(iter(KINDS)), tooltip=f"{kinds}.")
    steps = changes_inputs(AdaptConfig, ("steps",))
    recipe = io.Combo.Input(
        "recipe",
        options=files(RECIPE_FILES) or [_NONE],
        tooltip="A file of Find Settings in output/stylegan_nada/recipes or models/stylegan_nada/recipes. Press R to "
        "refresh the list.",
    )
    return io.DynamicCombo.Input(
        "settings",
        options=[
            io.DynamicCombo.Option(AUTOMATIC, steps),
            io.DynamicCombo.Option(KIND, [kind, *steps]),
            io.DynamicCombo.Option(BY_HAND, changes_inputs(AdaptConfig, HAND)),
            io.DynamicCombo.Option(RECIPE_FILE, [recipe, *steps]),
        ],
        tooltip="automatic: the settings recommended by the generator's file, or those of the paper. kind of target: "
        "these, adjusted by published advice. by hand: set the most important ones yourself. recipe file: as Find "
        "Settings found them.",
    )


def layers_input() -> Any:
    return LayersType.Input(
        "layers", optional=True, tooltip="The layers to train, from Choose Layers. Not connected: automatic."
    )


def similarity_input() -> Any:
    tooltip = "From Load LPIPS and Identity: the networks for the lpips and id losses."
    return SimilarityType.Input("similarity_networks", optional=True, tooltip=tooltip)


def recipe_stamp(settings: Mapping[str, Any] | None) -> str:
    """Return a cache key that changes with the recipe file of `settings_input`."""
    return file_stamp(RECIPE_FILES, settings["recipe"]) if settings and "recipe" in settings else ""


def training_config(
    generator: Generator,
    settings: Mapping[str, Any],
    seed: int,
    layers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    judged: bool = False,
) -> AdaptConfig:
    """Return the settings of a training. Each of these replaces what the ones before it say.

    Args:
        generator: its recommended settings are the base.
        settings: values of `settings_input`.
        layers: fields from Choose Layers.
        options: fields from StyleGAN Training Options or Find Settings; those of layers are a dict.
        judged: a judge is connected; without `keep_every` it is evaluated about 12 times.

    Raises:
        ValueError: If settings do not fit each other or the generator.
    """
    base = generator.recommended_settings("adapt", AdaptConfig)
    if settings["settings"] == KIND:
        base = KINDS[settings["kind"]].config(base)
    if settings["settings"] == RECIPE_FILE:
        base = load_recipe(find(RECIPE_FILES, settings["recipe"])).config(base)
    own = changes(AdaptConfig, HAND if settings["settings"] == BY_HAND else ("steps",), settings)
    fields = changed_fields(generator, base, own, layers, options)
    if not judged:
        fields = {"keep_every": 0, "patience": 0, **fields}
    elif not fields.get("keep_every", base.keep_every):
        fields["keep_every"] = max(1, fields.get("steps", base.steps) // _VALIDATIONS)
    return replace(base, **fields, seed=seed)


def changed_fields(
    generator: Generator,
    base: AdaptConfig,
    own: Mapping[str, Any],
    layers: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the fields of `base` that a node's own widgets, Choose Layers and its options change."""
    fields = merged(options or {}, own)
    layers = {**fields.pop("layers", {}), **(layers or {})}
    if "terms" in fields:  # a term without weight is not computed
        weights = {**base.terms, **fields["terms"]}
        fields["terms"] = {name: weight for name, weight in weights.items() if weight}
    return {**fields, "layers": layer_choice(generator, base.layers, layers)}


def layer_choice(generator: Generator, base: LayerChoice, layers: Mapping[str, Any] | None) -> LayerChoice:
    """Return `base` with the fields from Choose Layers; an automatic count is at most the generator's layers."""
    choice = replace(base, **(layers or {}))
    most = len(selectable_layers(replace(choice, mode="adaptive", count=1, rgb=False), generator))
    if choice.mode != "adaptive" or choice.count <= most:
        return choice
    if layers and "count" in layers:
        raise ValueError(
            f"Got count {choice.count} in Choose Layers, but this generator has {most} layers to choose from; set "
            f"count to {most} or less, or mode to all."
        )
    return replace(choice, count=most)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of both; those of the second win, and weights of terms are merged."""
    terms = {**first.get("terms", {}), **second.get("terms", {})}
    return {**first, **second, **({"terms": terms} if terms else {})}


class TrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_TrainingOptions",
            display_name="StyleGAN Training Options",
            category=f"{ROOT}/train",
            description="Less frequently used settings of Adapt Generator, by subject. What is left at -1 or automatic "
            "keeps the value that Adapt Generator would use without this node. Chain several nodes for several "
            "subjects.",
            search_aliases=["advanced settings", "learning rate schedule", "augmentation", "memory", "ema", "lpips"],
            inputs=[
                io.DynamicCombo.Input(
                    "subject",
                    options=[
                        io.DynamicCombo.Option(subject, changes_inputs(AdaptConfig, names))
                        for subject, names in SUBJECTS.items()
                    ],
                    tooltip="images: what CLIP sees. similarity: losses that keep images close to the source. "
                    "optimizer: learning rate and Adam. judge: its evaluations. memory: memory and speed.",
                ),
                OptionsType.Input(
                    "options", optional=True, tooltip="From another StyleGAN Training Options, to set several subjects."
                ),
            ],
            outputs=[OptionsType.Output("changed", display_name="options", tooltip="For Adapt Generator.")],
        )

    @classmethod
    def execute(cls, subject: dict[str, Any], options: dict[str, Any] | None = None) -> Any:
        own = changes(AdaptConfig, SUBJECTS[subject["subject"]], subject)
        return io.NodeOutput(merged(options or {}, own))
