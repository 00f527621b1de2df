"""Open files from outside in forked processes, and report what each one did: for `benchmarks.fuzz` and `tests/attacks`.

A child process has a limit of memory, of CPU time and of wall time, and an audit hook that notes commands, connections
and written files. Linux only.

    python -m benchmarks.isolation FOLDER

reads lines of JSON, {"reader": "generator", "paths": [...]}, and writes one line of JSON for every path. FOLDER holds
`generator.safetensors`, the generator that readers of latents and directions get, and `tiny-clip.json` and
`guide.safetensors`, a CLIP model.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

MOST_SECONDS = 5  # of CPU time for one file
MOST_WAIT = 60  # seconds of wall time for one file, for readers that wait
MOST_EXTRA = 256 << 20  # bytes of memory beyond twice the size of the file
MOST_PER_PIXEL, MOST_PIXELS = 40, 100_000_000  # of an image; more are refused
_RESERVE = 512 << 20  # bytes of address space beyond that, of which little is resident

Reader = Callable[[str], object]

# Audit events that no reader may cause, once every module is imported.
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "subprocess.Popen",
    "pickle.find_class",
)
_FORBIDDEN_PREFIXES = ("socket.", "ctypes.", "shutil.", "urllib.", "os.fork")


def readers(folder: Path) -> dict[str, Reader]:
    """Map names to functions that open one file. folder: see the module."""
    from nada_core import (
        load_directions,
        load_encoder,
        load_generator,
        load_guide,
        load_identity,
        load_image,
        load_latents,
        read_domain,
        read_provenance,
    )
    from nada_core.adaptation.resume import load_run
    from nada_core.cli.file_commands import Info
    from nada_core.io.checkpoint_file import read_checkpoint

    generator = load_generator(folder / "generator.safetensors")
    return {
        "checkpoint": read_checkpoint,
        "generator": load_generator,
        "guide": lambda path: load_guide(path, folder / "tiny-clip.json"),
        "guide-config": lambda path: load_guide(folder / "guide.safetensors", path),
        "encoder": load_encoder,
        "identity": load_identity,
        "domain": read_domain,
        "latents": lambda path: load_latents(path, generator),
        "directions": lambda path: load_directions(path, generator),
        "autosave": lambda path: load_run(path, "fingerprint"),
        "provenance": read_provenance,
        "image": load_image,
        "info": lambda path: Info(file=path).run(),
        # Planted faults, for the test of this module.
        "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
        "hang": lambda path: max(iter(int, 1)),
        "bug": lambda path: {}["absent"],
        "memory": lambda path: bytearray(MOST_EXTRA + (64 << 20)),
        "execution": lambda path: os.system("true"),
    }


class _Audit:
    """Notes the events that no reader may cause."""

    def __init__(self) -> None:
        self.active, self.events = False, list[str]()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        code = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
        if event in _FORBIDDEN or event.startswith(_FORBIDDEN_PREFIXES) or writes or code.startswith("<str"):
            self.events.append(f"{event}{arguments!r:.200}")


def global_state() -> dict[str, int]:
    """Identities of all module globals and class attributes of the readers, and of PyTorch's switches."""
    import torch

    state = {"dtype": id(torch.get_default_dtype()), "threads": torch.get_num_threads()}
    for module in [module for name, module in list(sys.modules.items()) if name.startswith("nada_core.")]:
        for name, value in vars(module).items():
            state[f"{module.__name__}.{name}"] = _identity(value)
            if isinstance(value, type) and value.__module__.startswith("nada_core."):
                attributes = {key: item for key, item in vars(value).items() if not key.startswith(("__", "_abc"))}
                state |= {f"{module.__name__}.{name}.{key}": _identity(item) for key, item in attributes.items()}
    return state


def _identity(value: object) -> int:
    return len(value) if isinstance(value, dict | list | set) and not isinstance(value, ModuleType) else id(value)


def outcome(reader: Reader, path: str, audit: _Audit, state: dict[str, int]) -> dict[str, Any]:
    """Open one file in this process. state: `global_state` before."""
    is_file = os.path.isfile(path)  # to open a pipe would wait for its other end
    size, pixels = (os.stat(path).st_size, claimed_pixels(path)) if is_file else (0, 0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status()
    allowed = 2 * size + MOST_EXTRA + (MOST_PER_PIXEL * pixels if pixels <= MOST_PIXELS else 0)
    limit = before["VmSize"] + allowed + _RESERVE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    result = {"kind": "read", "type": "", "detail": ""}
    audit.events.clear()
    audit.active = True
    try:
        reader(path)
    except Exception as error:
        result = _failure(error)
    audit.active = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result["memory"] = _status()["VmHWM"] - before["VmRSS"]
    gc.collect()
    after = global_state()
    changes = sorted(name for name in state.keys() | after.keys() if state.get(name) != after.get(name))
    if result["memory"] > allowed:
        result |= {"kind": "memory", "detail": f"{result['memory'] >> 20} MiB for {size} bytes"}
    if audit.events or changes:
        result |= {"kind": "execution", "detail": " ".join([*audit.events, *changes])[:1000]}
    return result


def claimed_pixels(path: str) -> int:
    """The pixels that the header of an image names, 0 for other files: a few bytes may stand for millions."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Exception:  # no image, or a damaged one
        return 0


def _failure(error: BaseException) -> dict[str, Any]:
    """Refusals are errors that the package raises on purpose: of its own types, or a ValueError from its own code."""
    from nada_core import CheckpointError, GuideError

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    typed = isinstance(error, CheckpointError | GuideError)
    refused = typed or (isinstance(error, ValueError) and "/nada_core/" in innermost)
    text = f"{type(error).__name__}: {error!s:.300}"
    if any(isinstance(link, MemoryError) or "allocate memory" in str(link)[:1000] for link in chain):
        return {"kind": "memory", "type": type(error).__name__, "detail": text}
    if refused:
        return {"kind": "refused", "type": type(error).__name__, "detail": text}
    lines = "".join(traceback.format_tb(error.__traceback__, -4))
    return {"kind": "bug", "type": type(error).__name__, "detail": f"{text}\n{lines}"}


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Vm")}


def open_all(reader: Reader, paths: Sequence[str], audit: _Audit) -> Iterator[dict[str, Any]]:
    """Open files one after the other in a child process; a new one continues after one that ended."""
    done = 0
    while done < len(paths):
        for result in _child(reader, paths[done:], audit):
            yield result
            done += 1


def _child(reader: Reader, paths: Sequence[str], audit: _Audit) -> Iterator[dict[str, Any]]:
    """Yield the results of a child process; the last is that of the file that ended it, if any."""
    source, target = os.pipe()
    trace_path = Path(tempfile.gettempdir(), f"nada-fuzz-{os.getpid()}.trace")
    pid = os.fork()
    if pid == 0:
        os.close(source)
        with os.fdopen(target, "w") as pipe, trace_path.open("w") as trace, Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            faulthandler.enable(trace)
            faulthandler.register(signal.SIGPROF, trace, chain=True)  # then the default action ends the process
            state = global_state()
            for path in paths:
                faulthandler.dump_traceback_later(MOST_WAIT, exit=True, file=trace)
                pipe.write(json.dumps(outcome(reader, path, audit, state)) + "\n")
                pipe.flush()
        os._exit(0)
    os.close(target)
    count = 0
    with os.fdopen(source) as pipe:
        for line in pipe:
            yield json.loads(line)
            count += 1
    _, status = os.waitpid(pid, 0)
    if count < len(paths):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        kind = "hang" if number in (signal.SIGPROF, 0) else "crash"
        detail = f"signal {number}\n{trace_path.read_text()[:3000]}"
        yield {"kind": kind, "type": "", "detail": detail, "memory": 0}
    trace_path.unlink(missing_ok=True)


def serve(folder: Path, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until the input ends. See the module."""
    known, audit = readers(folder), _Audit()
    for reader, path in (("generator", "generator.safetensors"), ("guide", "guide.safetensors")):
        known[reader](str(folder / path))  # imports what is imported on first use
    load_all_plugins()
    gc.collect()
    gc.freeze()  # so that collections in the children look at their own objects only
    for line in requests:
        request = json.loads(line)
        for result in open_all(known[request["reader"]], request["paths"], audit):
            answers.write(json.dumps(result) + "\n")
            answers.flush()


def load_all_plugins() -> None:
    """Import what Pillow, numpy and PyTorch import on first use."""
    import numpy.lib.format  # noqa: F401
    import torch
    from PIL import Image, ImageCms, ImageOps  # noqa: F401

    Image.init()
    repr(torch.zeros(1))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.stdin, sys.stdout)
