"""Find Settings: a search of settings for Adapt Generator, measured by a held-out CLIP model."""

from __future__ import annotations

from typing import Any

import torch

from ..nada_core import AdaptConfig, FoundSettings, SearchConfig, find_settings, load_image, save_recipe
from ..nada_core.adaptation.provenance import run_fingerprint
from ..nada_core.adaptation.recipes import changed_fields
from ..nada_core.adaptation.search import Progress, strip_path
from ..nada_core.io.metadata import create_atomically
from ..nada_core.runtime.config import describe
from ._host import for_training, io, normal_mode, numbered_paths, output_folder, to_image, ui
from ._server import send_text, watch
from ._types import ROOT, GeneratorType, GuideType, LayersType, OptionsType, ShiftType
from ._widgets import seed_input
from .adapt import single_judge
from .save import prefix_input
from .training_options import recipe_stamp, settings_input, similarity_input, training_config

_UNITS = 100  # of the progress bar, for each trial


class FindSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_FindSettings",
            display_name="Find Settings",
            category=f"{ROOT}/train",
            description="Trains with different settings, measures every trial with a held-out CLIP guide, and returns "
            "the best settings as a recipe. After Cancel or with more trials, the search continues. Needs the Python "
            "package optuna.",
            search_aliases=[
                "optuna",
                "hyperparameter search",
                "tune settings",
                "auto settings",
                "learning rate search",
            ],
            is_output_node=True,
            inputs=[
                GeneratorType.Input("generator", tooltip="The generator to start from. It is not modified."),
                GuideType.Input("guide", tooltip="The CLIP guides of the training, as connected to Adapt Generator."),
                ShiftType.Input("shift", tooltip="The direction in CLIP space to train along."),
                GuideType.Input(
                    "judge", tooltip="A held-out CLIP guide that is not one of the training guides. It scores trials."
                ),
                LayersType.Input("layers", optional=True, tooltip="From Choose Layers, for the first trial."),
                settings_input(),
                *_search_inputs(),
                seed_input("Random seed of the trainings and of the search."),
                prefix_input("recipe"),
                similarity_input(),
                OptionsType.Input("options", optional=True, tooltip="From StyleGAN Training Options, for all trials."),
            ],
            outputs=[
                OptionsType.Output(
                    "recipe",
                    display_name="recipe",
                    tooltip="The best settings, for the input options of Adapt Generator.",
                ),
                io.String.Output(
                    "table",
                    display_name="table",
                    tooltip="One line for each trial, the best first; path of the recipe.",
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="The score of every trial, and the importance of the settings."
                ),
                io.Image.Output(
                    "strips",
                    display_name="strips",
                    tooltip="One image for each trial: the same latents before (top) and after (bottom).",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, settings: dict[str, Any] | None = None, **_: Any) -> Any:
        return recipe_stamp(settings)

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        guide: tuple,
        shift: Any,
        judge: tuple,
        settings: dict[str, Any],
        trials: int,
        minutes: float,
        over: str,
        seed: int,
        filename_prefix: str,
        layers: dict[str, Any] | None = None,
        similarity_networks: tuple = (None, None),
        options: dict[str, Any] | None = None,
    ) -> Any:
        search = SearchConfig(trials, minutes, tuple(over.replace(",", " ").split()))
        config = training_config(generator, settings, seed, layers, options)
        paths = numbered_paths(filename_prefix, ".json", "recipes")
        found, strips = _search((generator, guide, shift), single_judge(judge), similarity_networks, config, search)
        recipe, plot = found.recipe(), to_image(found.plot())
        notes = {"score": found.best().value, "trials": len(found.trials())}
        path = create_atomically(paths, lambda path: save_recipe(recipe, path, notes))
        table = f"{found.describe()}\nSaved: {path.relative_to(output_folder().parent.parent)}"
        send_text(table)
        return io.NodeOutput(_options(found), table, plot, strips, ui=ui.PreviewImage(plot, cls=cls))


def _search_inputs() -> list[Any]:
    about = {item.name: item for item in describe(SearchConfig)}
    names = ", ".join(about["over"].choices or ())
    return [
        io.Int.Input(
            "trials",
            default=20,
            min=1,
            max=10_000,
            step=1,
            tooltip="The search ends after so many trials. Raise it and run again to continue.",
        ),
        io.Float.Input(
            "minutes",
            default=0.0,
            min=0.0,
            max=100_000.0,
            step=1.0,
            round=0.01,
            tooltip="No trial starts after so many minutes. 0: no limit.",
        ),
        io.String.Input(
            "over",
            default=" ".join(about["over"].default),
            tooltip=f"The settings to search, separated by spaces; layers: which layers are trained. All: {names}.",
        ),
    ]


def _search(
    inputs: tuple[Any, ...], judge: Any, networks: tuple[Any, ...], config: AdaptConfig, search: SearchConfig
) -> tuple[FoundSettings, torch.Tensor]:
    """Run or continue the search; return it and an IMAGE with the strips of its trials."""
    generator, guide, shift = inputs
    name = run_fingerprint(*inputs, config, judge, *networks)
    folder = output_folder() / "searches" / "-".join([name, *search.over])
    tick, last = watch(_UNITS * search.trials), 0

    def on_step(at: Progress) -> None:
        nonlocal last
        done = (at.step.index + 1) / at.step.steps
        last = int(_UNITS * (at.finished + done))
        tick(last)
        if at.step.index % max(1, at.step.steps // 20) == 0:
            best = [] if at.best is None else [f"best score {at.best:+.4f}"]
            place = f"trial {at.finished + 1}/{at.trials}", f"step {at.step.index + 1}/{at.step.steps}"
            send_text(" · ".join([*place, f"loss {at.step.loss:.3f}", *best]))

    with for_training(generator, guide, judge, *networks) as (source, guides, held_out, *others):
        places = folder / "study.journal", folder
        found = find_settings(
            source,
            guides,
            shift,
            held_out,
            config,
            search,
            *places,
            *others,
            on_step=on_step,
            on_wait=lambda: tick(last),
        )
    strips = [strip_path(folder, trial.number) for trial in found.trials()]
    return found, to_image(torch.cat([load_image(path) for path in strips if path.is_file()]))


def _options(found: FoundSettings) -> dict[str, Any]:
    """The settings that were found, as changes to those of the generator's file."""
    config = found.config()
    changed = changed_fields(found.own, config)
    terms = {**dict.fromkeys(found.own.terms, 0.0), **config.terms}
    return {**changed, "terms": terms} if "terms" in changed else changed
