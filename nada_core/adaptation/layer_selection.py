"""Which layers a step trains: all, named ones, or those the text moves most (StyleGAN-NADA, arXiv:2108.00946, 4.2).

Adaptive layer freezing: random latents in W+ are optimized for a few steps towards the target text, and the layers
whose rows moved most are trained. This needs d loss / d w only; no weight of the generator gets a gradient.

Shapes: N latents, L rows of W+, C width of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..guidance.shifts import Shift, needs_source_images
from ..guidance.targets import ClipTarget, check_devices, clip_targets, source_images
from ..models.clip import ClipGuide
from ..models.generator import Generator, Layer
from ..models.low_rank import low_rank_factors
from ..runtime.batching import MicroBatcher
from ..runtime.distributed import all_reduce, shard
from ..runtime.precision import arithmetic, loss_scale, tf32
from ..runtime.seeds import seeded
from .config import LayerChoice


@dataclass(frozen=True)
class SelectedLayers:
    """The layers one step trains, and how far every row of W+ moved; empty where nothing was measured."""

    layers: tuple[Layer, ...]
    movement: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


# ---- selection ----------------------------------------------------------------------------------------------------


def selectable_layers(choice: LayerChoice, generator: Generator) -> tuple[Layer, ...]:
    """Every layer the choice could ever train.

    Raises:
        ValueError: for names the generator does not have, and for a count above its number of layers.
    """
    layers = generator.layers()
    if choice.mode == "named":
        known = {layer.name: layer for layer in layers}
        if unknown := [name for name in choice.names if name not in known]:
            raise ValueError(f"Got layers {', '.join(unknown)}; this generator has {', '.join(known)}.")
        return tuple(known[name] for name in choice.names)
    rows = _layer_of_row(generator)
    if choice.mode == "adaptive" and choice.count > len(rows):
        raise ValueError(
            f"LayerChoice.count is {choice.count}, but this generator has {len(rows)} layers to choose from; use at "
            f"most {len(rows)}, or mode all."
        )
    constant = [layer for layer in layers if layer.kind == "const" and choice.mode == "all"]  # no row controls it
    rgb = [layer for layer in layers if layer.kind == "rgb" and choice.rgb]
    return (*constant, *rows.values(), *rgb)


def select_layers(
    choice: LayerChoice,
    generator: Generator,
    targets: Sequence[ClipTarget],
    rng: torch.Generator,
    label: int | None = None,
    batcher: MicroBatcher | None = None,
    precision: str = "fp32",
) -> SelectedLayers:
    """Select the layers of the next step.

    The random numbers drawn depend on the settings only, not on whether a measurement was needed, so that runs with
    different counts stay comparable.

    Args:
        label: the class of a conditional generator.
        batcher: how many latents pass at once, remembered between calls; see `row_movement`.
        precision: arithmetic of the generator, as in `AdaptConfig`.
    """
    layers = selectable_layers(choice, generator)
    if choice.mode != "adaptive":
        return SelectedLayers(layers)
    z = torch.randn(choice.batch, generator.z_dim, generator=rng)
    rows = _layer_of_row(generator)
    if choice.count >= len(rows):
        return SelectedLayers(layers)
    movement = row_movement(choice, generator, targets, z, label, batcher, precision)
    selected = {rows[row].name for row in sorted(rows, key=lambda row: -movement[row])[: choice.count]}
    kept = [layer for layer in layers if layer.name in selected or layer.kind == "rgb"]
    return SelectedLayers(tuple(kept), tuple(movement.tolist()))


def inspect_layers(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    choice: LayerChoice | None = None,
    seed: int = 0,
    label: int | None = None,
) -> tuple[tuple[Layer, float], ...]:
    """Measure how far the text moves each layer's row of W+, as adaptive layer freezing does, without training.

    Args:
        choice: batch, chunk, steps and rate of the measurement; mode and count are ignored.
        seed: of the latents.
        label: the class of a conditional generator.

    Returns:
        Every selectable layer in the order the network runs, with the mean absolute change of a number of its row.

    Raises:
        ValueError: for labels, guides, texts or devices that do not fit, for broken weights, and in inference mode.
        torch.cuda.OutOfMemoryError: when one latent at a time is still too many.
    """
    check_devices(generator, guides, label)
    choice = replace(choice or LayerChoice(), mode="adaptive")
    images = source_images(generator, seed, label) if needs_source_images(shift) else None
    targets = clip_targets(guides, shift, images)
    z = torch.randn(choice.batch, generator.z_dim, generator=seeded(seed))
    with tf32(False):
        movement = row_movement(choice, generator, targets, z, label).tolist()
    return tuple((layer, movement[row]) for row, layer in _layer_of_row(generator).items())


def row_movement(
    choice: LayerChoice,
    generator: Generator,
    targets: Sequence[ClipTarget],
    z: Tensor,
    label: int | None = None,
    batcher: MicroBatcher | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Mean absolute change [L] of each row of W+ when `z` [N, z_dim] is optimized towards the target embedding.

    Args:
        batcher: how many latents pass at once; None starts with `choice.chunk`.
    """
    batcher = batcher or MicroBatcher(min(choice.chunk, len(z)))
    total = batcher.run(_total_movement, choice, generator, targets, z, label, precision)
    all_reduce([total])
    return total.cpu() / (len(z) * generator.w_dim)


def _total_movement(
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
    scale = max(1.0, loss_scale(precision, generator.resolution) * len(z)) if precision == "fp16" else 1.0
    for part in shard(z.to(device, non_blocking=True)).split(chunk):
        if not len(part):  # more processes than latents
            continue
        with torch.no_grad():
            start = generator.map(part, generator.one_hot(label, len(part)))
        ws = start.clone().requires_grad_()
        with _frozen(generator):
            for _ in range(choice.steps):
                with arithmetic(precision, device):
                    images = generator.synthesize(ws)
                cosines = [t.weight * (t.guide.encode_images(images) @ t.target_embedding.mT).sum() for t in targets]
                mean = sum(cosines, torch.zeros_like(cosines[0])) / len(z)
                (gradient,) = torch.autograd.grad(mean * scale, ws)
                ws = (ws + choice.rate * (gradient / scale)).detach().requires_grad_()
        total += (ws - start).detach().abs().sum(dim=(0, 2))
    return total


def _layer_of_row(generator: Generator) -> dict[int, Layer]:
    """Row j of W+ -> the convolution it controls. The last row controls a ToRGB layer alone and is left out."""
    return {layer.w_index: layer for layer in generator.layers() if layer.kind == "conv" and layer.w_index is not None}


# ---- what of a layer is trained -----------------------------------------------------------------------------------


def trained_names(choice: LayerChoice, layers: Sequence[Layer]) -> frozenset[str]:
    """Names of the parameters to train in these layers (the parametrizations of StyleDomain, arXiv:2212.10229, 3).

    Noise strengths stay frozen unless asked for: trained, they become a texture that raises the CLIP score only.
    """
    return frozenset(name for layer in layers for name in layer.parameters if _is_trained(choice, layer, name))


def _is_trained(choice: LayerChoice, layer: Layer, name: str) -> bool:
    affine, convolution = ".affine." in name, ".affine." not in name and layer.kind != "const"
    if name.endswith("noise_strength"):
        return choice.noise and choice.train in ("weights", "convolutions")
    match choice.train:
        case "weights":
            return True
        case "convolutions":
            return convolution
        case "affines":
            return affine
        case "offsets":  # a constant added to a style (StyleSpace) is a change of its affine's bias
            return affine and name.endswith(".bias")
        case _:  # low-rank
            return convolution and name.endswith(".weight")


def trained_values(choice: LayerChoice, weights: Mapping[str, Tensor], seed: int) -> Mapping[str, Tensor]:
    """The tensors an optimizer moves to change `weights`: themselves, or the factors of a low-rank change."""
    return low_rank_factors(weights, choice.rank, seed) if choice.train == "low-rank" else weights


def count_trained(choice: LayerChoice, generator: Generator) -> int:
    """How many numbers this choice may train in all."""
    names = trained_names(choice, selectable_layers(choice, generator))
    weights = {name: weight for name, weight in generator.named_parameters() if name in names}
    return sum(value.numel() for value in trained_values(choice, weights, 0).values())


@contextmanager
def only_trainable(generator: Generator, names: frozenset[str]) -> Iterator[None]:
    """Inside, exactly the parameters called `names` receive gradients; afterwards none does."""
    try:
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        generator.requires_grad_(False)


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
