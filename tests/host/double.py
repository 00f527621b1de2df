"""The modules of ComfyUI that the pack imports, as doubles: `install` inserts them, `load_pack` loads the pack.

    host = install(monkeypatch, tmp_path, version="0.20.1")
    with load_pack(ROOT, host) as pack:
        executor = Executor(host, pack.nodes)

A call that the chosen version would reject raises, and so does any name that the contract does not have.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from .contract import bind, facts, signature, with_signature
from .folders import Folders
from .pictures import build_ui
from .schema import build_io


@dataclass
class Bar:
    """A progress bar: the calls of a node, and those that reach the user."""

    total: int
    ticks: list[tuple[int, int, Any]] = field(default_factory=list)  # value, total, preview
    shown: list[int] = field(default_factory=list)  # the values that passed the throttle

    @property
    def previews(self) -> list[Any]:
        return [preview for _, _, preview in self.ticks if preview is not None]


@dataclass
class Host:
    """The host of a test: a record of the calls that nodes make, and settings for the answers."""

    version: str
    root: Path
    interrupt_base: type[BaseException]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # the result of get_torch_device
    free_bytes: int = 8 << 30  # the result of get_free_memory
    bars: list[Bar] = field(default_factory=list)
    freed: list[tuple[float, torch.device]] = field(default_factory=list)  # requests to free_memory
    emptied: int = 0  # calls of soft_empty_cache
    unloaded: int = 0  # calls of unload_all_models
    previews: list[Path] = field(default_factory=list)  # pictures written to temp
    saved: list[Path] = field(default_factory=list)  # pictures written to output by ImageSaveHelper
    checks: int = 0  # checks for an interruption
    running: str | None = None  # the id of the running node
    texts: list[tuple[str, str]] = field(default_factory=list)  # (node id, text) shown on nodes
    routes: dict[str, Any] = field(default_factory=dict)  # path -> handler of a POST route
    args: SimpleNamespace = field(default_factory=SimpleNamespace)
    modules: dict[str, ModuleType] = field(default_factory=dict)
    interrupted: bool = False  # the user has pressed Cancel and no node has noticed yet
    _countdown: int | None = None

    def __post_init__(self) -> None:
        contract = facts(self.version)
        self.args = SimpleNamespace(**contract["cli_args"])
        self.InterruptProcessingException = type("InterruptProcessingException", (self.interrupt_base,), {})
        self.OOM_EXCEPTION = torch.OutOfMemoryError
        self.folder_paths = Folders(self.root, contract["supported_pt_extensions"], self.at_least(0, 28))
        self.models_dir, self.input, self.output, self.temp = (
            Path(self.folder_paths.models_dir),
            *(Path(getattr(self.folder_paths.served, kind)) for kind in ("input", "output", "temp")),
        )
        self.io = build_io(self.version)
        self.ui = build_ui(self)

    def at_least(self, *version: int) -> bool:
        return tuple(int(part) for part in self.version.split(".")) >= version

    def interrupt_after(self, n_checks: int) -> None:
        """Simulate the Cancel button: the next `n_checks` checks pass, and the one after them interrupts."""
        self._countdown = n_checks

    def check(self) -> None:
        """Check for an interruption, as a node does."""
        self.checks += 1
        if self._countdown is not None:
            self._countdown -= 1
            self.interrupted = self.interrupted or self._countdown < 0
        self.stop_if_interrupted()

    def send_progress_text(self, text: str, node_id: str, **_: Any) -> None:
        assert isinstance(text, str) and isinstance(node_id, str)
        self.texts.append((node_id, text))

    def stop_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted, self._countdown = False, None  # one interruption stops one prompt
            raise self.InterruptProcessingException

    def is_oom(self, error: BaseException) -> bool:
        accelerator = isinstance(error, getattr(torch, "AcceleratorError", RuntimeError))
        return isinstance(error, self.OOM_EXCEPTION) or accelerator and "out of memory" in str(error).lower()


def install(
    patch: Any, tmp_path: Path, version: str = "0.33.0", interrupt_base: type[BaseException] | None = None
) -> Host:
    """Insert the double of `version` into sys.modules until the test ends.

    Args:
        patch: pytest's monkeypatch, or a mapping such as a copy of sys.modules that receives the modules.
        interrupt_base: The base class of InterruptProcessingException: Exception up to 0.19, BaseException since.
    """
    contract = facts(version)
    base = interrupt_base or {"Exception": Exception, "BaseException": BaseException}[contract["interrupt_base"]]
    host = Host(version, tmp_path, base)
    host.modules = build_modules(host)
    for name, module in host.modules.items():
        if isinstance(patch, MutableMapping):
            patch[name] = module
        else:
            patch.setitem(sys.modules, name, module)
    return host


# ---- the modules --------------------------------------------------------------------------------------------------


class Doubled(ModuleType):
    """A module whose missing names raise an error with instructions."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"The double of {self.__name__} has no {name!r}. If the oldest supported ComfyUI has it, add it to "
            "tests/host/make_contract.py and to the double."
        )


def build_modules(host: Host) -> dict[str, ModuleType]:
    contract = facts(host.version)

    def functions(owner: Any, group: str) -> dict[str, Any]:
        return {
            name: with_signature(f"{group}.{name}", parameters, getattr(owner, name))
            for name, parameters in contract[group].items()
        }

    folders = host.folder_paths
    values: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.cli_args": {"args": host.args},
        "comfy.model_management": {
            "OOM_EXCEPTION": host.OOM_EXCEPTION,
            "InterruptProcessingException": host.InterruptProcessingException,
            **functions(Management(host), "model_management"),
        },
        "comfy.utils": {"ProgressBar": progress_bar(host)},
        "comfy_execution": {},
        "comfy_execution.utils": functions(Execution(host), "comfy_execution"),
        "server": {"PromptServer": SimpleNamespace(instance=Server(host, functions(host, "server")))},
        "comfy_api": {},
        "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": host.io, "ui": host.ui},
        "folder_paths": {
            "models_dir": folders.models_dir,
            "folder_names_and_paths": folders.folder_names_and_paths,
            "supported_pt_extensions": folders.supported_pt_extensions,
            **functions(folders, "folder_paths"),
        },
    }
    modules: dict[str, ModuleType] = {}
    for name, members in values.items():
        modules[name] = Doubled(name)
        vars(modules[name]).update(members)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, modules[name])
    return modules


class ComfyExtension:
    async def on_load(self) -> None:
        """Called when the pack is loaded."""

    async def get_node_list(self) -> list[type]:
        raise NotImplementedError


class Execution:
    """The function of comfy_execution.utils."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def get_executing_context(self) -> Any:
        return None if self.host.running is None else SimpleNamespace(node_id=self.host.running)


class Server:
    """The server: it records routes and texts."""

    def __init__(self, host: Host, functions: dict[str, Any]) -> None:
        self.__dict__.update(functions)
        self.routes = SimpleNamespace(post=lambda path: lambda handler: host.routes.setdefault(path, handler))


class Management:
    """The functions of comfy.model_management, with the host's parameter names."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def get_torch_device(self) -> torch.device:
        return self.host.device

    def intermediate_device(self) -> torch.device:
        return torch.device("cpu")

    def get_free_memory(self, dev: Any, torch_free_too: bool) -> Any:
        return (self.host.free_bytes, self.host.free_bytes) if torch_free_too else self.host.free_bytes

    def free_memory(self, memory_required: float, device: torch.device, **_: Any) -> list[Any]:
        self.host.freed.append((memory_required, device))
        return []

    def soft_empty_cache(self, force: bool) -> None:
        self.host.emptied += 1

    def unload_all_models(self) -> None:
        self.host.unloaded += 1

    def is_oom(self, e: BaseException) -> bool:
        return self.host.is_oom(e)

    def interrupt_current_processing(self, value: bool) -> None:
        self.host.interrupted = value

    def processing_interrupted(self) -> bool:
        return self.host.interrupted

    def throw_exception_if_processing_interrupted(self) -> None:
        self.host.check()


def progress_bar(host: Host) -> type:
    """The class ProgressBar. Only calls that pass the throttle are displayed and check for an interruption."""
    contract = facts(host.version)
    seconds, percent = contract["throttle"]["seconds"], contract["throttle"]["percent"]

    def arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return bind(signature(contract["utils"][name]), f"comfy.utils.{name}", args, kwargs)

    class ProgressBar:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.total = arguments("ProgressBar", args, kwargs)["total"]
            self.current, self.last_value, self.last_time = 0, -1, 0.0
            self.bar = Bar(self.total)
            host.bars.append(self.bar)

        def update_absolute(self, *args: Any, **kwargs: Any) -> None:
            values = arguments("ProgressBar.update_absolute", args, kwargs)
            self.total = self.bar.total = self.total if values["total"] is None else values["total"]
            self.current, preview = min(values["value"], self.total), values["preview"]
            self.bar.ticks.append((self.current, self.total, preview))
            if preview is not None:
                check_preview(preview)
            now, moved = time.perf_counter(), 100 * (self.current - max(0, self.last_value)) / (self.total or 1)
            due = now - self.last_time >= seconds and moved >= percent
            if preview is not None or self.last_value < 0 or self.current >= self.total or due:
                host.check()
                self.last_value, self.last_time = self.current, now
                self.bar.shown.append(self.current)

        def update(self, *args: Any, **kwargs: Any) -> None:
            self.update_absolute(self.current + arguments("ProgressBar.update", args, kwargs)["value"])

    return ProgressBar


def check_preview(preview: Any) -> None:
    """Raise here, because ComfyUI fails later and in another thread, where a test would not notice."""
    from PIL import Image

    match preview:
        case ("JPEG" | "PNG", Image.Image(), int() | None):
            return
    raise TypeError(f"Got preview {preview!r}, expected ('JPEG' or 'PNG', a PIL image, size).")


# ---- loading the pack ---------------------------------------------------------------------------------------------


@dataclass
class Pack:
    module: ModuleType
    nodes: list[type]


@contextmanager
def load_pack(root: Path, host: Host, name: str = "/x/custom_nodes/stylegan-nada") -> Iterator[Pack]:
    """Load the pack in `root` as ComfyUI does: with its path as the name of the module.

    Its modules are removed from sys.modules afterwards, so that another test can load it with another host.
    """
    init = Path(root) / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield Pack(module, asyncio.run(_nodes(module, host)))
    finally:
        for loaded in [other for other in sys.modules if other == name or other.startswith(name + ".")]:
            del sys.modules[loaded]


async def _nodes(module: ModuleType, host: Host) -> list[type]:
    """The node classes of the extension. Raises for everything that would make ComfyUI skip the whole pack."""
    if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
        raise TypeError("The module has NODE_CLASS_MAPPINGS, so ComfyUI would not call comfy_entrypoint.")
    extension = module.comfy_entrypoint()
    extension = await extension if asyncio.iscoroutine(extension) else extension
    if not isinstance(extension, ComfyExtension):
        raise TypeError(f"comfy_entrypoint returned {extension!r}, expected a ComfyExtension.")
    if host.at_least(0, 14):
        await extension.on_load()
    nodes = await extension.get_node_list()
    if not isinstance(nodes, list):
        raise TypeError(f"get_node_list returned a {type(nodes).__name__}, expected a list.")
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    if len(set(ids)) < len(ids):
        raise ValueError(f"Got the node ids {ids}, expected each once.")
    for node in nodes:
        node.RELATIVE_PYTHON_MODULE = f"custom_nodes.{os.path.basename(module.__name__)}"
    return nodes
