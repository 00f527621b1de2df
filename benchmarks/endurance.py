"""Interrupt trainings, inversions, tunings and saves at random moments, and measure memory over a long training.

    python -m benchmarks.endurance                      kill -9 and memory
    python -m benchmarks.endurance --part kill --times 20
    COMFYUI_PATH=... python -m benchmarks.endurance --part comfyui

Every interrupted task runs again with the same command; its result must equal that of an uninterrupted process bit for
bit, and every file that exists after the interruption must be whole. `comfyui` does the same with the server of
ComfyUI, by kill -9 and by Cancel, and then queues 200 prompts; it needs what tests/real needs. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from nada_core import (
    AdaptConfig,
    InvertConfig,
    LayerChoice,
    TextShift,
    TuneConfig,
    adapt,
    invert,
    load_generator,
    load_guide,
    render,
    sample,
    save_generator,
    save_latents,
    tune,
)
from nada_core.io.checkpoint_file import read_checkpoint

ROOT = Path(__file__).parents[1]
RESULT = "result.safetensors"
_START = "running"  # printed by a task when its imports are done


# ---- the tasks ----------------------------------------------------------------------------------------------------


def _training(folder: Path, seed: int) -> None:
    layers = LayerChoice(mode="adaptive", count=4, every=7)
    config = AdaptConfig(steps=60, lr=0.01, layers=layers, ema=0.9, autosave_every=5, seed=seed)
    autosave = folder / "autosave.safetensors"
    result = adapt(
        load_generator("portraits"),
        load_guide("portraits"),
        TextShift("photo", "zombie"),
        config,
        autosave=autosave,
        resume=autosave.exists(),
        snapshots=folder / "snapshots",
        snapshot_every=20,
    )
    save_generator(result.generator, folder / RESULT, {})


def _inversion(folder: Path, seed: int) -> None:
    generator = load_generator("portraits")
    images = render(generator, sample(generator, [seed]))
    config = InvertConfig(steps=60, lpips=0.0, id=0.0, seed=seed)
    save_latents(invert(generator, images, config).latents, folder / RESULT)


def _tuning(folder: Path, seed: int) -> None:
    generator = load_generator("portraits")
    images = render(generator, sample(generator, [seed]))
    config = TuneConfig(steps=60, lpips=0.0, seed=seed)
    save_generator(tune(generator, images, sample(generator, [seed + 1]), config).generator, folder / RESULT, {})


def _saving(folder: Path, seed: int) -> None:
    generator = load_generator("portraits")
    for count in range(60):
        generator.recommended = {"source": f"{seed}.{count}"}
        save_generator(generator, folder / RESULT, {})


TASKS: dict[str, Callable[[Path, int], None]] = {
    "training": _training,
    "inversion": _inversion,
    "tuning": _tuning,
    "saving": _saving,
}


# ---- kill -9 ------------------------------------------------------------------------------------------------------


def _start(task: str, folder: Path, seed: int) -> subprocess.Popen[str]:
    """Start a task in a process of its own, and wait for the end of its imports."""
    command = [sys.executable, "-m", "benchmarks.endurance", "--task", task, "--out", str(folder), "--seed", str(seed)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != _START:
        raise RuntimeError(f"{task} did not start")
    return process


def _finish(task: str, folder: Path, seed: int) -> float:
    """Run a task to its end and return its seconds."""
    process, start = _start(task, folder, seed), time.monotonic()
    if code := process.wait():
        raise RuntimeError(f"{task} ended with exit status {code}")
    return time.monotonic() - start


def _interrupt(task: str, folder: Path, seed: int, seconds: float, rng: random.Random) -> float:
    """Kill a task at a random moment of its usual duration and return the moment in seconds."""
    while True:
        process, moment = _start(task, folder, seed), rng.uniform(0, seconds)
        time.sleep(moment)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            return moment
        shutil.rmtree(folder)  # it was quicker than usual
        folder.mkdir()


def digest(path: Path) -> str:
    """The SHA-256 of the tensors of a file; the order of its metadata differs from one writing to the next."""
    tensors = read_checkpoint(path).tensors
    content = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(content).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The digests of the result and of the snapshots of a task."""
    files = [folder / RESULT, *(folder / "snapshots").glob("*.safetensors")]
    return {path.name: digest(path) for path in files}


def torn_files(folder: Path) -> list[str]:
    """Names of the files below a folder that cannot be read, except temporary ones."""
    torn = []
    for path in folder.rglob("*.safetensors"):
        try:
            read_checkpoint(path)
        except ValueError as error:  # a CheckpointError
            torn.append(f"{path.name}: {error}")
    return torn


def kill(times: int, seed: int) -> Iterator[str]:
    """Kill every task `times` times, each once in a run of its own, and run it again."""
    rng = random.Random(seed)
    yield "| task | kill -9 | after s, least-most | torn files | results that differ |\n|---|---|---|---|---|"
    for task in TASKS:
        moments, torn, different = [], 0, 0
        with tempfile.TemporaryDirectory() as name:
            seconds = _finish(task, reference := _folder(name, "reference"), seed)
            for count in range(times):
                folder = _folder(name, str(count))
                moments.append(_interrupt(task, folder, seed, seconds, rng))
                torn += len(torn_files(folder))
                _finish(task, folder, seed)
                different += digests(folder) != digests(reference)
        yield f"| {task} | {times} | {min(moments):.1f}-{max(moments):.1f} | {torn} | {different} |"


def _folder(parent: str, name: str) -> Path:
    folder = Path(parent, name)
    folder.mkdir()
    return folder


# ---- memory -------------------------------------------------------------------------------------------------------


def resident_memory(pid: int | str = "self") -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def slope(values: list[float]) -> float:
    """The slope of a least-squares line through equally spaced values."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.arange(len(y), dtype=torch.float64)
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def memory(steps: int) -> Iterator[str]:
    """Resident memory of a training of the built-in generator, without its first fifth."""
    resident: list[float] = []
    generator, guide = load_generator("portraits"), load_guide("portraits")
    config = replace(generator.recommended_settings("adapt", AdaptConfig), steps=steps)
    adapt(generator, guide, TextShift("photo", "joker"), config, lambda _: resident.append(resident_memory()))
    late = resident[steps // 5 :]
    yield (
        f"Training of {steps} steps: {late[0]:.0f} MiB after {steps // 5} steps, {late[-1]:.0f} MiB at the end, "
        f"slope {slope(late) * 1024:.2f} KiB per step."
    )


# ---- command line -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("kill", "memory", "comfyui"), action="append", help="default: kill, memory")
    parser.add_argument("--times", type=int, default=5, help="interruptions of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the long training (%(default)s)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts queued in ComfyUI (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (%(default)s)")
    parser.add_argument("--task", choices=tuple(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # rounding depends on it
    if args.task:
        sys.stdout.write(_START + "\n")
        sys.stdout.flush()
        TASKS[args.task](args.out, args.seed)
        return
    parts = args.part or ["kill", "memory"]
    if "kill" in parts:
        _print(kill(args.times, args.seed))
    if "memory" in parts:
        _print(memory(args.steps))
    if "comfyui" in parts:
        command = [sys.executable, "tests/real/endurance.py", *map(str, (args.times, args.seed, args.prompts))]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
