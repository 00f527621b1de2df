"""Interrupt trainings in ComfyUI by Cancel and by kill -9, and queue many prompts.

    COMFYUI_PATH=... python -m benchmarks.endurance --part comfyui

runs this file.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import PREFIX, comfy_path, comfy_python, pack_path
from graph import Prompt, chain, changed, find, short
from server import Event, Server, serve

from benchmarks.endurance import digest, resident_memory, slope, torn_files

STEPS = 60
TRAINING = ("LoadGenerator", "LoadGuide", "ShiftFromText", "AdaptGenerator", "SaveGenerator")
LIGHT = ("LoadGenerator", "SampleLatents", "Render")
_OUTPUT = Path("output", "stylegan_nada")


def _serve(base: Path) -> Any:
    return serve(comfy_path(), comfy_python(), pack_path(), base)


def _training(server: Server, seed: int) -> Prompt:
    prompt = short(chain(server.object_info(), *(PREFIX + name for name in TRAINING)), STEPS)
    prompt = changed(prompt, f"{PREFIX}SaveGenerator", filename_prefix=f"run{seed}")
    return changed(prompt, f"{PREFIX}AdaptGenerator", seed=seed)


def _result(server: Server, prompt: Prompt, seed: int) -> str:
    """Run a training to its end and return the digest of the file that it saves."""
    run = server.run(prompt)
    if run.status != "success":
        raise RuntimeError(f"{run.status}: {run.error}")
    (path,) = server.base.joinpath(_OUTPUT).glob(f"run{seed}_*.safetensors")
    return digest(path)


class _Moment:
    """Call an action a random time after a random step of a training."""

    def __init__(self, server: Server, rng: random.Random, signals: int) -> None:
        self.server, self.step, self.delay, self.signals = server, rng.randrange(1, STEPS), rng.uniform(0, 0.1), signals

    def __call__(self, event: Event) -> None:
        if event.kind != "progress" or event.data["value"] < self.step or not self.signals:
            return
        time.sleep(self.delay)
        for _ in range(self.signals):
            self.server.interrupt()
        self.signals = 0


def _cancel(server: Server, rng: random.Random, seed: int) -> tuple[str, str]:
    prompt = _training(server, seed)
    status = server.run(prompt, on_event=_Moment(server, rng, rng.choice((1, 1, 5)))).status
    return status, _result(server, prompt, seed) if status == "interrupted" else "finished before"


def _kill(base: Path, rng: random.Random, seed: int) -> tuple[str, list[str]]:
    with _serve(base) as server:
        prompt, step = _training(server, seed), rng.randrange(1, STEPS)
        for event in server.events(server.queue(prompt)):
            if event.kind == "progress" and event.data["value"] >= step:
                break
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    torn = torn_files(base / "output")
    with _serve(base) as server:
        return _result(server, prompt, seed), torn


def interruptions(times: int, seed: int) -> Iterator[str]:
    """Compare the results of trainings that were interrupted with those of another server that was not."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, _serve(Path(name, "reference")) as server:
        expected = [_result(server, _training(server, index), index) for index in range(times)]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        with _serve(base) as server:
            canceled = [_cancel(server, rng, index) for index in range(times)]
        torn = len(torn_files(base / "output"))
        equal = sum(result == other for (_, result), other in zip(canceled, expected, strict=True))
        number = sum(status == "interrupted" for status, _ in canceled)
        yield "| ComfyUI | interruptions | torn files | equal to the uninterrupted run |\n|---|---|---|---|"
        yield f"| Cancel | {number} | {torn} | {equal} of {times} |"
    with tempfile.TemporaryDirectory() as name:
        killed = [_kill(Path(name), rng, index) for index in range(times)]
        equal = sum(result == other for (result, _), other in zip(killed, expected, strict=True))
        yield f"| kill -9 of the server | {times} | {sum(len(torn) for _, torn in killed)} | {equal} of {times} |"


def many_prompts(count: int) -> Iterator[str]:
    """Queue prompts with different seeds and compare the memory of the server over time."""
    with tempfile.TemporaryDirectory() as name, _serve(Path(name)) as server:
        prompt = chain(server.object_info(), *(PREFIX + node for node in LIGHT), "PreviewImage")
        (sample,) = find(prompt, f"{PREFIX}SampleLatents")
        resident = []
        for seed in range(count):
            prompt[sample]["inputs"]["seed"] = seed
            if (run := server.run(prompt)).status != "success":
                raise RuntimeError(f"prompt {seed}: {run.error}")
            resident.append(resident_memory(server.process.pid))
        late = resident[count // 4 :]
        yield (
            f"{count} queued prompts: {late[0]:.0f} MiB after {count // 4}, {late[-1]:.0f} MiB at the end, slope "
            f"{slope(late) * 1024:.1f} KiB per prompt."
        )


def main() -> None:
    times, seed, prompts = map(int, sys.argv[1:])
    for line in (*interruptions(times, seed), *many_prompts(prompts)):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
