"""Fit the built-in generator: a StyleGAN2 that draws the photo of its latent's content, by regression.

Every latent has a true picture, so the loss is the squared error and no discriminator is needed. With equalized
learning rates the stored weights are standard normal, hence a learning rate about a hundred times the usual one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...models.checkpoints import save_generator
from ...models.stylegan2 import StyleGAN2
from .. import RECOMMENDED
from ..content import Content
from ..render import RESOLUTION, render
from .training import Average, budget, cosine, optimizer_step, write_log

WIDTHS = (96, 96, 96, 64, 32)

_LR, _BATCH = 1.5e-2, 16


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of a batch of pictures in -1..1."""
    return float(10 * torch.log10(4 / (pictures - truth).detach().square().mean()))


def fit(folder: Path, minutes: float, seed: int = 0, log: Path | None = None) -> None:
    """Fit for a time budget and write `generator.safetensors` and `content.safetensors` into folder."""
    rng = torch.Generator().manual_seed(seed)
    generator = StyleGAN2(RESOLUTION, z_dim=24, w_dim=64, mapping_layers=2, widths=WIDTHS, rng=rng)
    generator.requires_grad_(False)
    content = Content.measure(generator, rng)
    generator.w_avg.copy_(content.mean)
    generator.synthesis.requires_grad_(True)
    trained = {n: p for n, p in generator.synthesis.named_parameters() if not n.endswith("noise_strength")}
    optimizer = torch.optim.Adam(trained.values(), lr=_LR, betas=(0.9, 0.99))
    average = Average(trained, 0.998)
    for step, progress in budget(minutes):
        with torch.no_grad():
            ws = generator.map(torch.randn(_BATCH, generator.z_dim, generator=rng))
            truth = render(content(ws))
        pictures = generator.synthesize(ws, "none")
        error = pictures - truth
        loss = 4 * error.square().mean() + 0.3 * error.abs().mean()
        optimizer_step(optimizer, loss, cosine(_LR, step, progress, 100, floor=0.02))
        average.update(trained, step)
        write_log(log, step, 200, progress, loss=loss, psnr=psnr(pictures, truth))
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(average.tensors[name])
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(generator, folder / "generator.safetensors", {"fitted": "portraits, photo"}, True, RECOMMENDED)
    content.save(folder / "content.safetensors")
