"""Runs of the nodes that train: remembered, continued or begun anew, with the texts and previews on the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nada_core import Adaptation, AdaptConfig, Generator, Snapshot, Step, adapt, grid, render, sample
from ..nada_core.adaptation.adapt_to_pairs import pairs_report
from ..nada_core.adaptation.resume import saved_progress
from ..nada_core.adaptation.snapshots import check_snapshots
from ._host import for_training, to_image
from ._runs import autosave_path, recent, saved_snapshots, snapshot_folder, stoppable
from ._server import send_text
from ._status import few, watch_steps

SHOWN = 4  # latents in the live preview


def _remembered(fingerprint: str, snapshot_every: int) -> tuple[tuple[Any, ...], tuple[Snapshot, ...], Tensor] | None:
    """Return an earlier result, as `train` does, unless snapshots are missing."""
    if (result := recent.get(fingerprint)) is None:
        return None
    outputs, sheet = result
    snapshots = saved_snapshots(fingerprint, snapshot_every, len(outputs[2]["loss"]), is_over=True)
    return None if snapshots is None else (outputs, snapshots, sheet)


def _start(path: Path, config: AdaptConfig, fingerprint: str, snapshot_every: int) -> str:
    """Say on the node where the training starts and why. Return it for the text of every step; empty for a new one.

    An autosave that cannot be used is removed, also one whose earlier steps lack snapshots: the output does not depend
    on an interruption.
    """
    done, reason = int(saved_progress(path, fingerprint).get("index", 0)), ""
    if done and saved_snapshots(fingerprint, snapshot_every, done, is_over=False) is not None:
        send_text(f"Continuing after step {done}/{config.steps}")
        return f"continued after step {done}"
    if done:
        reason = f"snapshots of its first {done} steps are missing"
    elif recent.get(fingerprint):
        reason = "its snapshots are missing"
    elif path.exists():
        reason = "its autosave is damaged"
    path.unlink(missing_ok=True)
    if not reason:
        return ""
    send_text(f"Training again from the first step: {reason}")
    return f"trained again: {reason}"


def adapt_run(shift: Any, config: AdaptConfig) -> Callable[..., Adaptation]:
    """Return the run of Adapt Generator. It takes the generator, the guides, the judge, both networks, and options."""
    return lambda source, guides, judge, perceptual, identity, **options: adapt(
        source, guides, shift, config, judge=judge, perceptual=perceptual, identity=identity, **options
    )


def train(
    run: Callable[..., Adaptation],
    config: AdaptConfig,
    generator: Any,
    guide: tuple,
    others: tuple,
    fingerprint: str,
    snapshot_every: int,
) -> tuple[tuple[Any, ...], tuple[Snapshot, ...], Tensor]:
    """Return the outputs of the node but the snapshots, the snapshots, and the images before and after the training.

    A finished training is remembered. Otherwise the training continues from its autosave, if there is one.

    Args:
        run: trains, given the generator, the guides, the `others`, and the options of `adapt` by name.
        others: further networks, or None in their place.
    """
    if result := _remembered(fingerprint, snapshot_every):
        send_text(f"{config.steps} steps, remembered from an earlier run")
        return result
    path, folder = autosave_path(fingerprint), snapshot_folder(fingerprint) if snapshot_every else None
    check_snapshots(folder, snapshot_every, config.steps)
    start = _start(path, config, fingerprint, snapshot_every)
    with for_training(generator, guide, *others) as (source, guides, *networks), stoppable() as stop:
        tick, preview = watch_steps(config.steps), _preview(source, config.label)
        notes = (start,) if start else ()

        def on_step(step: Step) -> None:
            details = f"loss {step.loss:.3f}", few(step.layers), *notes
            tick(step.index + 1, lambda: preview(step.generator), *details)

        result = run(
            source,
            guides,
            *networks,
            on_step=on_step,
            autosave=path,
            resume=True,
            stop=stop,
            threads=0,
            snapshots=folder,
            snapshot_every=snapshot_every,
            fingerprint=fingerprint,
        )
        sheet = to_image(preview(result.generator))
        adapted = result.generator.cpu()
    steps, reason = len(result.history), result.chosen_because
    if stopped := result.domain.provenance.get("stopped_after"):
        reason = f"Stopped after {steps} of {config.steps} steps. {reason}".strip()
    if "pairs" in result.domain.provenance:
        reason = f"{pairs_report(result)}\n{reason}".strip()
    outputs = (adapted, result.domain, _training(result), reason)
    if not stopped:
        recent.add(fingerprint, (outputs, sheet))
        path.unlink(missing_ok=True)
    send_text(reason or f"{steps} steps, loss {result.history[-1]['loss']:.3f}")
    return outputs, result.snapshots, sheet


def _preview(source: Generator, label: int | None) -> Callable[[Generator], Tensor]:
    """Render a few latents with the source (top row) and with the generator in training (bottom row)."""
    latents = sample(source, range(SHOWN), psi=0.7, label=label)
    before = render(source, latents)
    return lambda student: grid(torch.cat([before, render(student, latents)]), columns=SHOWN)


def _training(result: Adaptation) -> dict[str, Any]:
    """A ComfyUI LOSS_MAP, which the core loss graph can plot too, plus one curve per loss and the trained layers."""
    history = result.history
    curves = {"loss": [step["loss"] for step in history]}
    terms = history[0]["terms"] if "pairs" in result.domain.provenance else result.config.terms
    if len(terms) > 1:
        curves |= {term: [step["terms"][term] for step in history] for term in terms}
    names = [layer.name for layer in result.generator.layers()]
    return {**curves, "layers": {name: [float(name in step["layers"]) for step in history] for name in names}}
