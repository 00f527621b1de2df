"""Which layers a step trains: all, named ones, or those the text moves most (StyleGAN-NADA, arXiv:2108.00946, 4.2).

Adaptive choice: random latents are spread over the rows of W+, moved a few steps towards the target text, and the rows
that moved most name the layers to train. Only d loss / d w is needed, so no weight of the generator gets a gradient.

Letters: N latents, L rows of W+, C width of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import ClipTarget, check_devices, clip_targets, source_images
from ..models.clip import ClipGuide
from ..models.generator import Generator, Layer
from ..models.low_rank import factors
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import all_reduce, shard
from ..runtime.precision import arithmetic
from .config import LayerChoice


@dataclass(frozen=True)
class Chosen:
    """The layers one step trains, and how far every row moved (empty where nothing was measured)."""

    layers: tuple[Layer, ...]
    movement: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


def candidates(choice: LayerChoice, generator: Generator) -> tuple[Layer, ...]:
    """Every layer the choice could ever train; where none are named, ToRGB layers follow when `rgb` asks for them.

    Raises ValueError for names the generator does not have.
    """
    layers = generator.layers()
    if choice.mode == "named":
        known = {layer.name: layer for layer in layers}
        unknown = [name for name in choice.names if name not in known]
        if unknown:
            raise ValueError(f"got layers {', '.join(unknown)}; this generator has {', '.join(known)}.")
        return tuple(known[name] for name in choice.names)
    ranked = _row_table(generator)
    # The constant belongs to "all" only: no row steers it, so nothing could choose it.
    const = [layer for layer in layers if layer.kind == "const" and choice.mode == "all"]
    rgb = [layer for layer in layers if layer.kind == "rgb" and choice.rgb and layer not in ranked.values()]
    return (*const, *ranked.values(), *rgb)


def choose(
    choice: LayerChoice,
    generator: Generator,
    targets: Sequence[ClipTarget],
    rng: torch.Generator,
    label: int | None = None,
    batcher: MicroBatcher | None = None,
    precision: str = "fp32",
) -> Chosen:
    """Choose the layers of the next step. label: the class of a conditional generator. batcher: see `row_movement`.
    precision: the generator's arithmetic, as in `AdaptConfig`.

    The random numbers drawn depend on the choice's settings only, never on whether the measurement was worth making,
    so that a run with a count that covers all layers stays comparable with one whose count does not.
    """
    every = candidates(choice, generator)
    if choice.mode != "adaptive":
        return Chosen(every)
    z = torch.randn(choice.batch, generator.z_dim, generator=rng)
    table = _row_table(generator)
    if choice.count >= len(table):
        return Chosen(every)
    movement = row_movement(choice, generator, targets, z, label, batcher, precision)
    order = sorted(table, key=lambda row: -movement[row])[: choice.count]
    picked = {table[row].name for row in order}
    kept = [layer for layer in every if layer.name in picked or (layer.kind == "rgb" and layer not in table.values())]
    return Chosen(tuple(kept), tuple(movement.tolist()))


def inspect_layers(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    choice: LayerChoice | None = None,
    seed: int = 0,
    label: int | None = None,
) -> tuple[tuple[Layer, float], ...]:
    """The measurement behind the adaptive choice (StyleGAN-NADA, section 4.2), before anything is trained.

    Every layer that choice could pick, in the order the network runs, with how far its row of W+ [C] moves when
    `choice.batch` random latents go `choice.steps` steps towards the target: the mean |change| of a number of W+, >= 0.
    choice: gives batch, chunk, steps and rate; its mode and count decide nothing here. seed: of the latents.
    label: the class of a conditional generator. The generator is left as it is.

    Raises:
        ValueError: for labels, guides, texts or devices that do not fit, for broken weights, and in inference mode.
        torch.cuda.OutOfMemoryError: when one latent at a time is still too many.
    """
    check_devices(generator, guides, label)
    choice = choice or LayerChoice()
    start = source_images(generator, seed, label) if needs_source_images(shift) else None
    targets = clip_targets(guides, shift, start)
    z = torch.randn(choice.batch, generator.z_dim, generator=torch.Generator().manual_seed(seed))
    moved = row_movement(choice, generator, targets, z, label).tolist()
    movement = {layer.name: moved[row] for row, layer in _row_table(generator).items()}
    return tuple((layer, movement[layer.name]) for layer in generator.layers() if layer.name in movement)


def row_movement(
    choice: LayerChoice,
    generator: Generator,
    targets: Sequence[ClipTarget],
    z: Tensor,
    label: int | None = None,
    batcher: MicroBatcher | None = None,
    precision: str = "fp32",
) -> Tensor:
    """How far each row of W+ moves on average when `z` [N, z_dim] is optimised towards the goal: [L].

    batcher: how many latents pass at once, where a run remembers it; otherwise `choice.chunk`, or less if need be.
    """
    batcher = batcher or MicroBatcher(min(choice.chunk, len(z)))
    total = batcher.run(_row_movement, choice, generator, targets, z, label, precision)
    all_reduce([total])
    return total.cpu() / (len(z) * generator.w_dim)


def _row_movement(
    choice: LayerChoice,
    generator: Generator,
    targets: Sequence[ClipTarget],
    z: Tensor,
    label: int | None,
    precision: str,
    chunk: int,
) -> Tensor:
    device = generator.w_avg.device
    total = torch.zeros(generator.num_ws, device=device)
    for part in shard(z.to(device)).split(chunk):
        with torch.no_grad():
            start = generator.map(part, generator.one_hot(label, len(part)))
        ws = start.clone().requires_grad_()
        with _frozen(generator):
            for _ in range(choice.steps):
                with arithmetic(precision, device):
                    images = generator.synthesize(ws)
                likeness = [a.weight * (a.guide.encode_images(images) @ a.target_embedding.mT).sum() for a in targets]
                (slope,) = torch.autograd.grad(sum(likeness, torch.zeros_like(likeness[0])) / len(z), ws)
                ws = (ws + choice.rate * slope).detach().requires_grad_()
        total += (ws - start).detach().abs().sum(dim=(0, 2))
    return total


@contextmanager
def only_trainable(generator: Generator, names: frozenset[str]) -> Iterator[None]:
    """Inside, exactly the parameters called `names` receive gradients; afterwards none does."""
    try:
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        generator.requires_grad_(False)


def parameter_names(choice: LayerChoice, layers: Sequence[Layer]) -> frozenset[str]:
    """The parameters to train in these layers, by what StyleDomain (arXiv:2212.10229, section 3) calls a
    parameterisation. Noise strengths stay frozen unless asked for: trained, they become an invisible texture that
    pleases the guide and nobody else."""
    return frozenset(name for layer in layers for name in layer.parameters if _is_trained(choice, layer, name))


def _is_trained(choice: LayerChoice, layer: Layer, name: str) -> bool:
    affine, constant = ".affine." in name, layer.kind == "const"
    if name.endswith("noise_strength"):
        return choice.noise and choice.train in ("weights", "convolutions")
    return {
        "weights": True,
        "convolutions": not affine and not constant,
        "affines": affine,
        # An offset of the style (StyleDomain's S space) is an offset of its bias: the affine adds nothing after it.
        "offsets": affine and name.endswith(".bias"),
    }.get(choice.train, not affine and not constant and name.endswith(".weight"))  # what is left has compact kernels


def count_trained(choice: LayerChoice, generator: Generator) -> int:
    """How many numbers this choice may train in all; a float32 of each is what a change takes to store."""
    names = parameter_names(choice, candidates(choice, generator))
    weights = {name: weight for name, weight in generator.named_parameters() if name in names}
    return sum(part.numel() for part in trained_parts(choice, weights, 0).values())


def trained_parts(choice: LayerChoice, weights: Mapping[str, Tensor], seed: int) -> Mapping[str, Tensor]:
    """What an optimiser moves to change these weights of the network: themselves, or what their change is made of."""
    return factors(weights, choice.rank, seed) if choice.train == "low-rank" else weights


def _row_table(generator: Generator) -> dict[int, Layer]:
    """The convolution that each row of W+ feeds. Rows that feed only a ToRGB layer are left out."""
    return {layer.w_index: layer for layer in generator.layers() if layer.kind == "conv" and layer.w_index is not None}


@contextmanager
def _frozen(generator: Generator) -> Iterator[None]:
    """Inside, no weight of the generator receives gradients; afterwards flags are as they were."""
    flags = {name: parameter.requires_grad for name, parameter in generator.named_parameters()}
    try:
        generator.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(flags[name])
