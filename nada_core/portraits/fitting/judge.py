"""Fit the judge on clean, augmented and corrupted pictures to predict style, "broken image" and attributes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ...io.metadata import write_safetensors
from ..judge import BROKEN, CLASSES, Judge
from ..render import ATTRIBUTES, STYLES, readable, visible
from .corrupt import corrupt
from .guide import Gallery, augment
from .training import Average, budget, cosine, optimizer_step, seeded, write_log

_INTACT, _CORRUPTED = 56, 12  # pictures of each kind in a batch


def fit(folder: Path, minutes: float, contents: int = 6000, seed: int = 100, log: Path | None = None) -> None:
    """Fit for a time budget and write `judge.safetensors` into folder. Its contents are not those of the guides."""
    rng = torch.Generator().manual_seed(seed + 1)
    gallery = Gallery(contents, seed)
    with seeded(seed):
        judge = Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=0.0, weight_decay=0.01)
    average = Average(judge.state_dict(), 0.998)
    masks = torch.stack([visible(style) for style in STYLES]).float()
    for step, progress in budget(minutes):
        styles = torch.randint(len(STYLES), (_INTACT + _CORRUPTED,), generator=rng)
        rows = torch.randint(contents, (_INTACT + _CORRUPTED,), generator=rng)
        pictures = gallery.pictures_of(styles, rows)
        pictures = torch.cat([augment(pictures[:_INTACT], rng, move=0.0), corrupt(pictures[_INTACT:], rng)])
        with torch.autocast("cpu", torch.bfloat16):
            logits, predicted = judge(pictures.contiguous(memory_format=torch.channels_last))
        labels = torch.cat([styles[:_INTACT], torch.full((_CORRUPTED,), CLASSES.index(BROKEN))])
        mask = masks[styles[:_INTACT]]
        error = (predicted[:_INTACT].float() - readable(gallery.attributes[rows[:_INTACT]])) * mask
        loss = F.cross_entropy(logits.float(), labels) + 10 * error.square().sum() / mask.sum()
        optimizer_step(optimizer, loss, cosine(2e-3, step, progress, 200), clip=judge.parameters())
        average.update(judge.state_dict(), step)
        accuracy = (logits.argmax(1) == labels).float().mean()
        write_log(log, step, 200, progress, loss=loss, accuracy=accuracy, error=error.abs().sum() / mask.sum())
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "judge.safetensors", average.half(), {"reads": ",".join(ATTRIBUTES)})
