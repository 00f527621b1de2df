"""Settings of an adaptation (StyleGAN-NADA, Gal et al., arXiv:2108.00946, section 4 and appendix I)."""

from __future__ import annotations

from dataclasses import replace

from ..guidance.clip_losses import RELATIVE_TERMS, TERMS
from ..runtime.config import setting, settings
from ..runtime.precision import PRECISIONS

PAIR_STEPS, PAIR_BATCH = 200, 4  # of an adaptation to pairs


@settings
class LayerChoice:
    """Which layers are trained (section 4.2): all of them, named ones, or those the text moves most."""

    mode: str = setting(
        "all",
        "which layers are trained: all, adaptive (those the text moves most), or named",
        choices=("all", "adaptive", "named"),
    )
    count: int = setting(12, "adaptive: number of layers to train", low=1, high=18)
    steps: int = setting(1, "adaptive: optimizer steps on the latents", low=1, high=100)
    batch: int = setting(8, "adaptive: number of latents to measure", low=1, high=256)
    chunk: int = setting(4, "adaptive: latents processed at a time; lower needs less memory", low=1, high=256)
    every: int = setting(1, "adaptive: training steps between two selections", low=1, high=10_000)
    rate: float = setting(0.01, "adaptive: step size on the latents", low=1e-6, high=10.0, step=0.001)
    names: tuple[str, ...] = setting((), "named: names of the layers to train")
    rgb: bool = setting(False, "all, adaptive: also train the ToRGB layers")
    noise: bool = setting(False, "also train the noise strengths")
    train: str = setting(
        "weights",
        "parameters trained in each layer: weights (all), convolutions (kernel and bias), affines (style layers), "
        "offsets (style biases, StyleSpace; needs about 10 times the learning rate), low-rank (low-rank kernel change)",
        choices=("weights", "convolutions", "affines", "offsets", "low-rank"),
    )
    rank: int = setting(4, "low-rank: rank of the change of a kernel", low=1, high=64)

    def __post_init__(self) -> None:
        if self.mode == "named" and not self.names:
            raise ValueError("LayerChoice.names is empty; mode named needs at least one of the generator's layers.")


@settings
class AdaptConfig:
    """Settings of one adaptation. The defaults are the paper's (section 4, appendix I) for a published generator."""

    steps: int = setting(300, "training steps", low=1, high=100_000)
    batch: int = setting(2, "latents per step", low=1, high=256)
    lr: float = setting(0.002, "Adam learning rate", low=1e-7, high=1.0, step=1e-4)
    schedule: str = setting("constant", "learning-rate schedule after the warm-up", choices=("constant", "cosine"))
    warmup: int = setting(10, "warm-up steps, over which the learning rate rises from 0", low=0, high=10_000)
    beta1: float = setting(0.0, "Adam beta1", low=0.0, high=0.999, step=0.01)
    beta2: float = setting(0.992, "Adam beta2", low=0.0, high=0.99999, step=0.001)
    grad_clip: float = setting(10.0, "maximum gradient norm", low=1e-6, high=1e6, step=0.5)
    ema: float = setting(
        0.0,
        "decay of the moving average of the weights, which is returned; 0 returns the last weights",
        low=0.0,
        high=0.9999,
        step=0.001,
    )
    terms: dict[str, float] = setting(
        {"direction": 1.0}, "weights of the loss terms", low=0.0, high=1e4, step=0.05, choices=tuple(TERMS)
    )
    views: int = setting(
        0,
        "augmented views of each image for CLIP, the same before and after; 0 uses the images as they are",
        low=0,
        high=16,
    )
    psi: float = setting(1.0, "truncation psi of the training latents", low=0.0, high=1.0, step=0.05)
    label: int | None = setting(None, "class of a conditional generator", low=0)
    noise: str = setting("random", "noise maps, the same for both generators", choices=("random", "const", "none"))
    seed: int = setting(0, "random seed of the run", low=0, high=2**32 - 1)
    autosave_every: int = setting(50, "steps between two autosaves", low=1, high=100_000)
    chunk: int = setting(
        0,
        "latents processed at a time, 0 for the whole batch; lower needs less memory and gives the same result",
        low=0,
        high=256,
    )
    precision: str = setting(
        "fp32",
        "arithmetic of the generators; tf32, bf16 and fp16 are faster where supported and change the result slightly",
        choices=tuple(PRECISIONS),
    )
    checkpointing: int = setting(
        0,
        "recompute blocks from this resolution up in the backward pass, to save memory; 0 recomputes none",
        low=0,
        high=1024,
    )
    layers: LayerChoice = LayerChoice()
    weight_reg: float = setting(
        0.0,
        "weight of the distance of the trained weights from their start (L2-SP); needs more steps",
        low=0.0,
        high=1e6,
        step=0.5,
    )
    fisher_samples: int = setting(
        0,
        "latents to estimate the importance of each weight (EWC) for weight_reg; 0 treats all weights alike",
        low=0,
        high=1000,
    )
    keep_every: int = setting(
        0,
        "steps between two validations by a held-out CLIP model, whose best step is returned; 0 returns the last step",
        low=0,
        high=100_000,
    )
    patience: int = setting(
        0, "validations without improvement after which the run stops; 0 never stops early", low=0, high=1000
    )
    mirror: bool = setting(False, "mirror every second view; with one view, mirror it in about half of the steps")
    lpips: float = setting(
        0.0, "weight of the LPIPS distance between each image and its source image", low=0.0, high=1e4, step=0.05
    )
    id: float = setting(
        0.0,
        "weight of 1 - cosine of the face embeddings of each image and its source image",
        low=0.0,
        high=1e4,
        step=0.05,
    )
    pool: int = setting(
        0,
        "reuse a fixed pool of this many latent batches, whose source embeddings are computed once; "
        "0 draws new latents every step",
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        if self.fisher_samples and not self.weight_reg:
            raise ValueError("AdaptConfig.fisher_samples needs a positive weight_reg, such as 10.")
        if self.patience and not self.keep_every:
            raise ValueError("AdaptConfig.patience needs a positive keep_every, such as 25.")
        if not any(self.terms.values()):
            raise ValueError(
                "The weights of all loss terms are 0; give at least one a weight, such as 1 for the direction loss."
            )
        if self.batch == 1 and (relative := [name for name in RELATIVE_TERMS if self.terms.get(name)]):
            raise ValueError(
                f"AdaptConfig.batch is 1, but the terms {', '.join(relative)} compare the images of a batch; set "
                "batch to 2 or more, or the weights of these terms to 0."
            )
        if self.mirror and not self.views:
            raise ValueError("AdaptConfig.mirror is True, but views is 0, so there is no view to mirror; set views.")

    @property
    def similarity_weights(self) -> dict[str, float]:
        """Weights of the terms that keep images close to the source's, without those that are 0."""
        return {name: weight for name, weight in (("lpips", self.lpips), ("id", self.id)) if weight}


@settings
class PairSettings:
    """How pairs are filtered, held out and weighed."""

    l1: float = setting(4.0, "weight of the L1 distance at several scales", low=0.0, high=1e4, step=0.05)
    edges: float = setting(
        4.0, "weight of the L1 distance of the gradients, which keeps edges sharp", low=0.0, high=1e4, step=0.05
    )
    lpips: float = setting(0.0, "weight of the LPIPS distance", low=0.0, high=1e4, step=0.05)
    focus: float = setting(
        3.0, "extra weight of regions that the edit changed; 0 weighs all pixels alike", low=0.0, high=100.0, step=0.5
    )
    align: float = setting(
        0.05,
        "how far an edit may have moved its subject, as a share of the side; moves are found by comparing edges, and "
        "undone; 0 leaves images as they are",
        low=0.0,
        high=0.2,
        step=0.01,
    )
    locality: float = setting(
        0.0,
        "weight of the coarse L1 distance between latents: the edit of a latent between two pairs should lie between "
        "theirs",
        low=0.0,
        high=1e4,
        step=0.05,
    )
    hold_out: float = setting(
        0.25, "share of at least 8 pairs that is held out to choose the best step", low=0.0, high=0.5, step=0.05
    )
    min_direction: float = setting(
        0.8,
        "reject pairs whose change in CLIP space agrees with that of the other pairs less than this; 0 keeps all",
        low=0.0,
        high=1.0,
        step=0.05,
    )
    max_rank: float = setting(
        0.1,
        "reject pairs whose image resembles more than this share of the other latents better than its own; 1 keeps all",
        low=0.0,
        high=1.0,
        step=0.05,
    )

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("PairSettings.l1, edges and lpips are 0; give at least one a weight, such as l1 4.")

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the pair terms, without those that are 0."""
        weights = {"pair_l1": self.l1, "pair_edges": self.edges, "pair_lpips": self.lpips}
        return {name: weight for name, weight in weights.items() if weight}


@settings
class PairsConfig(PairSettings):
    """Settings of an adaptation to pairs. Create them with `for_training`: some depend on the generator."""

    training: AdaptConfig = AdaptConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.pool:
            raise ValueError(
                f"PairsConfig.training.pool is {self.training.pool}, expected 0: every step draws pairs anew."
            )

    @classmethod
    def for_training(cls, base: AdaptConfig) -> PairsConfig:
        """Return settings for a generator whose settings for a shift are `base`: its optimizer, other lengths."""
        keep_every = max(1, PAIR_STEPS // 10)
        training = replace(base, pool=0, steps=PAIR_STEPS, batch=PAIR_BATCH, keep_every=keep_every, patience=5)
        return cls(training=training)
