"""One ComfyUI and one page of it for all tests of this folder, started by the first test that needs it.

These tests need:

- COMFYUI_PATH: a checkout of ComfyUI, 0.20 or newer;
- COMFYUI_PYTHON: the interpreter that can run it, by default the one that runs pytest;
- comfy-cli to convert workflows, websocket-client for test_server.py, and playwright with Chromium for test_page.py.

Without one of them the tests are skipped, and the end of the pytest output says which one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from environment import comfy_path, comfy_python, pack_path

if TYPE_CHECKING:
    from page import Page
    from server import Server

NEEDS = "tests/real needs COMFYUI_PATH (a ComfyUI checkout), comfy-cli, websocket-client and playwright with Chromium."

# The modules that need more than this project's development set are imported by the fixtures that use them.


@pytest.fixture(scope="session")
def pack() -> Path:
    return pack_path()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> Iterator[Server]:
    from server import serve

    with serve(comfy_path(), comfy_python(), pack, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def info(server: Server) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="session")
def _page(server: Server) -> Iterator[Page]:
    from page import open_page

    with open_page(server) as opened:
        yield opened


@pytest.fixture
def page(_page: Page) -> Page:
    """The page, without errors, dialogs and messages of earlier tests."""
    _page.close_dialog()
    _page.close_toasts()
    _page.errors.clear()
    return _page


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests against a real ComfyUI were skipped, and why: -q alone hides the reasons."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "tests/real/" in report.nodeid]
    if not skipped:
        return
    terminalreporter.section("tests in a real ComfyUI were skipped")
    terminalreporter.write_line(NEEDS)
    for report in skipped:
        terminalreporter.write_line(f"{report.nodeid}: {report.longrepr[2]}")
