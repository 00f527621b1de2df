"""Measure the time and memory of a training step, compared with the plain implementation in `benchmarks/naive.py`.

    python -m benchmarks.speed                            under 5 minutes on a quiet machine; writes docs/speed.md
    python -m benchmarks.speed --full                     all cases, about an hour
    python -m benchmarks.speed --cases 64-off 256-real    some cases
    python -m benchmarks.speed --resolution 128 --select real --guides 2 --precision bf16    a case of your own
    python -m benchmarks.speed --growth                   time over batch size, memory over steps

The weights are random: StyleGAN2 config F and CLIP models of the architecture ViT-B/32 or another. Each side of a case
runs in its own process, so that its peak memory can be measured. The sides run alternately, step by step. The figure is
the median CPU time of a step on one thread, because other processes disturb it less than wall time. The first step is
not timed; its floating-point operations are counted. The short run measures two cases, on processors with AVX-512 also
limited to AVX2, and the wall time beside a busy process. The native convolution is compiled for each into out/. Rows
of --full and --cases are stored there and reused; delete them to measure again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.busy import neighbor
from benchmarks.endurance import memory
from benchmarks.naive import NaiveGenerator, NaiveTraining
from benchmarks.processor import capability, instruction_sets, load, matmul_peak, measured_peak, model, vectors
from benchmarks.speed_page import FULL_COLUMNS, SHORT_COLUMNS, head, merged, row, stored, write
from nada_core import AdaptConfig, ClipGuide, LayerChoice, TextShift, load_generator, load_guide
from nada_core.cli.profile import PARTS, Stopwatch, measure, peak_memory
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.portraits import GUIDES, RECIPE
from nada_core.runtime.precision import PRECISIONS, arithmetic

SHIFT = TextShift("photo", "sketch", ("a {} of a face",))


@dataclass(frozen=True)
class Side:
    """One implementation to measure, in a process of its own.

    native: use the native convolution of `nada_core.models.ops` where it was built. pool: number of latent batches that
    are reused. `naive` supports neither; it is the baseline.
    """

    name: str
    precision: str = "fp32"
    native: bool = True
    pool: int = 0


NAIVE, OURS, TORCH, BF16 = Side("naive"), Side("fp32"), Side("fp32, torch alone", native=False), Side("bf16", "bf16")
POOL = Side("fp32, known latents", pool=1)


@dataclass(frozen=True)
class Case:
    """One training setup.

    select: "off"; "real", two thirds of the layers are chosen in each step; "all", the selection chooses every layer.
    voters: latents of the layer selection; batch 2 with 8 voters are the settings of the first implementation.
    steps: timed steps. goal: the minimum ratio and the desired one.
    """

    resolution: int
    select: str
    guides: int = 1
    batch: int = 2
    voters: int = 8
    steps: int = 3
    sides: tuple[Side, ...] = (OURS, TORCH)
    goal: str = "-"
    world: bool = False  # use the built-in generator and guides instead of random weights

    @property
    def layers(self) -> LayerChoice:
        if self.select == "off":
            return LayerChoice(mode="all")
        rows = 2 * self.resolution.bit_length() - 4  # all but the last have a layer to choose
        count = 2 * rows // 3 if self.select == "real" else rows - 1
        return LayerChoice(mode="adaptive", batch=self.voters, count=count)


CASES: dict[str, Case] = {
    "world": Case(64, "off", guides=2, batch=4, steps=20, world=True, sides=(OURS, POOL)),
    "64-off": Case(64, "off", steps=5),
    "64-real": Case(64, "real", steps=5),
    "128-off": Case(128, "off"),
    "256-off": Case(256, "off", sides=(OURS, TORCH, BF16, POOL), goal="2.5, 3.5 (bf16: 4, 5.5)"),
    "256-real": Case(256, "real", guides=2, steps=1, goal="4, 6"),
    "256-all": Case(256, "all", guides=2, steps=1, goal="9, 14"),
    "256-real-4": Case(256, "real", voters=4, steps=1),
    "512-off": Case(512, "off", steps=1),
    # Fewer sides, because they share the memory of the machine.
    "1024-off": Case(1024, "off", guides=2, steps=1, sides=(OURS,), goal="4, 6"),
    "1024-off-1": Case(1024, "off", batch=1, steps=1),
}


SHORT_CASES = (
    replace(CASES["world"], steps=10, sides=(OURS,)),
    replace(CASES["256-off"], steps=1, sides=(OURS, TORCH)),
)


@dataclass(frozen=True)
class Run:
    """The measurement of one side: seconds of each part of the timed steps, images [2, 3, R, R] of shared latents."""

    steps: list[dict[str, float]]
    images: Tensor
    flops: float  # of one step
    peak: int

    @property
    def seconds(self) -> float:
        return statistics.median(sum(step.values()) for step in self.steps)

    def part(self, name: str) -> float:
        return statistics.median(step[name] for step in self.steps)


class Counter(TorchDispatchMode):
    """Count floating-point operations with torch's table. torch's FlopCounterMode does not support autograd.grad."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        elif func.namespace == "nada_winograd":  # counted as a direct convolution, which needs four times as many
            x, other = args[:2]
            self.flops += 18 * x.numel() * (out if func.overloadpacket.__name__ == "convolve" else other).shape[1]
        return out


def shift_parts(case: Case, architecture: str) -> tuple[StyleGAN2, list[ClipGuide], AdaptConfig]:
    """Build the generator, the CLIP models and the settings of a case, with the same weights in every process."""
    config = AdaptConfig(steps=100_000, batch=case.batch, layers=case.layers)
    if case.world:
        named = load_generator("portraits")
        assert isinstance(named, StyleGAN2)
        return named, [load_guide(name) for name, _ in GUIDES[: case.guides]], config
    return random_generator(case.resolution), [random_guide(architecture, i) for i in range(case.guides)], config


def random_generator(resolution: int, channel_max: int = 512) -> StyleGAN2:
    """Return StyleGAN2 of configuration F with random weights, always the same, and visible noise."""
    generator = StyleGAN2(resolution, channel_max=channel_max, rng=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in generator.synthesis.blocks():
            for _, conv in block.convolutions():
                conv.noise_strength.fill_(0.1)
    return generator


def random_guide(architecture: str, index: int) -> ClipGuide:
    """Return a CLIP model of this architecture with random weights, always the same for an index."""
    import open_clip

    torch.manual_seed(index)
    model = open_clip.create_model(architecture, pretrained=None)
    dim = open_clip.get_model_config(architecture)["embed_dim"]
    return ClipGuide(f"random-{index}", model, open_clip.get_tokenizer(architecture), dim)


def work(side: Side, case: Case, architecture: str, link: Connection) -> None:
    """Body of a side's process: send its images, then the times of one step per request, at last its peak memory."""
    torch.set_num_threads(1)
    if not side.native:
        os.environ["NADA_NATIVE"] = "0"
    generator, guides, config = shift_parts(case, architecture)
    config = replace(config, precision=side.precision, pool=side.pool)
    rng, counter = torch.Generator().manual_seed(1), Counter()
    with torch.no_grad():
        ws, noise = generator.map(torch.randn(2, generator.z_dim, generator=rng)), generator.draw_noise(2, rng)
        if side == NAIVE:
            link.send(NaiveGenerator(generator)(ws, noise).numpy())
        else:
            with arithmetic(side.precision, ws.device):
                link.send(generator.synthesize(ws, noise).numpy())
    counted = False

    def answer(lap: dict[str, float]) -> None:
        nonlocal counted
        if not counted:  # the first step was run under the counter
            counter.__exit__(None, None, None)
            counted = True
        link.send(lap)
        if not link.recv():
            raise EOFError

    link.recv()
    counter.__enter__()
    try:
        if side == NAIVE:
            training, watch = NaiveTraining(generator, guides, SHIFT, config), Stopwatch(ws.device, time.process_time)
            while True:
                training.step(watch.mark)
                answer(watch.lap())
                watch.lap()
        else:
            measure(generator, guides, SHIFT, config, clock=time.process_time, on_step=answer)
    except EOFError:
        link.send((counter.flops, peak_memory(ws.device)))


def compare(case: Case, architecture: str) -> dict[Side, Run]:
    """Measure all sides of a case, alternating step by step."""
    context = get_context("spawn")
    links: dict[Side, Any] = {}
    images: dict[Side, Tensor] = {}
    laps: dict[Side, list[dict[str, float]]] = {}
    for side in (NAIVE, *case.sides):
        links[side], theirs = context.Pipe()
        context.Process(target=work, args=(side, case, architecture, theirs), daemon=True).start()
        images[side], laps[side] = torch.from_numpy(links[side].recv()), []
    for index in range(case.steps + 1):
        for side, link in links.items():
            link.send(True)
            lap = link.recv()
            if index:
                laps[side].append(lap)
            sys.stderr.write(f"{case.resolution} {case.select}: {side.name}, step {index}: {sum(lap.values()):.2f} s\n")
    runs = {}
    for side, link in links.items():
        link.send(False)
        runs[side] = Run(laps[side], images[side], *link.recv())
    return runs


def label(case: Case) -> str:
    voters = f" by {case.voters}" if case.select == "real" else ""
    where = "built-in world" if case.world else f"{case.resolution} px"
    return f"{where}, batch {case.batch}, selection {case.select}{voters}, guides: {case.guides}"


def rows(case: Case, runs: dict[Side, Run], peak: float) -> Iterator[str]:
    """One row of the table of all cases for each side."""
    naive = runs[NAIVE]
    for side, run in runs.items():
        ratio, error = naive.seconds / run.seconds, (run.images - naive.images).abs()
        yield row(
            (
                label(case),
                f"{model()}, {capability()}",
                side.name,
                f"{run.seconds:.2f} s",
                "1" if side == NAIVE else f"{ratio:.1f}x",
                case.goal if side != NAIVE else "-",
                f"{error.max():.1e} ({error.mean() / naive.images.std():.1e})",
                f"{run.peak / 2**30:.1f} GiB",
                f"{run.flops / 1e9:.0f}",
                f"{run.flops / run.seconds / peak:.0%}",  # of float32 in all rows; bf16 has a higher one
                ", ".join(f"{part} {run.part(part):.2f}" for part in PARTS),
            )
        )


def short(architecture: str, libraries: Path) -> Iterator[str]:
    """Describe the processor, and compare with the naive side for each vector extension and beside a busy process."""
    machine = f"{model()}, {capability()}, {os.cpu_count()} processors, {load()} at the start"
    yield f"`python -m benchmarks.speed` on {machine}.\n"
    table, peaks = [head(SHORT_COLUMNS)], []
    for name in instruction_sets():
        with vectors(name, libraries):
            peak = measured_peak()
            peaks.append(f"{name} {peak / 1e9:.0f} GFLOP/s")
            for case in SHORT_CASES:
                runs = compare(case, architecture)
                for side, run in runs.items():
                    ratio = "1" if side == NAIVE else f"{runs[NAIVE].seconds / run.seconds:.1f}x"
                    share = f"{run.flops / run.seconds / peak:.0%}"
                    table.append(row((label(case), name, side.name, f"{run.seconds:.2f} s", ratio, share)))
    yield "\n".join(table) + "\n"
    yield (
        "Share of peak: relative to the faster one of PyTorch's 2048 x 2048 matrix product and its 3x3 convolution of "
        f"512 channels at 64 x 64 pixels, float32, one thread: {', '.join(peaks)}.\n"
    )
    yield neighbor()


def growth(steps: int) -> Iterator[str]:
    """Built-in generator: seconds per step over the batch size, resident memory over the number of steps."""
    generator, guide, shift = load_generator("portraits"), load_guide("portraits"), TextShift("photo", "joker")
    yield "| batch | CPU time per step | per latent |"
    yield "|---|---|---|"
    for batch in (1, 2, 4, 8, 16):
        config = replace(RECIPE, steps=12, batch=batch, layers=LayerChoice())
        laps = measure(generator, guide, shift, config, clock=time.process_time).steps
        seconds = statistics.median(sum(lap.values()) for lap in laps)
        yield f"| {batch} | {seconds * 1e3:.0f} ms | {seconds * 1e3 / batch:.1f} ms |"
    yield ""
    yield from memory(steps)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="measure all cases")
    parser.add_argument("--cases", nargs="+", default=[], choices=tuple(CASES), help="measure some of them")
    parser.add_argument("--guide", default="ViT-B-32", help="architecture of the CLIP models (%(default)s)")
    parser.add_argument("--resolution", type=int, help="measure a case of your own instead")
    parser.add_argument("--select", default="off", choices=("off", "real", "all"))
    parser.add_argument("--guides", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=tuple(PRECISIONS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--voters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a case of your own (%(default)s)")
    parser.add_argument(
        "--growth",
        type=int,
        nargs="?",
        const=1000,
        metavar="STEPS",
        help="measure only time over batch size and memory over steps (%(const)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of speed.md (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("out/speed"), help="folder of the stored rows (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.growth:
        for line in growth(args.growth):
            sys.stdout.write(line + "\n")
        return
    if args.resolution:
        side = Side(args.precision, args.precision)
        case = Case(args.resolution, args.select, args.guides, args.batch, args.voters, args.steps, (side,))
        lines = rows(case, compare(case, args.guide), matmul_peak())
        sys.stdout.write("\n".join([head(FULL_COLUMNS), *lines]) + "\n")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    section, table = stored(args.out / "speed.md")
    names = list(CASES) if args.full else args.cases
    if not names:
        section = "\n".join(_printed(short(args.guide, args.runs))).strip()
    for name in names:
        with vectors(capability(), args.runs):
            table = merged(table, list(_printed(_stored_rows(args.runs / f"{name}.md", CASES[name], args.guide))))
    write(args.out / "speed.md", section, table)


def _stored_rows(path: Path, case: Case, architecture: str) -> list[str]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = rows(case, compare(case, architecture), matmul_peak())
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").splitlines()


def _printed(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        yield line


if __name__ == "__main__":
    main()
