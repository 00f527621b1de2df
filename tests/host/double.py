"""The modules of ComfyUI that the pack imports, doubled: `install` puts them in place, `load_pack` loads the pack.

    host = install(monkeypatch, tmp_path, version="0.20.1")
    with load_pack(ROOT, host) as pack:
        executor = Executor(host, pack.nodes)

A call that the chosen version would refuse is refused, and so is any name that the contract does not have.
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

from .contract import bind, facts, signature, speaking
from .folders import Folders
from .pictures import build_ui
from .schema import build_io


@dataclass
class Bar:
    """A progress bar: every call a node made, and which of them the user was shown."""

    total: int
    ticks: list[tuple[int, int, Any]] = field(default_factory=list)  # value, total, preview
    shown: list[int] = field(default_factory=list)  # values that got through the throttle

    @property
    def previews(self) -> list[Any]:
        return [preview for _, _, preview in self.ticks if preview is not None]


@dataclass
class Host:
    """The host as a test sees it: what the nodes asked of it, and switches for what it answers."""

    version: str
    root: Path
    interrupt_base: type[BaseException]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # what get_torch_device answers
    free_bytes: int = 8 << 30  # what get_free_memory answers
    bars: list[Bar] = field(default_factory=list)
    freed: list[tuple[float, torch.device]] = field(default_factory=list)  # requests to free_memory
    emptied: int = 0  # calls of soft_empty_cache
    unloaded: int = 0  # calls of unload_all_models
    previews: list[Path] = field(default_factory=list)  # pictures written to temp
    saved: list[Path] = field(default_factory=list)  # pictures written to output by ImageSaveHelper
    checks: int = 0  # how often somebody asked whether to stop
    args: SimpleNamespace = field(default_factory=SimpleNamespace)
    modules: dict[str, ModuleType] = field(default_factory=dict)
    interrupted: bool = False  # the user's click, until somebody notices it
    _countdown: int | None = None

    def __post_init__(self) -> None:
        told = facts(self.version)
        self.args = SimpleNamespace(**told["cli_args"])
        self.InterruptProcessingException = type("InterruptProcessingException", (self.interrupt_base,), {})
        self.OOM_EXCEPTION = torch.OutOfMemoryError
        self.folder_paths = Folders(self.root, told["supported_pt_extensions"], self.at_least(0, 28))
        self.models_dir, self.input, self.output, self.temp = (
            Path(self.folder_paths.models_dir),
            *(Path(getattr(self.folder_paths.served, kind)) for kind in ("input", "output", "temp")),
        )
        self.io = build_io(self.version)
        self.ui = build_ui(self)

    def at_least(self, *version: int) -> bool:
        return tuple(int(part) for part in self.version.split(".")) >= version

    def interrupt_after(self, n_checks: int) -> None:
        """The user clicks Cancel: the next `n_checks` questions whether to stop are answered no, then one yes."""
        self._countdown = n_checks

    def check(self) -> None:
        """A node asks whether to stop."""
        self.checks += 1
        if self._countdown is not None:
            self._countdown -= 1
            self.interrupted = self.interrupted or self._countdown < 0
        self.stop_if_interrupted()

    def stop_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted, self._countdown = False, None  # a click stops one prompt
            raise self.InterruptProcessingException

    def is_oom(self, error: BaseException) -> bool:
        accelerator = isinstance(error, getattr(torch, "AcceleratorError", RuntimeError))
        return isinstance(error, self.OOM_EXCEPTION) or accelerator and "out of memory" in str(error).lower()


def install(
    patch: Any, tmp_path: Path, version: str = "0.33.0", interrupt_base: type[BaseException] | None = None
) -> Host:
    """Put the double of `version` in place until the test ends.

    patch: pytest's monkeypatch, or a mapping such as a copy of sys.modules that the modules are written into.
    interrupt_base: overrides what InterruptProcessingException derives from: Exception up to 0.19, BaseException since.
    """
    told = facts(version)
    base = interrupt_base or {"Exception": Exception, "BaseException": BaseException}[told["interrupt_base"]]
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
    """A module that says what to do about a name it has not got."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the double of {self.__name__} has no {name!r}: if the oldest ComfyUI we support has it, "
            "add it to tests/host/make_contract.py and to the double"
        )


def build_modules(host: Host) -> dict[str, ModuleType]:
    told = facts(host.version)

    def functions(owner: Any, group: str) -> dict[str, Any]:
        return {name: speaking(f"{group}.{name}", text, getattr(owner, name)) for name, text in told[group].items()}

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
        "comfy_api": {},
        "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": host.io, "ui": host.ui},
        "folder_paths": {
            "models_dir": folders.models_dir,
            "folder_names_and_paths": folders.folder_names_and_paths,
            "supported_pt_extensions": folders.supported_pt_extensions,
            **functions(folders, "folder_paths"),
        },
    }
    made: dict[str, ModuleType] = {}
    for name, members in values.items():
        made[name] = Doubled(name)
        vars(made[name]).update(members)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, made[name])
    return made


class ComfyExtension:
    async def on_load(self) -> None:
        """Called when the pack is loaded."""

    async def get_node_list(self) -> list[type]:
        raise NotImplementedError


class Management:
    """The functions of comfy.model_management, with parameters named like the host's."""

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
    """The bar shows, and looks for a click on Cancel, only when the throttle lets a call through."""
    told = facts(host.version)
    seconds, percent = told["throttle"]["seconds"], told["throttle"]["percent"]

    def given(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return bind(signature(told["utils"][name]), f"comfy.utils.{name}", args, kwargs)

    class ProgressBar:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.total = given("ProgressBar", args, kwargs)["total"]
            self.current, self.told, self.when = 0, -1, 0.0
            self.bar = Bar(self.total)
            host.bars.append(self.bar)

        def update_absolute(self, *args: Any, **kwargs: Any) -> None:
            values = given("ProgressBar.update_absolute", args, kwargs)
            self.total = self.bar.total = self.total if values["total"] is None else values["total"]
            self.current, preview = min(values["value"], self.total), values["preview"]
            self.bar.ticks.append((self.current, self.total, preview))
            if preview is not None:
                check_preview(preview)
            now, moved = time.perf_counter(), 100 * (self.current - max(0, self.told)) / (self.total or 1)
            due = now - self.when >= seconds and moved >= percent
            if preview is not None or self.told < 0 or self.current >= self.total or due:
                host.check()
                self.told, self.when = self.current, now
                self.bar.shown.append(self.current)

        def update(self, *args: Any, **kwargs: Any) -> None:
            self.update_absolute(self.current + given("ProgressBar.update", args, kwargs)["value"])

    return ProgressBar


def check_preview(preview: Any) -> None:
    """The server would only fail later, in another thread, where no test looks."""
    from PIL import Image

    match preview:
        case ("JPEG" | "PNG", Image.Image(), int() | None):
            return
    raise TypeError(f"expected a preview ('JPEG', a PIL image, size), got {preview!r}")


# ---- loading the pack ---------------------------------------------------------------------------------------------


@dataclass
class Pack:
    module: ModuleType
    nodes: list[type]


@contextmanager
def load_pack(root: Path, host: Host, name: str = "/x/custom_nodes/stylegan-nada") -> Iterator[Pack]:
    """The pack in `root`, loaded as ComfyUI does it: under its path as the module's name, not as a package on a path.

    Its modules are forgotten afterwards, so that the next test may load it on another version of the host.
    """
    door = Path(root) / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, door, submodule_search_locations=[str(root)])
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
    """The classes of the pack's extension; whatever would make ComfyUI drop the whole pack raises here."""
    if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
        raise TypeError("with NODE_CLASS_MAPPINGS in the module ComfyUI never calls comfy_entrypoint")
    extension = module.comfy_entrypoint()
    extension = await extension if asyncio.iscoroutine(extension) else extension
    if not isinstance(extension, ComfyExtension):
        raise TypeError(f"comfy_entrypoint gave {extension!r}, expected a ComfyExtension")
    if host.at_least(0, 14):
        await extension.on_load()
    nodes = await extension.get_node_list()
    if not isinstance(nodes, list):
        raise TypeError(f"get_node_list gave a {type(nodes).__name__}, ComfyUI takes nothing but a list")
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    if len(set(ids)) < len(ids):
        raise ValueError(f"node ids are not unique: {ids}")
    for node in nodes:
        node.RELATIVE_PYTHON_MODULE = f"custom_nodes.{os.path.basename(module.__name__)}"
    return nodes
