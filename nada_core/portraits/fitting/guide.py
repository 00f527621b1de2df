"""Fit the built-in CLIP models, with image encoders that are robust to small changes.

The gradients of a CLIP model fitted on clean pictures point to invisible noise. Adversarial training (Madry et al.,
arXiv:1706.06083; Engstrom et al., arXiv:1906.00945) makes them perceptually meaningful. In the second stage half of the
adversarial steps are smooth, as the errors of a generator are.

The loss has four parts. Captions: multi-positive InfoNCE. Direction: the difference of one content in two styles
follows the difference of their texts, as in the directional loss of StyleGAN-NADA. Completeness, in the second stage: a
picture with only a share of that change follows the direction by the same share. Content: a linear layer predicts the
attributes from the embedding.

Letters: N pictures, D embedding, S styles, K classes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...guidance.prompts import TEMPLATES
from ...io.checkpoint_file import read_checkpoint
from ...io.metadata import write_safetensors
from ..judge import CLASSES
from ..render import ATTRIBUTES, STYLES, readable, render, visible
from .captions import Captions, describe
from .corrupt import corrupt
from .training import Average, budget, cosine, optimizer_step, seeded, write_log

_TEXT = {"context_length": 48, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2}

#: File name -> architecture. The second works at the pictures' own resolution and is narrower; the third is a ViT.
CONFIGS: dict[str, dict[str, Any]] = {
    "guide": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 96, "layers": [2, 2, 2, 1], "width": 20},
        "text_cfg": _TEXT,
    },
    "guide-64": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [2, 3, 2, 1], "width": 16},
        "text_cfg": _TEXT,
    },
    "guide-vit": {
        "embed_dim": 128,
        "text_cfg": _TEXT,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    },
}

_FIRST_EPS, _EPS, _SMOOTH_EPS = 3.0, 4.0, 6.0  # the longest adversarial steps, L2 of a picture in 0..1

# In a batch: contents shown in two styles, pictures in no style, and pairs that are also shown partly changed.
_PAIRS, _BROKEN, _PARTIAL = 28, 12, 14


class Batch(NamedTuple):
    """Pictures and their labels.

    The order of the pictures: `_PAIRS` contents in a first style, the same in a second, `_BROKEN` corrupted ones, and
    `_PARTIAL` partly changed ones. The last have shares but neither classes nor attributes.
    """

    pictures: Tensor  # [N, 3, H, W]
    classes: Tensor
    attributes: Tensor
    shares: Tensor


class Gallery:
    """Every content in every style, rendered once and stored as bytes [S, contents, 3, H, W]."""

    def __init__(self, contents: int, seed: int) -> None:
        self.attributes = torch.rand(contents, len(ATTRIBUTES), generator=torch.Generator().manual_seed(seed))
        chunks = self.attributes.split(200)
        self.pictures = torch.stack(
            [torch.cat([((render(c, style) + 1) * 127.5).round().byte() for c in chunks]) for style in STYLES]
        )

    def pictures_of(self, styles: Tensor, rows: Tensor) -> Tensor:
        """Return pictures [N, 3, H, W] in -1..1."""
        return self.pictures[styles, rows].float() / 127.5 - 1


def augment(pictures: Tensor, rng: torch.Generator, move: float = 0.04) -> Tensor:
    """Shift, zoom, blur and expose pictures [N, 3, H, W] at random and add noise; the content stays recognizable."""
    count = len(pictures)
    shift = (torch.rand(count, 2, generator=rng) * 2 - 1) * move
    zoom = 1 + (torch.rand(count, generator=rng) * 2 - 1) * move
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom, zoom, shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, blurred, torch.rand(count, 1, 1, 1, generator=rng) * 0.8)
    gain = 1 + (torch.rand(count, 1, 1, 1, generator=rng) - 0.5) * 0.12
    offset = (torch.rand(count, 3, 1, 1, generator=rng) - 0.5) * 0.06
    noise = torch.randn(pictures.shape, generator=rng) * 0.05 * torch.rand(count, 1, 1, 1, generator=rng)
    return pictures * gain + offset + noise


def partial_change(start: Tensor, end: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change pictures partly: everywhere by a fraction, or completely but only in some places.

    Returns:
        Pictures [N, 3, H, W] between start and end, and the shares [N]: the length of their change, projected on the
        whole change, over the length of the whole change.
    """
    count, size = len(start), start.shape[-1]
    fraction = torch.rand(count, 1, 1, 1, generator=rng)
    cells = torch.randn(count, 1, 5, 5, generator=rng) + 2.5 * torch.rand(count, 1, 1, 1, generator=rng) - 0.8
    places = torch.sigmoid(6 * F.interpolate(cells, size=(size, size), mode="bicubic", align_corners=False))
    mask = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.35, fraction, places)
    whole, part = (end - start).flatten(1), (mask * (end - start)).flatten(1)
    return start + mask * (end - start), (part * whole).sum(1) / whole.square().sum(1).clamp(min=1e-6)


def batches(gallery: Gallery, seed: int) -> Iterator[Batch]:
    """Yield random batches without end."""
    rng = torch.Generator().manual_seed(seed)
    contents = len(gallery.attributes)
    while True:
        rows = torch.randint(contents, (_PAIRS,), generator=rng)
        first = torch.randint(len(STYLES), (_PAIRS,), generator=rng)
        first[: _PAIRS // 2] = 0
        second = (first + torch.randint(1, len(STYLES), (_PAIRS,), generator=rng)) % len(STYLES)
        other = torch.randint(contents, (_BROKEN,), generator=rng)
        broken = corrupt(gallery.pictures_of(torch.randint(len(STYLES), (_BROKEN,), generator=rng), other), rng)
        start, end = gallery.pictures_of(first, rows), gallery.pictures_of(second, rows)
        partial, shares = partial_change(start[:_PARTIAL], end[:_PARTIAL], rng)
        classes = torch.cat([first, second, torch.full((_BROKEN,), len(STYLES))])
        attributes = gallery.attributes[torch.cat([rows, rows, other])]
        pictures = torch.cat([augment(torch.cat([start, end]), rng), broken, augment(partial, rng)])
        yield Batch(pictures, classes, attributes, shares)


def adversarial_step(gradient: Tensor, rng: torch.Generator, second: bool = True) -> Tensor:
    """Return a step of random length along the gradient [N, 3, H, W] of the loss, 0 for one picture in six.

    Args:
        second: Take the steps of the second stage: longer, and smooth for half of the pictures.
    """
    count = len(gradient)
    smooth = F.interpolate(F.avg_pool2d(gradient, 4), scale_factor=4.0, mode="bilinear", align_corners=False)
    use_smooth = (torch.rand(count, 1, 1, 1, generator=rng) < 0.5) & second
    gradient = torch.where(use_smooth, smooth, gradient)
    longest = torch.where(use_smooth, _SMOOTH_EPS, _EPS if second else _FIRST_EPS)
    length = longest * torch.rand(count, 1, 1, 1, generator=rng)
    length[torch.rand(count, generator=rng) < 1 / 6] = 0
    return 2 * length * gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


class Losses(NamedTuple):
    """The four losses of a batch."""

    caption: Tensor
    direction: Tensor
    completeness: Tensor
    content: Tensor

    def total(self, second: bool) -> Tensor:
        return self.caption + self.direction + second * self.completeness + self.content


class Objective:
    """The losses of one batch as a function of its image embeddings."""

    def __init__(
        self, batch: Batch, captions: Captions, texts: Tensor, words: Tensor, scale: Tensor, probe: nn.Linear
    ) -> None:
        self.batch, self.texts, self.words, self.scale, self.probe = batch, texts, words, scale, probe
        self.fits = captions.fits(batch.classes, batch.attributes).float()
        masks = torch.stack([visible(style) for style in STYLES] + [torch.zeros(len(ATTRIBUTES), dtype=torch.bool)])
        self.mask = masks[batch.classes].float()
        self.content = readable(batch.attributes) * 2 - 1

    def __call__(self, images: Tensor, detach: bool = False) -> Losses:
        """Compute the losses of embeddings [N, D]. detach: without gradients for the texts."""
        classes = self.batch.classes
        images, partial = images[: len(classes)], images[len(classes) :]
        texts, words = (self.texts.detach(), self.words.detach()) if detach else (self.texts, self.words)
        logits = self.scale * images @ texts.mT
        caption = images.new_zeros(())
        for scores, fits in ((logits, self.fits), (logits.mT, self.fits.mT)):
            caption = caption - ((scores.log_softmax(1) * fits).sum(1) / fits.sum(1).clamp(min=1)).mean() / 2
        first, second = slice(0, _PAIRS), slice(_PAIRS, 2 * _PAIRS)
        text_shift = words[classes[second]] - words[classes[first]]
        direction = 1 - F.cosine_similarity(images[second] - images[first], text_shift, eps=1e-3).mean()
        alignment = F.cosine_similarity(partial - images[:_PARTIAL], text_shift[:_PARTIAL], eps=1e-2)
        completeness = (alignment - self.batch.shares).square().mean()
        error = (self.probe(images * 8) - self.content) ** 2 * self.mask
        return Losses(caption, direction, completeness, error.sum() / self.mask.sum())


def fit(
    folder: Path, minutes: float, contents: int = 7000, seed: int = 0, log: Path | None = None, name: str = "guide"
) -> None:
    """Fit for a time budget and write the CLIP model `name` of `CONFIGS` into folder, as .json and .safetensors.

    The first stage starts from random weights, and the adversarial steps grow. The second starts from the first with a
    high learning rate; it has longer and smoother steps, partly changed pictures and fixed batch normalization.
    """
    path = folder / f"{name}.safetensors"
    run_stages(Stage, path, CONFIGS[name], minutes, contents, seed, log)


def run_stages(
    stage: type[Stage], path: Path, config: dict[str, Any], minutes: float, contents: int, seed: int, log: Path | None
) -> None:
    """Run both stages of a kind and write the weights to path, and the config to the same folder."""
    stage(path, config, seed, log).run(0.56 * minutes, contents)
    stage(path, config, seed + 7, log, start=path).run(0.44 * minutes, contents)


class Stage:
    """One stage of `fit`. start: the weights of the first stage, which makes this the second."""

    clean = 0.0  # the share of the first stage without adversarial steps; they grow after it

    def __init__(
        self, path: Path, config: dict[str, Any], seed: int, log: Path | None, start: Path | None = None
    ) -> None:
        import open_clip

        self.path, self.config, self.seed, self.log, self.second = path, config, seed, log, start is not None
        with seeded(seed):
            self.model = open_clip.CLIP(**config)
            self.probe = nn.Linear(config["embed_dim"], len(ATTRIBUTES))
        self.tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        self.tokens: set[int] = set()  # those that occurred
        if start is not None:
            self.model.load_state_dict({name: t.float() for name, t in read_checkpoint(start).tensors.items()})
            self.tokens.update(self.model.token_embedding.weight.ne(0).any(1).nonzero().flatten().tolist())
        self.model.visual.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
        self.std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(self.probe.parameters()), "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0)
        self.parameters = [*parameters, *self.probe.parameters()]
        self.average = Average(self.model.state_dict(), 0.999)
        self.words_rng, self.rng = random.Random(seed), torch.Generator().manual_seed(seed + 2)

    def run(self, minutes: float, contents: int) -> None:
        """Train until the time is over; write the weights every 500 steps and at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = self.batches(Gallery(contents, self.seed), self.seed + 1)
        self.model.train()
        for step, progress in budget(minutes):
            self._set_learning_rates(step, progress)
            ramp = 1.0 if self.second else progress
            if ramp > 0.6:
                self._fix_batch_norm()
            losses = self._losses(next(stream), (ramp - self.clean) / (1 - self.clean))
            optimizer_step(self.optimizer, losses.total(self.second), lr=None, clip=self.parameters)
            self.average.update(self.model.state_dict(), step)
            write_log(self.log, step, 100, progress, **losses._asdict())
            if step % 500 == 0:
                self._write()
        self._write()

    def batches(self, gallery: Gallery, seed: int) -> Iterator[Batch]:
        return batches(gallery, seed)

    def _set_learning_rates(self, step: int, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(6e-4 if self.second else 1.5e-3, step, progress, 200)
        if self.second:  # the probe is not saved with the model, so it starts from random weights again
            self.optimizer.param_groups[2]["lr"] = 5e-3 * (1 - progress)

    def _fix_batch_norm(self) -> None:
        """Use the running statistics, as the finished model does."""
        for module in self.model.visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def _losses(self, batch: Batch, ramp: float) -> Losses:
        """Compute the losses of a batch after an adversarial step. ramp: none up to 0.05, full from 0.25."""
        objective, pictures = self.objective(batch), batch.pictures
        if ramp > 0.05:
            inputs = pictures.clone().requires_grad_()
            loss = objective(self._embed(inputs), True).total(self.second)
            (gradient,) = torch.autograd.grad(loss, inputs)
            pictures = pictures + min(1, ramp / 0.25) * adversarial_step(gradient, self.rng, self.second)
        return objective(self._embed(pictures), False)

    def objective(self, batch: Batch) -> Callable[[Tensor, bool], Losses]:
        """Return the losses of a batch as a function of its image embeddings and of whether texts are constant."""
        captions = describe(batch.classes, batch.attributes, self.words_rng)
        template = self.words_rng.choice(TEMPLATES)
        texts = self.embed_texts(captions.sentences + [template.format(name) for name in CLASSES])
        count = len(batch.classes)
        return Objective(batch, captions, texts[:count], texts[count:], self.scale, self.probe)

    @property
    def scale(self) -> Tensor:
        """The factor of the similarities, a learned temperature."""
        return self.model.logit_scale.exp().clamp(max=60)

    def embed_texts(self, sentences: list[str]) -> Tensor:
        """Return unit text embeddings [N, D]."""
        tokens = self.tokenizer(sentences)
        self.tokens.update(tokens.unique().tolist())
        return F.normalize(self.model.encode_text(tokens), dim=-1)

    def _embed(self, pictures: Tensor) -> Tensor:
        """Return unit image embeddings [N, D]."""
        size = self.config["vision_cfg"]["image_size"]
        resized = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)
        resized = (((resized + 1) / 2 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return F.normalize(self.model.visual(resized).float(), dim=-1)

    def _write(self) -> None:
        """Write the average. Embeddings of tokens that did not occur are zero, which marks them as unknown."""
        tensors = self.average.half()
        known = torch.zeros(len(tensors["token_embedding.weight"]), 1, dtype=torch.half)
        known[sorted(self.tokens)] = 1
        tensors["token_embedding.weight"] = tensors["token_embedding.weight"] * known
        write_safetensors(self.path, tensors, {"format": "pt"})
        self.path.with_suffix(".json").write_text(json.dumps(self.config, indent=2) + "\n")
