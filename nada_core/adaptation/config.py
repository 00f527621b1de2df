"""Which layers a step trains: all, named ones, or those the text moves most (StyleGAN-NADA, arXiv:2108.00946, 4.2).

Adaptive choice: random latents are spread over the rows of W+, moved a few steps towards the target text, and the rows
that moved most name the layers to train. Only d loss / d w is needed, so no weight of the generator gets a gradient.

Letters: N latents, L rows of W+, C width of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..guidance.clip_losses import TERMS
from ..runtime.config import check, setting
from ..runtime.precision import PRECISIONS


@dataclass(frozen=True)
class LayerChoice:
    """How to choose layers. `all` trains every convolution and the constant input, `named` the listed layers
    and no others."""

    mode: str = setting("all", "how the trained layers are chosen", choices=("all", "adaptive", "named"))
    count: int = setting(12, "adaptive: how many layers a step trains", low=1, high=18)
    steps: int = setting(1, "adaptive: optimisation steps on the latents", low=1, high=100)
    batch: int = setting(8, "adaptive: how many latents vote", low=1, high=256)
    chunk: int = setting(4, "adaptive: latents that pass through the generator at once", low=1, high=256)
    every: int = setting(1, "adaptive: choose anew every so many training steps", low=1, high=10_000)
    rate: float = setting(0.01, "adaptive: step size on the latents", low=1e-6, high=10.0, step=0.001)
    names: tuple[str, ...] = setting((), "named: the layers to train, as the generator calls them")
    rgb: bool = setting(False, "all, adaptive: train the ToRGB layers too")
    noise: bool = setting(False, "train the noise strengths too")
    train: str = setting(
        "weights",
        "what of a layer is trained: weights, all of it; convolutions, kernel and bias; affines, what makes "
        "styles of latents; offsets, one constant a style (StyleSpace), which wants ten times the learning rate or "
        "more; low-rank, a change of the kernel of few degrees of freedom",
        choices=("weights", "convolutions", "affines", "offsets", "low-rank"),
    )
    rank: int = setting(4, "low-rank: rank of the change of a kernel", low=1, high=64)

    def __post_init__(self) -> None:
        check(self)
        if self.mode == "named" and not self.names:
            raise ValueError("LayerChoice.names is empty; mode named needs at least one of the generator's layers.")


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of one adaptation. The defaults are the paper's (section 4, appendix I) for a published generator."""

    steps: int = setting(300, "optimiser steps", low=1, high=100_000)
    batch: int = setting(2, "latents a step", low=1, high=256)
    lr: float = setting(0.002, "Adam's learning rate", low=1e-7, high=1.0, step=1e-4)
    schedule: str = setting("constant", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup: int = setting(10, "steps over which the learning rate rises from zero", low=0, high=10_000)
    beta1: float = setting(0.0, "Adam's first decay", low=0.0, high=0.999, step=0.01)
    beta2: float = setting(0.992, "Adam's second decay", low=0.0, high=0.99999, step=0.001)
    grad_clip: float = setting(
        10.0, "longest gradient, as a norm over all trained weights", low=1e-6, high=1e6, step=0.5
    )
    ema: float = setting(
        0.0,
        "decay of the averaged weights that are returned; 0 returns the last ones",
        low=0.0,
        high=0.9999,
        step=0.001,
    )
    terms: dict[str, float] = setting(
        {"direction": 1.0}, "weights of the loss terms", low=0.0, high=1e4, step=0.05, choices=tuple(TERMS)
    )
    views: int = setting(
        0,
        "augmented views a guide judges each pair by, alike before and after; 0: the images as they are",
        low=0,
        high=16,
    )
    psi: float = setting(1.0, "truncation of the training latents", low=0.0, high=1.0, step=0.05)
    label: int | None = setting(None, "class of a conditional generator", low=0)
    noise: str = setting("random", "noise maps, shared by both generators", choices=("random", "const", "none"))
    seed: int = setting(0, "seed of everything random in the run", low=0, high=2**32 - 1)
    autosave_every: int = setting(50, "write the autosave file every so many steps", low=1, high=100_000)
    chunk: int = setting(
        0,
        "latents that pass through the networks at once, with the same result for less memory; 0: the whole batch",
        low=0,
        high=256,
    )
    precision: str = setting(
        "fp32",
        "arithmetic of the generators; all but fp32 is quicker, where the machine has it, "
        "and changes the pictures a little",
        choices=tuple(PRECISIONS),
    )
    checkpointing: int = setting(
        0,
        "blocks of at least so many pixels a side are computed again on the way back, with "
        "the same result for less memory; 0: none",
        low=0,
        high=1024,
    )
    layers: LayerChoice = field(default_factory=LayerChoice)
    weight_reg: float = setting(
        0.0,
        "weight of the distance of the trained weights from where they started, as a share "
        "of their length; it needs more steps",
        low=0.0,
        high=1e6,
        step=0.5,
    )
    fisher_samples: int = setting(
        0, "latents that tell how much each weight matters to the anchor; 0: all alike", low=0, high=1000
    )
    keep_every: int = setting(
        0,
        "let a held-out guide look every so many steps, and return what it liked best; 0: return the last state",
        low=0,
        high=100_000,
    )
    patience: int = setting(
        0, "looks without a better state, one after another, after which the run ends; 0: never", low=0, high=1000
    )
    mirror: bool = setting(False, "mirror every second view; a single one in every second step or so")
    patches: int = setting(0, "further views, each of a quarter of the picture: textures close by", low=0, high=16)
    lpips: float = setting(
        0.0,
        "weight of LPIPS between every picture and what it was before, which keeps its look",
        low=0.0,
        high=1e4,
        step=0.05,
    )
    id: float = setting(
        0.0, "weight of 1 - cosine of the faces before and after, which keeps the person", low=0.0, high=1e4, step=0.05
    )
    pool: int = setting(
        0,
        "so many batches of latents take turns, and what the guides see in the source is worked out "
        "once for each; 0: new latents every step",
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.layers, LayerChoice):
            raise ValueError(f"AdaptConfig.layers is {self.layers!r}, expected a LayerChoice, such as LayerChoice().")
        if self.fisher_samples and not self.weight_reg:
            raise ValueError("AdaptConfig.fisher_samples has no anchor to weigh; give the anchor a weight, such as 10.")
        if self.patience and not self.keep_every:
            raise ValueError("AdaptConfig.patience has no looks to count; set keep_every, such as 25.")
        if not any(self.terms.values()):
            raise ValueError("AdaptConfig.terms weighs nothing; give at least one term a weight, as direction 1.")

    @property
    def similarity_weights(self) -> dict[str, float]:
        """Weights of the terms that keep images close to the source's, without those that are 0."""
        return {name: weight for name, weight in (("lpips", self.lpips), ("id", self.id)) if weight}
