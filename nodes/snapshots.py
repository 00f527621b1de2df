"""Pick Snapshot: choose the result of a training among its snapshots (StyleGAN-NADA, arXiv:2108.00946)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nada_core import Latents, Snapshot, filmstrip, pick_snapshot, render
from ..nada_core.adaptation.snapshots import best_step, describe_snapshots, snapshot_judge
from ..nada_core.adaptation.validation import Candidate
from ._host import for_training, io, normal_mode, to_image, ui
from ._server import send_text, watch
from ._types import ROOT, DomainType, GeneratorType, GuideType, LatentsType, ShiftType, SnapshotsType
from .adapt import single_judge

BY_STEP, BY_JUDGE = "by step", "by judge"
SHOWN = 16  # latents in the filmstrip


class PickSnapshot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="StyleGANNADA_PickSnapshot",
            display_name="Pick Snapshot",
            category=f"{ROOT}/train",
            description="Shows the same latents at every snapshot of a training, and returns the generator of one: by "
            "its step, or the best by a judge. Train past the desired point, then pick.",
            search_aliases=["filmstrip", "checkpoint", "early stopping", "overtraining", "choose step", "timeline"],
            is_output_node=True,
            inputs=[
                GeneratorType.Input("generator", tooltip="The source generator, as connected to Adapt Generator."),
                SnapshotsType.Input("snapshots", tooltip="From Adapt Generator with snapshot_every above 0."),
                LatentsType.Input(
                    "latents", tooltip=f"The latents to draw, one row each; the filmstrip shows the first {SHOWN}."
                ),
                _pick_input(),
                GuideType.Input(
                    "judge",
                    optional=True,
                    tooltip="A held-out CLIP guide that is not one of the training guides. It scores every snapshot as "
                    "in Adapt Generator; figures lists the scores.",
                ),
                ShiftType.Input("shift", optional=True, tooltip="Needed with a judge: the direction of the training."),
            ],
            outputs=[
                GeneratorType.Output(
                    "generator", display_name="adapted", tooltip="The generator at the step that was picked."
                ),
                DomainType.Output(
                    "domain",
                    display_name="domain",
                    tooltip="Its weight changes, for Save StyleGAN Domain or Apply StyleGAN Domain.",
                ),
                io.Image.Output(
                    "filmstrip",
                    display_name="filmstrip",
                    tooltip="One row for each latent, one column for each snapshot; the source generator comes first.",
                ),
                io.String.Output(
                    "figures",
                    display_name="figures",
                    tooltip="The loss of each snapshot and, with a judge, its score, quality, direction and diversity.",
                ),
            ],
        )

    @classmethod
    @normal_mode()
    def execute(
        cls,
        generator: Any,
        snapshots: tuple[Snapshot, ...],
        latents: Latents,
        pick: dict[str, Any],
        judge: tuple = ((None, 1.0),),
        shift: Any = None,
    ) -> Any:
        step, held_out = pick.get("step"), single_judge(judge)
        if (shift if held_out else step) is None:
            raise ValueError("Got no judge, or a judge without a shift; connect both, or neither and pick by step.")
        chosen = None if step is None else pick_snapshot(snapshots, step)
        strip, candidates = _examine(generator, snapshots, latents[:SHOWN], held_out, shift)
        chosen = chosen or pick_snapshot(snapshots, best_step(candidates))
        domain, sheet = chosen.read(), to_image(strip)
        send_text(describe_snapshots([chosen], candidates))
        figures = describe_snapshots(snapshots, candidates)
        return io.NodeOutput(domain.apply(generator), domain, sheet, figures, ui=ui.PreviewImage(sheet, cls=cls))


def _pick_input() -> Any:
    step = io.Int.Input(
        "step",
        default=-1,
        min=-1,
        max=100_000,
        step=1,
        tooltip="Step of the snapshot, as in the filmstrip. -1: the last.",
    )
    return io.DynamicCombo.Input(
        "pick",
        options=[io.DynamicCombo.Option(BY_STEP, [step]), io.DynamicCombo.Option(BY_JUDGE, [])],
        tooltip="by step: the snapshot of this step. by judge: the one with the best score; connect judge and shift.",
    )


def _examine(
    generator: Any, snapshots: tuple[Snapshot, ...], latents: Latents, judge: Any, shift: Any
) -> tuple[Tensor, tuple[Candidate, ...]]:
    """Return the filmstrip and, with a judge, what it measures of every snapshot."""
    tick = watch((1 + len(snapshots)) * len(latents) + len(snapshots) * (judge is not None))
    drawn, candidates = 0, []

    def draw(adapted: Any) -> Tensor:
        nonlocal drawn
        drawn += len(latents)
        return render(adapted, latents, on_batch=lambda done, _: tick(drawn + len(candidates) - len(latents) + done))

    with for_training(generator, (), judge) as (source, _, held_out):
        measure = None if held_out is None else snapshot_judge(source, snapshots, held_out, shift)

        def on_snapshot(snapshot: Snapshot, adapted: Any) -> None:
            if measure is not None:
                candidates.append(measure(snapshot, adapted))
                tick(drawn + len(candidates))

        return filmstrip(source, snapshots, draw, on_snapshot), tuple(candidates)
