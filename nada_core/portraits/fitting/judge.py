"""Fit the judge on clean, softened and spoiled renders, for style, "none of these" and attributes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ...io.metadata import write_safetensors
from ..judge import NONE, Judge
from ..render import ATTRIBUTES, STYLES, readable, visible
from .corrupt import corrupt
from .guide import Gallery, soften

_WHOLE, _SPOILED = 56, 12


def fit(folder: Path, minutes: float, contents: int = 6000, seed: int = 100, log: Path | None = None) -> None:
    """Fit for a time budget and write `judge.safetensors` into folder. The contents are not those of the guide."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    gallery, judge = Gallery(contents, seed), Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=0.0, weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in judge.named_parameters()}
    shown = torch.stack([visible(style) for style in STYLES]).float()
    started, step = time.monotonic(), 0
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        styles = torch.randint(len(STYLES), (_WHOLE + _SPOILED,), generator=rng)
        rows = torch.randint(contents, (_WHOLE + _SPOILED,), generator=rng)
        pictures = gallery.take(styles, rows)
        pictures = torch.cat([soften(pictures[:_WHOLE], rng, move=0.0), corrupt(pictures[_WHOLE:], rng)])
        with torch.autocast("cpu", torch.bfloat16):
            logits, read = judge(pictures.contiguous(memory_format=torch.channels_last))
        labels = torch.cat([styles[:_WHOLE], torch.full((_SPOILED,), NONE)])
        mask = shown[styles[:_WHOLE]]
        error = (read[:_WHOLE].float() - readable(gallery.attributes[rows[:_WHOLE]])) * mask
        loss = F.cross_entropy(logits.float(), labels) + 10 * error.square().sum() / mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        step += 1
        keep = min(0.998, 1 - 1 / (step + 1))
        with torch.no_grad():
            for name, p in judge.named_parameters():
                average[name].lerp_(p, 1 - keep)
        if log and step % 200 == 0:
            with log.open("a") as file:
                right = float((logits.argmax(1) == labels).float().mean())
                missed = float(error.abs().sum() / mask.sum())
                file.write(f"{step} {progress:.3f} loss {loss:.3f} right {right:.3f} attribute error {missed:.3f}\n")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.half() for name, p in average.items()}
    write_safetensors(folder / "judge.safetensors", weights, {"reads": ",".join(ATTRIBUTES)})
