"""Fit the built-in generator: StyleGAN2 taught by regression to draw the photo of its own latent's content.

There is a true picture for every latent, so no discriminator is needed: the squared error is the loss. Equalised
weights are standard normal, which is why the learning rate is a hundred times a normal one.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from ...models.checkpoints import save_generator
from ...models.stylegan2 import StyleGAN2
from .. import RECOMMENDED
from ..content import Content
from ..render import RESOLUTION, render

WIDTHS = (96, 96, 96, 64, 32)

_RATE, _BATCH = 1.5e-2, 16


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1, over the whole batch."""
    return float(10 * torch.log10(4 / (pictures - truth).square().mean()))


def fit(folder: Path, minutes: float, seed: int = 0, log: Path | None = None) -> None:
    """Fit for a time budget and write `generator.safetensors` and `content.safetensors` into folder."""
    rng = torch.Generator().manual_seed(seed)
    generator = StyleGAN2(RESOLUTION, z_dim=24, w_dim=64, mapping_layers=2, widths=WIDTHS, rng=rng)
    generator.requires_grad_(False)
    content = Content.measure(generator, rng)
    generator.w_avg.copy_(content.mean)
    generator.synthesis.requires_grad_(True)
    trained = {n: p for n, p in generator.synthesis.named_parameters() if not n.endswith("noise_strength")}
    optimizer = torch.optim.Adam(trained.values(), lr=_RATE, betas=(0.9, 0.99))
    average = {name: p.detach().clone() for name, p in trained.items()}
    started, step = time.monotonic(), 0
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        rate = _RATE * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            ws = generator.map(torch.randn(_BATCH, generator.z_dim, generator=rng))
            truth = render(content(ws))
        error = generator.synthesize(ws, "none") - truth
        loss = 4 * error.square().mean() + 0.3 * error.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        keep = min(0.998, 1 - 1 / (step + 1))
        with torch.no_grad():
            for name, p in trained.items():
                average[name].lerp_(p, 1 - keep)
        if log and step % 200 == 0:
            with log.open("a") as file:
                file.write(f"{step} {progress:.3f} {loss:.4f} {psnr(error, torch.zeros_like(error)):.2f} dB\n")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(average[name])
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(generator, folder / "generator.safetensors", {"fitted": "portraits, photo"}, True, RECOMMENDED)
    content.save(folder / "content.safetensors")
