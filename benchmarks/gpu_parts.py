"""The measurements of `benchmarks.gpu`, one function a row."""

from __future__ import annotations

import copy
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.naive import NaiveTraining
from benchmarks.speed import SHIFT, Case, Counter, random_generator, random_guide
from nada_core import AdaptConfig, ClipGuide, LayerChoice, Step, adapt
from nada_core.cli.profile import measure
from nada_core.models.stylegan2 import StyleGAN2
from nada_core.runtime.lending import copy_to, lend
from nada_core.runtime.precision import PRECISIONS, tf32

Row = dict[str, Any]

_WARM = 2  # steps before the timed ones; the operations of the second are counted
_LONGEST_RUN = 150.0  # seconds of the run from end to end


class OutOfTimeError(Exception):
    """No time is left for a row."""


@dataclass(frozen=True)
class Setup:
    resolution: int
    guides: int
    selection: str  # "off", or "real": two thirds of the layers are chosen in each step

    @property
    def name(self) -> str:
        return f"{self.resolution} px, CLIP models: {self.guides}, selection {self.selection}"


@dataclass(frozen=True)
class Sizes:
    """How large the networks are, and how long is measured.

    architectures: CLIP models of open_clip. voters: latents of the layer selection. ceilings: limits of the memory in
    GB. matrix: rows and columns. maps: images, channels and pixels a side of a convolution. seconds: of one measurement
    of the throughput.
    """

    resolutions: tuple[int, ...] = (256, 512, 1024)
    architectures: tuple[str, ...] = ("ViT-B-32", "ViT-B-16")
    channel_max: int = 512
    voters: int = 8
    steps: int = 5
    run_steps: int = 300
    ceilings: tuple[int, ...] = (8, 11)
    matrix: int = 8192
    maps: tuple[int, int, int] = (8, 512, 64)
    seconds: float = 0.3

    @functools.cache  # noqa: B019, few sizes exist
    def generator(self, resolution: int) -> StyleGAN2:
        return random_generator(resolution, self.channel_max)

    def guide(self, index: int) -> ClipGuide:
        return random_guide(self.architectures[index], index)

    def layers(self, resolution: int, selection: str) -> LayerChoice:
        return Case(resolution, selection, voters=self.voters).layers

    def setups(self) -> list[Setup]:
        """Setups to measure, the most important one first."""
        return [
            Setup(resolution, count, selection)
            for count in (1, 2)
            for selection in ("off", "real")
            for resolution in reversed(self.resolutions)
        ]


class ToySizes(Sizes):
    def setups(self) -> list[Setup]:
        first, *_, last = super().setups()
        return [first, last]

    def guide(self, index: int) -> ClipGuide:
        import open_clip

        torch.manual_seed(index)
        vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        model = open_clip.CLIP(16, vision_cfg=vision, text_cfg=text)
        model.visual.image_mean = model.visual.image_std = (0.5, 0.5, 0.5)
        return ClipGuide(f"toy-{index}", model, open_clip.get_tokenizer("ViT-B-32"), 16)


REAL = Sizes()
TOY = ToySizes((16, 32), ("toy", "toy"), 8, 2, 1, 3, (1,), 32, (1, 8, 8), 0.0)


@dataclass(frozen=True)
class Side:
    """One way to run the generators; the plain implementation runs beside some."""

    name: str
    precision: str
    channels_last: bool = False
    beside_naive: bool = False


SIDES = (
    Side("fp32", "fp32", beside_naive=True),
    Side("tf32", "tf32", beside_naive=True),
    Side("bf16", "bf16"),
    Side("fp16", "fp16"),
    Side("tf32, channels last", "tf32", channels_last=True),
    Side("bf16, channels last", "bf16", channels_last=True),
)


# ---- the device ---------------------------------------------------------------------------------------------------


def card(device: torch.device) -> Row:
    """Describe the device and the versions."""
    versions = {"torch": torch.__version__, "python": platform.python_version(), "system": platform.system()}
    if device.type != "cuda":
        return {"name": "CPU", **versions}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes of all tensors on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_allocated(device: torch.device) -> int:
    """Bytes of all tensors at their peak since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def throughput(precision: str, sizes: Sizes, device: torch.device) -> Row:
    """Operations per second of a large matrix product and of a 3x3 convolution in the faster memory format."""
    dtype, (count, channels, side) = PRECISIONS[precision], sizes.maps
    with tf32(precision == "tf32"), torch.no_grad():
        a = torch.randn(sizes.matrix, sizes.matrix, device=device).to(dtype)
        matmul = 2 * sizes.matrix**3 / _seconds(lambda: a @ a, device, sizes.seconds)
        maps = torch.randn(count, channels, side, side, device=device).to(dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
        operations, best = 18 * count * channels**2 * side**2, 0.0
        for memory in (torch.contiguous_format, torch.channels_last):
            x, w = (tensor.contiguous(memory_format=memory) for tensor in (maps, weight))
            best = max(best, operations / _seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1), device, sizes.seconds))
    return {"matmul": matmul, "conv": best}


def _seconds(function: Callable[[], object], device: torch.device, least: float) -> float:
    """Mean seconds of a call, over at least three calls and `least` seconds."""
    for _ in range(2):
        function()
    synchronize(device)
    start, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < least:
        for _ in range(3):  # several at once, so that the GPU does not wait for the CPU
            function()
        calls += 3
        synchronize(device)
    return (time.perf_counter() - start) / calls


# ---- parity with the CPU ------------------------------------------------------------------------------------------


@torch.no_grad()
def pictures(generator: StyleGAN2, device: torch.device) -> Row:
    """Errors of two images in float32, exact and with TF32, on -1..1 and relative to their standard deviation."""
    rng = torch.Generator().manual_seed(1)
    ws, noise = generator.map(torch.randn(2, generator.z_dim, generator=rng)), generator.draw_noise(2, rng)
    with tf32(False):
        expected = generator.synthesize(ws, noise)
    moved = copy_to(generator, device)
    row: Row = {"goal": 1e-4}
    for name, allowed in (("", False), ("_tf32", True)):
        with tf32(allowed):
            images = moved.synthesize(ws.to(device), [maps.to(device) for maps in noise]).cpu()
        error = (images - expected).abs()
        row |= {f"largest{name}": error.max().item(), f"mean{name}": (error.mean() / expected.std()).item()}
    return row | {"met": row["largest"] <= row["goal"]}


def steps_parity(generator: StyleGAN2, guide: ClipGuide, device: torch.device) -> Row:
    """Differences between five steps on the CPU and on the device, with the same latents and constant noise."""
    config = AdaptConfig(steps=5, noise="const")
    here, there = (
        adapt(copy_to(generator, place), copy_to(guide, place), SHIFT, config)
        for place in (torch.device("cpu"), device)
    )
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(here.history, there.history, strict=True)]
    changes = [torch.cat([change.flatten() for change in one.domain.changes.values()]) for one in (here, there)]
    distance = ((changes[0] - changes[1]).norm() / changes[0].norm()).item()
    return {"loss": max(losses), "weights": distance, "goal": 1e-3, "met": max(losses) <= 1e-3}


# ---- steps --------------------------------------------------------------------------------------------------------


class Meter:
    """Called after every step of a run: its seconds and memory, and those of a step of the plain implementation, which
    it then runs. Memory is what one side alone needs; the CLIP models and the source belong to both."""

    def __init__(self, device: torch.device, deadline: float, counter: Counter | None = None) -> None:
        self.device, self.deadline, self.counter = device, deadline, counter
        self.counting = ExitStack()  # open during the second step
        self.naive: Callable[[], object] | None = None
        self.seconds: list[float] = []
        self.naive_seconds: list[float] = []
        self.peak = self.naive_peak = self.naive_own = 0
        self.shared, self.last = allocated(device), 0.0

    def add_naive(self, build: Callable[[], Callable[[], object]]) -> None:
        """Build the plain implementation and run a first step; without it if it does not fit into the memory."""
        try:
            self.naive = build()
            self.naive()
        except torch.cuda.OutOfMemoryError:
            self.naive = None
        self.naive_own = allocated(self.device) - self.shared

    def start(self) -> None:
        reset_peak(self.device)
        synchronize(self.device)
        self.last = time.perf_counter()

    def __call__(self, _: Step) -> None:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.last)
        self.peak = max(self.peak, peak_allocated(self.device) - self.naive_own)
        self.counting.close()
        if self.naive is not None:
            self._run_naive(self.naive)
        if time.monotonic() > self.deadline:
            raise OutOfTimeError
        if self.counter is not None and len(self.seconds) == 1:
            self.counting.enter_context(self.counter)
        self.start()

    def _run_naive(self, step: Callable[[], object]) -> None:
        own = allocated(self.device) - self.shared - self.naive_own
        self.start()
        try:
            step()
        except torch.cuda.OutOfMemoryError:
            self.naive = None
            return
        synchronize(self.device)
        self.naive_seconds.append(time.perf_counter() - self.last)
        self.naive_peak = max(self.naive_peak, peak_allocated(self.device) - own)


def speed(
    setup: Setup,
    side: Side,
    guides: Sequence[ClipGuide],
    sizes: Sizes,
    device: torch.device,
    peaks: dict[str, float],
    deadline: float,
) -> Row:
    """Seconds, memory and share of the throughput of a step, beside the plain implementation where the side asks.

    peaks: operations per second by precision.
    """
    source = copy_to(sizes.generator(setup.resolution), device)
    if side.channels_last:
        source.to(memory_format=torch.channels_last)
    clips = [copy_to(guide, device) for guide in guides[: setup.guides]]
    layers, steps = sizes.layers(setup.resolution, setup.selection), _WARM + sizes.steps
    config = AdaptConfig(steps=steps, layers=layers, precision=side.precision)
    counter = Counter()
    meter = Meter(device, deadline, counter)
    with tf32(side.precision == "tf32"), meter.counting:
        if side.beside_naive:
            meter.add_naive(lambda: NaiveTraining(source, clips, SHIFT, config).step)
        meter.start()
        try:
            adapt(source, clips, SHIFT, config, on_step=meter)
        except OutOfTimeError:
            if len(meter.seconds) <= _WARM:
                raise
    seconds = statistics.median(meter.seconds[_WARM:])
    row: Row = {"seconds": seconds, "memory": meter.peak, "operations": counter.flops}
    if peaks.get(side.precision):
        row["share"] = counter.flops / seconds / peaks[side.precision]
    if side.beside_naive and not meter.naive_seconds:
        row["naive"] = "out of memory"
    elif meter.naive_seconds:
        naive = statistics.median(meter.naive_seconds[1:] or meter.naive_seconds)
        row |= {"naive_seconds": naive, "naive_memory": meter.naive_peak, "ratio": naive / seconds}
    return row


def parts(setup: Setup, guide: ClipGuide, sizes: Sizes, device: torch.device) -> Row:
    """Seconds of the parts of a step; marking them keeps the CPU from running ahead, so their sum is an upper bound."""
    source, clip = copy_to(sizes.generator(setup.resolution), device), copy_to(guide, device)
    config = AdaptConfig(steps=_WARM + sizes.steps, layers=sizes.layers(setup.resolution, setup.selection))
    return {"parts": measure(source, clip, SHIFT, config, warm=_WARM).parts}


def run(guide: ClipGuide, sizes: Sizes, device: torch.device, deadline: float) -> Row:
    """Time a whole run at the largest resolution, from the call to the result."""
    source, clip = copy_to(sizes.generator(sizes.resolutions[-1]), device), copy_to(guide, device)
    config = AdaptConfig(steps=sizes.run_steps)
    reset_peak(device)
    start, last = time.perf_counter(), min(deadline, time.monotonic() + _LONGEST_RUN)
    result = adapt(source, clip, SHIFT, config, stop=lambda: time.monotonic() > last)
    synchronize(device)
    seconds, losses = time.perf_counter() - start, [step["loss"] for step in result.history]
    return {
        "steps": len(losses),
        "seconds": seconds,
        "memory": peak_allocated(device),
        "losses": [losses[0], losses[-1]],
    }


def ceiling(guide: ClipGuide, sizes: Sizes, device: torch.device, gigabytes: int, batch: int, deadline: float) -> Row:
    """Train with limited memory; on a CPU, as if one latent fitted. Returns how many latents passed at a time."""
    limit = gigabytes * 10**9
    if device.type == "cuda" and limit > torch.cuda.get_device_properties(device).total_memory:
        return {"skipped": "the card has less memory"}
    source, clip = copy_to(sizes.generator(sizes.resolutions[-1]), device), copy_to(guide, device)
    chunks: list[int] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        chunks.append(len(inputs[0]))
        if device.type != "cuda" and chunks[-1] > 1:
            raise torch.cuda.OutOfMemoryError("More than one latent.")

    source.synthesis.register_forward_pre_hook(watch)
    meter = Meter(device, deadline)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        meter.start()
        adapt(source, clip, SHIFT, AdaptConfig(steps=1 + sizes.steps, batch=batch), on_step=meter)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return {"latents": chunks[-1], "seconds": statistics.median(meter.seconds[1:]), "memory": meter.peak}


def lending(generator: StyleGAN2, guide: ClipGuide, device: torch.device) -> Row:
    """Copy networks to the device, train, and free the copies, as the nodes do. Returns the bytes that are left."""
    before = copy.deepcopy(generator.state_dict())
    free, start = allocated(device), time.perf_counter()
    with lend((generator, guide), device) as (source, clip):
        synchronize(device)
        seconds, lent = time.perf_counter() - start, allocated(device) - free
        result = adapt(source, clip, SHIFT, AdaptConfig(steps=3))
        result.generator.cpu()
    left = allocated(device) - free
    same = all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    return {"seconds": seconds, "lent": lent, "left": left, "unchanged": same, "goal": 0, "met": left == 0 and same}
