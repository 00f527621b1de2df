"""The command that turns a snapshot of a run into a generator: pick (StyleGAN-NADA, arXiv:2108.00946)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from .. import __version__
from ..adaptation.snapshots import (
    best_step,
    check_source,
    describe_snapshots,
    find_snapshots,
    judge_snapshots,
    pick_snapshot,
)
from ..guidance.shifts import TextShift
from ..models.checkpoints import load_generator, save_generator
from ..models.clip_loading import load_guide
from ..models.domain import Domain
from . import report
from .arguments import Command, GeneratorName, Text, Whole, flag, required
from .progress import device_of, output_path, prepare, say


@dataclass(frozen=True, kw_only=True)
class Pick(Command):
    """Turn a snapshot of `adapt --snapshot-every` into a generator file: that of a step, or the best by a judge.

    example:
      python -m nada_core pick portraits out/zombie-snapshots --step 200 --out out/zombie-200.safetensors
      python -m nada_core pick portraits out/zombie-snapshots --judge portraits-64 --out out/zombie-best.safetensors
    """

    generator: GeneratorName
    snapshots: Positional[Annotated[str, arg(metavar="FOLDER")]] = required("the folder of snapshots that adapt wrote")
    step: Whole = flag(None, "step of the snapshot (default: the last)")
    judge: Text = flag(None, "a held-out CLIP model that scores the snapshots, to take the best; for runs by text")
    out: str = required("the generator to write, .safetensors")
    force: FlagCreatePairsOff[bool] = flag(False, "overwrite OUT")

    def run(self) -> None:
        if self.step is not None and self.judge:
            raise ValueError("Got --step and --judge, expected one of them.")
        path, device = output_path(self.out, ".safetensors"), device_of(self.machine.device)
        prepare(path, force=self.force)
        snapshots = find_snapshots(self.snapshots)
        source = load_generator(self.generator)
        check_source(source, snapshots)
        chosen = pick_snapshot(snapshots, -1 if self.step is None else self.step)
        if self.judge:
            judge, shift = load_guide(self.judge, device=device), _text_of(chosen.read())
            candidates = judge_snapshots(source.to(device), snapshots, judge, shift)
            chosen = pick_snapshot(snapshots, best_step(candidates))
            say(describe_snapshots(snapshots, candidates))
        domain = chosen.read()
        origin = {"source": {"name": Path(self.generator).name, **domain.provenance["source"]}, "version": __version__}
        save_generator(domain.apply(source.cpu()), path, {**domain.provenance, **origin})
        say(f"step {chosen.step}", report.listing([path]))


def _text_of(domain: Domain) -> TextShift:
    prompts = domain.provenance.get("prompts")
    if not prompts:
        raise ValueError("--judge needs a run by text alone; this one used images. Choose by --step.")
    return TextShift(**{**prompts, **({"templates": tuple(prompts["templates"])} if "templates" in prompts else {})})


def prepare_snapshots(folder: Path, force: bool) -> None:
    """Refuse a folder with snapshots of an earlier run, or remove them with `force`."""
    earlier = find_snapshots(folder)
    if earlier and not force:
        raise FileExistsError(f"{folder} holds snapshots of an earlier run; name another OUT, or replace with --force.")
    for snapshot in earlier:
        snapshot.path.unlink()
