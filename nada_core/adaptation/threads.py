"""The CPU threads of a run: measured on a sample of a step, before anything that enters the result is computed.

Rounding depends on the number of threads, so that one number is used for a whole run, resumed parts included.
"""

from __future__ import annotations

import torch

from ..runtime.threads import quickest_threads
from .batch import draw_batch
from .provenance import RunInputs
from .resume import Autosave, saved_progress


def choose_threads(inputs: RunInputs, threads: int | None, saver: Autosave | None) -> int:
    """Return the number of threads of a run; 0 leaves the caller's number, as always on a GPU.

    Args:
        threads: the number asked for, 0 to measure it, None for the caller's. An autosave has precedence.
    """
    if inputs.source.w_avg.device.type != "cpu":
        return 0
    if saver is not None and (saved := saved_progress(saver.path, saver.fingerprint).get("threads", 0)):
        return int(saved)
    return quickest_threads(lambda: _sample_step(inputs)) if threads == 0 else threads or 0


def _sample_step(inputs: RunInputs) -> None:
    """Pass the first latents of a run through the generator and the CLIP models, forward and backward."""
    config = inputs.config
    batch = draw_batch(inputs.source, config, torch.Generator().manual_seed(config.seed), 0)
    ws, noise, _ = batch.split(config.chunk or config.batch)[0]
    with torch.enable_grad():
        ws = ws.clone().requires_grad_()
        images = batch.augment(inputs.source.synthesize(ws, noise))
        outputs = [guide.encode_images(images).sum() for guide, _ in inputs.guides] or [images.sum()]
        torch.autograd.grad(torch.stack(outputs).sum(), ws)  # leaves no gradients in the networks
