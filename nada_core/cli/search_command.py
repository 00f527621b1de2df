"""The command that finds settings for adapt: search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from ..adaptation.recipes import save_recipe
from ..adaptation.search import Progress, find_settings
from ..adaptation.search_space import SearchConfig
from ..io.images import save_image
from ..models.checkpoints import load_generator
from ..models.clip_loading import load_guide
from . import report
from .arguments import Text, flag, required
from .progress import device_of, output_path, prepare, progress, say
from .training_flags import TrainingFlags


@dataclass(frozen=True, kw_only=True)
class Search(TrainingFlags):
    """Find settings for adapt by trials that a held-out CLIP model measures, and write them as a recipe file.

    The first trial has the settings of --recipe and the flags. Needs the package optuna.

    example:
      python -m nada_core search portraits --target zombie --trials 30 --out zombie.json
      python -m nada_core adapt portraits --target zombie --recipe zombie.json --out out
    """

    judge: Text = flag(None, "the held-out CLIP model (default: that stored in the generator's file)")
    out: str = required("the recipe to write, .json; a plot, images and the study are written to its folder")
    storage: Text = flag(
        None,
        "where the study is stored: a journal file, or the URL of a database such as sqlite:///study.db; workers with "
        "the same flags share it (default: a journal file beside OUT)",
    )
    resume: FlagCreatePairsOff[bool] = flag(False, "continue the study of an earlier or another command")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite an earlier result")
    search: Annotated[SearchConfig, arg(name="search")] = SearchConfig()

    def run(self) -> None:
        path, device = output_path(self.out, ".json"), device_of(self.machine.device)
        plot, strips = path.with_name(f"{path.stem}-search.png"), path.with_name(f"{path.stem}-trials")
        own = path.with_name(f"{path.stem}-study.journal")
        storage = self.storage or own
        prepare(path, plot, *([] if self.storage else [own]), force=self.force or self.resume)
        self.check()
        if not (judged_by := self.judge or self.stored_judge):
            raise ValueError(
                "--judge is missing: the generator's file names no held-out CLIP model; try ViT-L-14:openai."
            )
        source = load_generator(self.generator).to(device)
        if (shift := self.shift(source.resolution)) is None:
            raise ValueError("Got none of --target and --image, expected a text or images.")
        guides, judge = self.load_guides(device), load_guide(judged_by, device=device)
        networks = self.load_networks(device)
        if not self.storage and not self.resume:
            own.unlink(missing_ok=True)

        try:
            with progress(self.search.trials, "trial") as tick:
                inputs = (source, guides, shift, judge, self.config, self.search, storage, strips)
                found = find_settings(*inputs, *networks, on_step=lambda step: tick(step.finished + 1, _describe(step)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped. Continue the study in {storage} with --resume.") from None
        best = found.best()
        notes = {"score": best.value, "judge": judge.name, "trial": best.number, "trials": len(found.trials())}
        files = [save_recipe(found.recipe(), path, notes), save_image(found.plot(), plot)]
        say(found.describe(), report.listing([*files, strips]))


def _describe(at: Progress) -> str:
    best = "" if at.best is None else f", best score {at.best:+.4f}"
    return f"step {at.step.index + 1}/{at.step.steps}, loss {at.step.loss:.3f}{best}"
