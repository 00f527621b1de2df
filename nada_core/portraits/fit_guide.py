"""Fit the built-in guide: a small CLIP whose image tower cannot be fooled by small changes.

A CLIP fitted on clean pictures is useless as a teacher: its gradients point to invisible noise. Training against an
adversary (Madry et al., arXiv:1706.06083; its gradients follow what eyes see: Engstrom et al., arXiv:1906.00945) makes
them point to pictures. The loss has three parts: captions (multi-positive InfoNCE), directions (the difference of one
content in two styles follows the difference of their words, which is what StyleGAN-NADA will ask of it), and content
(a linear reading of the embedding tells the attributes, as a web-scale CLIP's does).

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

from ..files import write_safetensors
from ..prompts import TEMPLATES
from .captions import CLASSES, Captions, describe
from .corrupt import corrupt
from .render import ATTRIBUTES, STYLES, readable, render, visible

CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": [2, 2, 2, 1], "width": 20},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
_EPS = 3.0  # the adversary's longest step, L2 over a 0..1 picture
_PAIRS, _BROKEN = 28, 12  # contents shown in two styles, and pictures that are none of them, in a batch


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


def batches(gallery: Gallery, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (pictures, classes, attributes): `_PAIRS` contents in a first and a second style, then broken ones."""
    rng = torch.Generator().manual_seed(seed)
    contents = len(gallery.attributes)
    while True:
        rows = torch.randint(contents, (_PAIRS,), generator=rng)
        first = torch.randint(len(STYLES), (_PAIRS,), generator=rng)
        first[: _PAIRS // 2] = 0
        second = (first + torch.randint(1, len(STYLES), (_PAIRS,), generator=rng)) % len(STYLES)
        other = torch.randint(contents, (_BROKEN,), generator=rng)
        worn = corrupt(gallery.take(torch.randint(len(STYLES), (_BROKEN,), generator=rng), other), rng)
        pictures = torch.cat([gallery.take(first, rows), gallery.take(second, rows)])
        classes = torch.cat([first, second, torch.full((_BROKEN,), len(STYLES))])
        attributes = gallery.attributes[torch.cat([rows, rows, other])]
        yield torch.cat([soften(pictures, rng), worn]), classes, attributes


class Objective:
    """The three losses of one batch, as a function of the image embeddings."""

    def __init__(self, classes: Tensor, attributes: Tensor, captions: Captions, texts: Tensor, words: Tensor,
                 scale: Tensor, probe: nn.Linear) -> None:  # fmt: skip
        self.classes, self.texts, self.words, self.scale, self.probe = classes, texts, words, scale, probe
        self.fits = captions.fits(classes, attributes).float()
        whole = classes < len(STYLES)
        shown = torch.stack([visible(style) for style in STYLES] + [torch.zeros(len(ATTRIBUTES), dtype=torch.bool)])
        self.shown = (shown[classes] & whole[:, None]).float()
        self.content = readable(attributes) * 2 - 1

    def __call__(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
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
        error = (self.probe(images * 8) - self.content) ** 2 * self.shown
        return caption, direction, error.sum() / self.shown.sum()


def fit(folder: Path, minutes: float = 60.0, contents: int = 8000, seed: int = 0, log: Path | None = None) -> None:
    """Fit for a time budget and write `guide.json` and `guide.safetensors` into folder."""
    import open_clip

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**CONFIG)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    probe = nn.Linear(CONFIG["embed_dim"], len(ATTRIBUTES))
    model.visual.to(memory_format=torch.channels_last)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    size = CONFIG["vision_cfg"]["image_size"]

    def see(pictures: Tensor) -> Tensor:
        larger = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)
        larger = (((larger + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return F.normalize(model.visual(larger).float(), dim=-1)

    parameters = [*model.parameters(), *probe.parameters()]
    decay = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=0.0
    )
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    stream = batches(Gallery(contents, seed), seed + 1)
    words_rng, rng = random.Random(seed), torch.Generator().manual_seed(seed + 2)
    started, step = time.monotonic(), 0
    used: set[int] = set()
    model.train()
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = 1.5e-3 * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if progress > 0.7:  # settle on the statistics the shipped network will use
            for module in model.visual.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        pictures, classes, attributes = next(stream)
        captions = describe(classes, attributes, words_rng)
        template = words_rng.choice(TEMPLATES)
        tokens = tokenizer(captions.sentences + [template.format(name) for name in CLASSES])
        used.update(tokens.unique().tolist())
        texts = F.normalize(model.encode_text(tokens), dim=-1)
        objective = Objective(
            classes, attributes, captions, texts[: len(classes)], texts[len(classes) :],
            model.logit_scale.exp().clamp(max=60), probe,
        )  # fmt: skip
        if progress > 0.05:
            probing = pictures.clone().requires_grad_()
            (slope,) = torch.autograd.grad(sum(objective(see(probing), detach=True), torch.zeros(())), probing)
            reach = 2 * _EPS * min(1, progress / 0.25) * torch.rand(len(pictures), 1, 1, 1, generator=rng)
            reach[torch.rand(len(pictures), generator=rng) < 1 / 6] = 0
            pictures = pictures + reach * slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        caption, direction, content = objective(see(pictures))
        optimizer.zero_grad(set_to_none=True)
        (caption + direction + content).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        keep = min(0.999, 1 - 1 / (step + 1))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - keep)
        if log and step % 100 == 0:
            with log.open("a") as file:
                parts = f"caption {caption:.3f} direction {direction:.3f} content {content:.3f}"
                file.write(f"{step} {progress:.3f} {parts}\n")
            if step % 1000 == 0:
                _write(folder, average, used)
    _write(folder, average, used)


def _write(folder: Path, average: dict[str, Tensor], used: set[int]) -> None:
    """Half precision; rows of words that were never heard are zero, which is how a guide knows what it knows."""
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in average.items()}
    heard = torch.zeros(len(tensors["token_embedding.weight"]), 1, dtype=torch.half)
    heard[sorted(used)] = 1
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"] * heard
    write_safetensors(folder / "guide.safetensors", tensors, {"format": "pt"})
    (folder / "guide.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
