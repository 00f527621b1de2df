"""Photo nodes: built-in portraits, GAN inversion and pivotal tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ..nada_core import InvertConfig, Latents, TuneConfig, grid, invert, load_generator, portraits, tune
from ..nada_core.cli import report as texts
from ..nada_core.models.generator import check_latents
from ..nada_core.portraits.content import Content
from ._host import for_training, from_image, io, normal_mode, to_image
from ._server import send_text
from ._status import watch_steps
from ._types import ROOT, DomainType, GeneratorType, LatentsType, SimilarityType
from ._widgets import seed_input, settings_input, settings_of

T = TypeVar("T")

#: Widgets of Invert Photo and Pivotal Tuning. Workflows store values by position: append only.
INVERT = (
    "space",
    "steps",
    "lr",
    "mse",
    "lpips",
    "id",
    "optimize_noise",
    "stop_psnr",
    "batch",
    "coarse",
    "delta",
    "w_steps_share",
    "lr_rampup",
    "lr_rampdown",
    "initial_noise_factor",
    "noise_ramp_length",
    "noise_reg",
    "patience",
)
TUNE = (
    "steps",
    "lr",
    "mse",
    "lpips",
    "id",
    "locality",
    "stop_psnr",
    "stop_lpips",
    "batch",
    "lr_rampdown",
    "distance",
    "psi",
    "num_neighbours",
)
_CHANNELS = 4  # transparent images are composited on white
_SIMILARITY = (
    "From Load LPIPS and Identity: the networks for the lpips and id losses. Not connected: these losses are not used."
)


class DrawPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_DrawPortrait",
            display_name="Draw Portrait",
            category=f"{ROOT}/photos",
            description="Draws synthetic faces with a procedural renderer, without a generator. Use them "
            "as test images for inversion, or as ground truth for a style.",
            search_aliases=["test picture", "example photo", "portraits", "ground truth"],
            inputs=[
                seed_input("Seed of the first image; the following images use the next seeds.", redraw=True),
                io.Int.Input("count", default=3, min=1, max=256, step=1, tooltip="Number of images."),
                io.Combo.Input(
                    "style",
                    options=list(portraits.STYLES),
                    default=portraits.SOURCE,
                    tooltip="The drawing style. A seed gives the same person in every style.",
                ),
                LatentsType.Input(
                    "latents",
                    optional=True,
                    tooltip="Latents of the built-in generator, to draw the person of each in this style instead; "
                    "seed and count are ignored.",
                ),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="Images of 64 x 64 pixels.")],
        )

    @classmethod
    @normal_mode()
    def execute(cls, seed: int, count: int, style: str, latents: Any = None) -> Any:
        contents = portraits.contents(range(seed, seed + count))
        if latents is not None:
            check_latents(load_generator("portraits"), latents.ws, latents.space, len(latents))
            contents = Content.load()(latents.ws)
        return io.NodeOutput(to_image(portraits.render(contents, style)))


class InvertImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_InvertImage",
            display_name="Invert Photo",  # ComfyUI has a node "Invert Image", which inverts colors
            category=f"{ROOT}/photos",
            description="GAN inversion: finds latents whose images match the given images as closely as "
            "possible. The latents can be edited, mixed and rendered with any fine-tuned "
            "generator. Align photos first.",
            search_aliases=["face inversion", "gan inversion", "photo to latent", "projector", "w+", "invert face"],
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to invert. It is not modified."),
                io.Image.Input("image", tooltip="One or more images of any size. The center square is used."),
                SimilarityType.Input("similarity_networks", optional=True, tooltip=_SIMILARITY),
                LatentsType.Input(
                    "start",
                    optional=True,
                    tooltip="Initial latents, one per image, for example from Encode Photo. w+ starts from all "
                    "rows; other spaces start from the mean of the rows. Not connected: the mean of w.",
                ),
                settings_input(InvertConfig, INVERT),
                seed_input("Random seed. It stays fixed after a run."),
            ],
            outputs=[
                LatentsType.Output("latents", display_name="latents", tooltip="The best latents found, one per image."),
                io.Image.Output("inverted", display_name="inverted", tooltip="The images rendered from the latents."),
                io.String.Output("report", display_name="report", tooltip="PSNR and LPIPS, one line per image."),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        image: Tensor,
        settings: dict[str, Any],
        seed: int,
        similarity_networks: tuple = (None, None),
        start: Latents | None = None,
    ) -> Any:
        config = _config(generator, "invert", InvertConfig, INVERT, settings, seed, similarity_networks)
        targets = from_image(image, _CHANNELS)
        tick = watch_steps(len(targets) * config.steps)
        with for_training(generator, (), *similarity_networks) as (source, _, *networks):
            result = invert(source, targets, config, *networks, start=start, on_step=_watched(tick, "done"))
            report = texts.closeness(result.images, result.targets, networks[0], result.steps)
        send_text(report)
        return io.NodeOutput(result.latents, to_image(result.images), report)


class PivotalTuning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PivotalTuning",
            display_name="Pivotal Tuning",
            category=f"{ROOT}/photos",
            description="Pivotal tuning (PTI): fine-tunes a copy of the generator so that it reproduces the "
            "images from their latents more closely. The weight change is a domain and can also "
            "be applied to a fine-tuned generator.",
            search_aliases=["pti", "fine-tune on photo", "personalise", "pivotal"],
            inputs=[
                GeneratorType.Input(
                    "generator", tooltip="The generator that the latents were found for. It is not modified."
                ),
                io.Image.Input("image", tooltip="The images that were inverted."),
                LatentsType.Input("latents", tooltip="Their latents, from Invert Photo or Encode Photo."),
                SimilarityType.Input("similarity_networks", optional=True, tooltip=_SIMILARITY),
                settings_input(TuneConfig, TUNE),
                seed_input("Random seed. It stays fixed after a run."),
            ],
            outputs=[
                GeneratorType.Output("generator", display_name="tuned", tooltip="The tuned generator."),
                DomainType.Output(
                    "domain",
                    display_name="domain",
                    tooltip="The weight changes, for Apply StyleGAN Domain on a fine-tuned generator.",
                ),
                io.Image.Output("drawn", display_name="drawn", tooltip="The images rendered from the latents."),
                io.String.Output("report", display_name="report", tooltip="PSNR and LPIPS, one line per image."),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        image: Tensor,
        latents: Latents,
        settings: dict[str, Any],
        seed: int,
        similarity_networks: tuple = (None, None),
    ) -> Any:
        config = _config(generator, "tune", TuneConfig, TUNE, settings, seed, similarity_networks)
        tick = watch_steps(config.steps)
        with for_training(generator, (), *similarity_networks) as (source, _, *networks):
            result = tune(
                source, from_image(image, _CHANNELS), latents, config, *networks, on_step=_watched(tick, "index")
            )
            report = texts.closeness(result.images, result.targets, networks[0])
            tuned = result.generator.cpu()
        send_text(report)
        return io.NodeOutput(tuned, result.domain, to_image(result.images), report)


def _config(
    generator: Any,
    section: str,
    cls: type[T],
    names: Sequence[str],
    values: Mapping[str, Any],
    seed: int,
    similarity_networks: tuple,
) -> T:
    """Return the generator's own settings with the user's changes; without a network its loss is not used."""
    unused = {name: 0.0 for name, network in zip(("lpips", "id"), similarity_networks, strict=True) if network is None}
    return settings_of(generator.recommended_settings(section, cls), names, values, seed=seed, **unused)


def _watched(tick: Callable[..., None], count: str) -> Callable[[Any], None]:
    """Progress callback with a preview. count: the field of the step that holds its number."""
    return lambda step: tick(getattr(step, count) + (count == "index"), lambda: grid(step.images()))
