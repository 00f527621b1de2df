"""Time of a training beside another process that keeps a processor busy."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from multiprocessing import get_context

import torch

from benchmarks.processor import load
from nada_core import TextShift, adapt, load_generator, load_guide
from nada_core.portraits import RECIPE


def neighbor(steps: int = 80, times: int = 2) -> str:
    """Compare the wall time of a training that measures its number of threads with that of one thread."""
    generator, guide, shift = load_generator("portraits"), load_guide("portraits"), TextShift("photo", "joker")
    config = replace(RECIPE, steps=steps)
    others = load()
    seconds: dict[int, list[float]] = {0: [], 1: []}  # by the argument `threads` of adapt
    chosen = []
    busy = get_context("spawn").Process(target=_keep_busy, daemon=True)
    busy.start()
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # what ComfyUI would use
    try:
        adapt(generator, guide, shift, replace(config, steps=3))
        for _ in range(times):
            for threads, laps in seconds.items():
                start = time.perf_counter()
                result = adapt(generator, guide, shift, config, threads=threads)
                laps.append(time.perf_counter() - start)
                chosen += [] if threads else [str(result.domain.provenance["threads"])]
    finally:
        torch.set_num_threads(before)
        busy.kill()
    measured, one = min(seconds[0]), min(seconds[1])
    return (
        f"Beside another busy process ({others} before), {steps} steps of the built-in generator took "
        f"{measured:.1f} s where the training measures how many threads are quickest, as in ComfyUI "
        f"(chosen: {', '.join(chosen)}), and {one:.1f} s with one thread: {measured / one:.2f} times as long (wall "
        f"time, the shorter of {times} runs; goal: at most 1.3)."
    )


def _keep_busy() -> None:
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    while True:
        a @ a
