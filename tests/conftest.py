"""Fixtures: the pack loaded into the double of ComfyUI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the tests; read by torch when it is first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from host import guards
from host.double import install, load_pack
from pack_world import NEWEST, OLDEST, World

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of compiled code: tests do not depend on what this machine has built."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("extensions")
        patch.setenv("TORCH_EXTENSIONS_DIR", str(path))
        yield path


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    from open_clip.tokenizer import SimpleTokenizer

    with pytest.MonkeyPatch.context() as patch, ExitStack() as open_packs:
        # The check of inputs for changes would spend most of its time in the vocabulary of a tokenizer.
        patch.setattr(guards, "OPAQUE", (*guards.OPAQUE, SimpleTokenizer))
        loaded: dict[str, World] = {}

        def world(version: str) -> World:
            if version not in loaded:
                host = install(patch, tmp_path_factory.mktemp("comfy"), version)
                loaded[version] = World(host, open_packs.enter_context(load_pack(ROOT, host, f"/x/nada-{len(loaded)}")))
            loaded[version].reset()
            return loaded[version]

        yield world


@pytest.fixture
def world(worlds: Callable[[str], World]) -> World:
    return worlds(NEWEST)


@pytest.fixture(params=[OLDEST, NEWEST])
def either(worlds: Callable[[str], World], request: pytest.FixtureRequest) -> World:
    """The pack in the oldest and in the newest supported version."""
    return worlds(request.param)
