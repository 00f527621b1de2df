"""Fit the built-in guide: a small CLIP whose image tower cannot be fooled by small changes.

A CLIP fitted on clean pictures is useless as a teacher: its gradients point to invisible noise. Training against an
adversary (Madry et al., arXiv:1706.06083; its gradients follow what eyes see: Engstrom et al., arXiv:1906.00945) makes
them point to pictures. In the second stage half of its moves are smooth, because a generator's own mistakes are.

The loss has four parts, the third in the second stage only. Captions: multi-positive InfoNCE. Directions: the
difference of one content in two styles follows the difference of their words, which is what StyleGAN-NADA will ask of
it. Completeness: of a picture that made only a share of that change, the direction is followed by just that share, so
nothing may be left undone. Content: a linear reading of the embedding tells the attributes, as a web-scale CLIP's does.

Letters: N pictures, D embedding, S styles.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...guidance.prompts import TEMPLATES
from ...io.checkpoint_file import read_checkpoint
from ...io.metadata import write_safetensors
from ..captions import CLASSES, Captions, describe
from ..render import ATTRIBUTES, STYLES, readable, render, visible
from .corrupt import corrupt

_TEXT = {"context_length": 48, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2}

#: File name to architecture. The second guide sees the pictures in their own size and is built narrower, the third is
#: a transformer of patches.
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

_EARLY_EPS, _EPS, _SMOOTH_EPS = 3.0, 4.0, 6.0  # the adversary's longest steps, L2 over a 0..1 picture

_PAIRS, _BROKEN = 28, 12  # contents shown in two styles, and pictures that are none of them, in a batch

_PARTIAL = 14  # of the pairs, those shown half-way too


class Gallery:
    """Every content in every style, drawn once and kept as bytes: [S, contents, 3, H, W]."""

    def __init__(self, contents: int, seed: int) -> None:
        self.attributes = torch.rand(contents, len(ATTRIBUTES), generator=torch.Generator().manual_seed(seed))
        chunks = self.attributes.split(200)
        self.pictures = torch.stack(
            [torch.cat([((render(c, style) + 1) * 127.5).round().byte() for c in chunks]) for style in STYLES]
        )

    def take(self, styles: Tensor, rows: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in -1..1."""
        return self.pictures[styles, rows].float() / 127.5 - 1


def soften(pictures: Tensor, rng: torch.Generator, move: float = 0.04) -> Tensor:
    """What a generator or a camera may do to a picture without changing what it is: shift, blur, exposure, grain."""
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
    grain = torch.randn(pictures.shape, generator=rng) * 0.05 * torch.rand(count, 1, 1, 1, generator=rng)
    return pictures * gain + offset + grain


def half_way(start: Tensor, end: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures that made a share of the change from start to end: all of it faintly, or fully but only in places.

    Returns [N, 3, H, W] and the shares [N]: the length of the change made, along the whole change, over its length.
    """
    count, size = len(start), start.shape[-1]
    faint = torch.rand(count, 1, 1, 1, generator=rng)
    cells = torch.randn(count, 1, 5, 5, generator=rng) + 2.5 * torch.rand(count, 1, 1, 1, generator=rng) - 0.8
    places = torch.sigmoid(6 * F.interpolate(cells, size=(size, size), mode="bicubic", align_corners=False))
    mask = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.35, faint, places)
    whole, made = (end - start).flatten(1), (mask * (end - start)).flatten(1)
    return start + mask * (end - start), (made * whole).sum(1) / whole.square().sum(1).clamp(min=1e-6)


def batches(gallery: Gallery, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless (pictures, classes, attributes, shares).

    Pictures: `_PAIRS` contents in a first and a second style, `_BROKEN` broken ones, `_PARTIAL` half-way ones. Only
    the first two groups and the broken have classes and attributes, only the last has shares.
    """
    rng = torch.Generator().manual_seed(seed)
    contents = len(gallery.attributes)
    while True:
        rows = torch.randint(contents, (_PAIRS,), generator=rng)
        first = torch.randint(len(STYLES), (_PAIRS,), generator=rng)
        first[: _PAIRS // 2] = 0
        second = (first + torch.randint(1, len(STYLES), (_PAIRS,), generator=rng)) % len(STYLES)
        other = torch.randint(contents, (_BROKEN,), generator=rng)
        worn = corrupt(gallery.take(torch.randint(len(STYLES), (_BROKEN,), generator=rng), other), rng)
        start, end = gallery.take(first, rows), gallery.take(second, rows)
        partial, shares = half_way(start[:_PARTIAL], end[:_PARTIAL], rng)
        classes = torch.cat([first, second, torch.full((_BROKEN,), len(STYLES))])
        attributes = gallery.attributes[torch.cat([rows, rows, other])]
        yield torch.cat([soften(torch.cat([start, end]), rng), worn, soften(partial, rng)]), classes, attributes, shares


def worst_move(slope: Tensor, rng: torch.Generator, late: bool = True) -> Tensor:
    """The adversary's single step along the loss's slope [N, 3, H, W], of random length.

    late: longer steps, and smooth ones for half the pictures. One picture in six is left alone, so that clean ones stay
    at home.
    """
    count = len(slope)
    smooth = F.interpolate(F.avg_pool2d(slope, 4), scale_factor=4.0, mode="bilinear", align_corners=False)
    even = (torch.rand(count, 1, 1, 1, generator=rng) < 0.5) & late
    slope = torch.where(even, smooth, slope)
    length = torch.where(even, _SMOOTH_EPS, _EPS if late else _EARLY_EPS) * torch.rand(count, 1, 1, 1, generator=rng)
    length[torch.rand(count, generator=rng) < 1 / 6] = 0
    return 2 * length * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


class Objective:
    """The four losses of one batch, as a function of the image embeddings."""

    def __init__(
        self,
        classes: Tensor,
        attributes: Tensor,
        shares: Tensor,
        captions: Captions,
        texts: Tensor,
        words: Tensor,
        scale: Tensor,
        probe: nn.Linear,
    ) -> None:
        self.shares = shares
        self.classes, self.texts, self.words, self.scale, self.probe = classes, texts, words, scale, probe
        self.fits = captions.fits(classes, attributes).float()
        whole = classes < len(STYLES)
        shown = torch.stack([visible(style) for style in STYLES] + [torch.zeros(len(ATTRIBUTES), dtype=torch.bool)])
        self.shown = (shown[classes] & whole[:, None]).float()
        self.content = readable(attributes) * 2 - 1

    def __call__(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, partial = images[: len(self.classes)], images[len(self.classes) :]
        texts, words = (self.texts.detach(), self.words.detach()) if detach else (self.texts, self.words)
        logits = self.scale * images @ texts.mT
        caption = images.new_zeros(())
        for scores, fits in ((logits, self.fits), (logits.mT, self.fits.mT)):
            log_share = scores.log_softmax(1)
            caption = caption - ((log_share * fits).sum(1) / fits.sum(1).clamp(min=1)).mean() / 2
        first, second = slice(0, _PAIRS), slice(_PAIRS, 2 * _PAIRS)
        moved = images[second] - images[first]
        asked = words[self.classes[second]] - words[self.classes[first]]
        direction = 1 - F.cosine_similarity(moved, asked, eps=1e-3).mean()
        followed = F.cosine_similarity(partial - images[:_PARTIAL], asked[:_PARTIAL], eps=1e-2)
        completeness = (followed - self.shares).square().mean()
        error = (self.probe(images * 8) - self.content) ** 2 * self.shown
        return caption, direction, completeness, error.sum() / self.shown.sum()


def fit(
    folder: Path, minutes: float, contents: int = 7000, seed: int = 0, log: Path | None = None, name: str = "guide"
) -> None:
    """Fit for a time budget and write the named guide of `CONFIGS` into folder, as .json and .safetensors.

    Two stages: from nothing, the adversary growing; then again from a high learning rate, with a longer and smoother
    adversary, half-way pictures, and the normalisation fixed as it will be when the guide is used.
    """
    first = folder / f"{name}.safetensors"
    stage(first, 0.56 * minutes, contents, seed, log)
    stage(first, 0.44 * minutes, contents, seed + 7, log, first)


def stage(path: Path, minutes: float, contents: int, seed: int, log: Path | None, start: Path | None = None) -> None:
    """One stage of `fit`. start: weights of the first stage, which makes this the second."""
    import open_clip

    late, config = start is not None, CONFIGS[path.stem]
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**config)
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    probe = nn.Linear(config["embed_dim"], len(ATTRIBUTES))
    used: set[int] = set()
    if start is not None:
        model.load_state_dict({name: t.float() for name, t in read_checkpoint(start).tensors.items()})
        used.update(model.token_embedding.weight.ne(0).any(1).nonzero().flatten().tolist())
    model.visual.to(memory_format=torch.channels_last)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    size = config["vision_cfg"]["image_size"]

    def see(pictures: Tensor) -> Tensor:
        larger = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)
        larger = (((larger + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return F.normalize(model.visual(larger).float(), dim=-1)

    parameters = [*model.parameters(), *probe.parameters()]
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": 0.05},
            {"params": plain, "weight_decay": 0.0},
            {"params": list(probe.parameters()), "weight_decay": 0.0},
        ],
        lr=0.0,
    )
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    stream = batches(Gallery(contents, seed), seed + 1)
    words_rng, rng = random.Random(seed), torch.Generator().manual_seed(seed + 2)
    started, step = time.monotonic(), 0
    model.train()
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = (6e-4 if late else 1.5e-3) * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if late:  # the reading of the attributes is not kept in the file, so it learns anew, and fast
            optimizer.param_groups[2]["lr"] = 5e-3 * (1 - progress)
        ripe = 1.0 if late else progress
        if ripe > 0.6:  # settle on the statistics the shipped network will use
            for module in model.visual.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        pictures, classes, attributes, shares = next(stream)
        captions = describe(classes, attributes, words_rng)
        template = words_rng.choice(TEMPLATES)
        tokens = tokenizer(captions.sentences + [template.format(name) for name in CLASSES])
        used.update(tokens.unique().tolist())
        texts = F.normalize(model.encode_text(tokens), dim=-1)
        objective = Objective(
            classes,
            attributes,
            shares,
            captions,
            texts[: len(classes)],
            texts[len(classes) :],
            model.logit_scale.exp().clamp(max=60),
            probe,
        )
        if ripe > 0.05:
            probing = pictures.clone().requires_grad_()
            (slope,) = torch.autograd.grad(_total(objective(see(probing), detach=True), late), probing)
            pictures = pictures + min(1, ripe / 0.25) * worst_move(slope, rng, late)
        losses = objective(see(pictures))
        optimizer.zero_grad(set_to_none=True)
        _total(losses, late).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        keep = min(0.999, 1 - 1 / (step + 1))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - keep)
        if log and step % 100 == 0:
            with log.open("a") as file:
                told = zip(("caption", "direction", "completeness", "content"), losses, strict=True)
                file.write(f"{step} {progress:.3f} " + " ".join(f"{name} {loss:.3f}" for name, loss in told) + "\n")
        if step % 500 == 0:  # so that a stopped fit leaves something
            _write(path, average, used)
    _write(path, average, used)


def _total(losses: tuple[Tensor, Tensor, Tensor, Tensor], late: bool) -> Tensor:
    caption, direction, completeness, content = losses
    return caption + direction + late * completeness + content


def _write(path: Path, average: dict[str, Tensor], used: set[int]) -> None:
    """Half precision; rows of words that were never heard are zero, which is how a guide knows what it knows."""
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in average.items()}
    heard = torch.zeros(len(tensors["token_embedding.weight"]), 1, dtype=torch.half)
    heard[sorted(used)] = 1
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"] * heard
    write_safetensors(path, tensors, {"format": "pt"})
    path.with_suffix(".json").write_text(json.dumps(CONFIGS[path.stem], indent=2) + "\n")
