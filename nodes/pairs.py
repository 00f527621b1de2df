"""Learning from pairs: images of a generator and what an image model, such as a diffusion model, made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..nada_core import Adaptation, AdaptConfig, Generator, Latents, PairsConfig, PairShift, adapt_to_pairs
from ..nada_core.adaptation.adapt_to_pairs import pair_inputs
from ._host import from_image, io, normal_mode, ui
from ._training import train
from ._types import ROOT, GeneratorType, GuideType, LatentsType, OptionsType, ShiftType, SimilarityType
from ._widgets import AUTOMATIC, BY_HAND, changes, changes_inputs, seed_input
from .adapt import snapshot_input, training_outputs
from .training_options import changed_fields, layers_input

#: Widgets of Adapt to Pairs in the mode "by hand". Workflows store values by position: append only.
TRAINING_HAND = ("steps", "batch", "lr")
PAIRS_HAND = ("l1", "edges", "lpips", "focus", "align", "locality", "hold_out", "min_direction", "max_rank")


class ShiftFromPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_ShiftFromPairs",
            display_name="Shift from Pairs",
            category=f"{ROOT}/direction",
            description="The direction in CLIP space from images to edited versions of them, averaged over the pairs.",
            search_aliases=["before after", "edited images", "image pairs", "diffusion direction"],
            inputs=[
                io.Image.Input("before", tooltip="The images before the edit, usually from Render StyleGAN."),
                io.Image.Input("after", tooltip="The edited images, in the same order."),
            ],
            outputs=[ShiftType.Output("shift", display_name="shift", tooltip="The direction, for Adapt Generator.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, before: Tensor, after: Tensor) -> Any:
        return io.NodeOutput(PairShift(from_image(before), from_image(after)))


class AdaptToPairs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_AdaptToPairs",
            display_name="Adapt to Pairs",
            category=f"{ROOT}/train",
            description="Fine-tunes a copy of the generator so that it draws edited images from their latents. Any "
            "image model can make the edits, such as img2img with a low denoise or an edit model. Wrong pairs are "
            "rejected; 32 pairs are a good number. The preview shows the same latents before (top) and after (bottom) "
            "training so far.",
            search_aliases=["train on images", "distill diffusion", "image pairs", "paired training", "img2img"],
            has_intermediate_output=True,
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to start from. It is not modified."),
                LatentsType.Input("latents", tooltip="The latents that were rendered, from this generator."),
                io.Image.Input(
                    "images",
                    tooltip="The edited images of these latents, in the same order: squares, uncropped, at least as "
                    "large as the generator's images.",
                ),
                GuideType.Input(
                    "guide",
                    optional=True,
                    tooltip="A CLIP guide, which helps to find wrong pairs. With a shift, it also supplies a loss.",
                ),
                ShiftType.Input(
                    "shift",
                    optional=True,
                    tooltip="A direction in CLIP space to train along as well, on the pairs and on other latents.",
                ),
                layers_input(),
                _settings_input(),
                seed_input("Random seed of the training. It stays fixed after a run."),
                snapshot_input(),
                SimilarityType.Input(
                    "similarity_networks",
                    optional=True,
                    tooltip="From Load LPIPS and Identity: LPIPS for the lpips loss. The face recognizer helps to find "
                    "wrong pairs.",
                ),
                OptionsType.Input(
                    "options", optional=True, tooltip="From StyleGAN Training Options: less frequently used settings."
                ),
            ],
            outputs=training_outputs(
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many pairs were used, why each rejected pair was rejected, and which step was chosen.",
                )
            ),
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        latents: Latents,
        images: Tensor,
        settings: dict[str, Any],
        seed: int,
        guide: tuple = (),
        shift: Any = None,
        layers: dict[str, Any] | None = None,
        snapshot_every: int = 0,
        similarity_networks: tuple = (None, None),
        options: dict[str, Any] | None = None,
    ) -> Any:
        config = pairs_config(generator, settings, seed, layers, options)
        pairs = latents, from_image(images), config
        fingerprint = pair_inputs(generator, *pairs, guide, shift, *similarity_networks).fingerprint()
        run, training, others = run_of(*pairs, shift), config.training, similarity_networks
        outputs, snapshots, sheet = train(run, training, generator, guide, others, fingerprint, snapshot_every)
        return io.NodeOutput(*outputs, snapshots, ui=ui.PreviewImage(sheet, cls=cls))


def _settings_input() -> Any:
    return io.DynamicCombo.Input(
        "settings",
        options=[
            io.DynamicCombo.Option(AUTOMATIC, changes_inputs(AdaptConfig, ("steps",))),
            io.DynamicCombo.Option(
                BY_HAND, [*changes_inputs(AdaptConfig, TRAINING_HAND), *changes_inputs(PairsConfig, PAIRS_HAND)]
            ),
        ],
        tooltip="automatic: recommended settings, with the optimizer of the generator's file. by hand: set "
        "the most important ones yourself.",
    )


def run_of(latents: Latents, images: Tensor, config: PairsConfig, shift: Any) -> Callable[..., Adaptation]:
    """Return the run of these inputs, given generator, guides, perceptual and identity networks, and options."""
    return lambda source, guides, perceptual, identity, **options: adapt_to_pairs(
        source, latents, images, config, guides, shift, perceptual, identity, **options
    )


def pairs_config(
    generator: Generator,
    settings: Mapping[str, Any],
    seed: int,
    layers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> PairsConfig:
    """Return the settings of a training. Each of these replaces what the ones before it say.

    Args:
        settings: values of the input of that name.
        layers: fields from Choose Layers. options: fields from StyleGAN Training Options.

    Raises:
        ValueError: If settings do not fit each other or the generator.
    """
    base = PairsConfig.for_training(generator.recommended_settings("adapt", AdaptConfig))
    by_hand = settings["settings"] == BY_HAND
    own = changes(AdaptConfig, TRAINING_HAND if by_hand else ("steps",), settings)
    training = replace(base.training, **changed_fields(generator, base.training, own, layers, options), seed=seed)
    return replace(base, **(changes(PairsConfig, PAIRS_HAND, settings) if by_hand else {}), training=training)
