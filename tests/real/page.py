"""ComfyUI's page in headless Chromium, with its converter and node factory.

    with open_page(server) as page:
        page.load(workflow)
        page.export()["output"]        # the API prompt, by the page's own app.graphToPrompt()
        page.screenshot(Path("shot.png"))

Works on frontends 1.42 and 1.49, with the classic canvas; both keep `app` and `LiteGraph` as globals of the page.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from environment import PACK
from playwright.sync_api import ConsoleMessage, Locator, Response, sync_playwright
from playwright.sync_api import Page as Tab
from server import Server, ServerError

#: No template dialog at the first visit, no minimap over the graph; a workflow file is held against the page's schema.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Validation.Workflows": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}

#: What a new installation shows, except for the dialog at the first visit.
FRESH = {"Comfy.TutorialCompleted": True}

READY = """() => window.app && app.vueAppReady === true && app.graph
    && Object.keys(LiteGraph.registered_node_types).length > 100"""

#: The rectangle around all nodes (with their titles) and groups of the shown graph: x, y, width, height.
BOUNDS = """() => {
    const title = LiteGraph.NODE_TITLE_HEIGHT, boxes = [
        ...app.graph._nodes.map(n => [n.pos[0], n.pos[1] - title, n.size[0], n.size[1] + title]),
        ...app.graph._groups.map(g => [g.pos[0], g.pos[1], g.size[0], g.size[1]])]
    const x = Math.min(...boxes.map(b => b[0])), y = Math.min(...boxes.map(b => b[1]))
    return [x, y, Math.max(...boxes.map(b => b[0] + b[2])) - x, Math.max(...boxes.map(b => b[1] + b[3])) - y]
}"""


#: Show a graph without nodes.
EMPTY = """async () => {
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], version: 0.4})
}"""


class Page:
    """An open page, from `open_page`. errors: the messages of the page so far, on its console or in dialogs."""

    def __init__(self, tab: Tab, server: Server, settings: dict[str, Any]) -> None:
        self.tab, self.server, self.settings = tab, server, settings
        self.errors: list[str] = []
        self._before: set[str] = set()  # runs that are not ours to wait for
        tab.on("console", self._console)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        # A failed request is told by its response; those to the world outside are the page's own affair.
        noise = ("Failed to load resource", "Content Security Policy")
        if message.type == "error" and not any(part in message.text for part in noise):
            self.errors.append(message.text)

    def _response(self, response: Response) -> None:
        # user.css is optional; the page asks for the file null where a folder holds no file to load.
        expected = "user.css" in response.url or "filename=null" in response.url
        if response.status >= 400 and response.url.startswith(self.server.url) and not expected:
            self.errors.append(f"{response.status} {response.url}")

    def open(self, locale: str = "en", settings: Mapping[str, Any] | None = None) -> None:
        """Open the page in a language, with further settings, and wait until it is ready."""
        self.server.post("/settings", {**self.settings, "Comfy.Locale": locale, **(settings or {})})
        self.tab.goto(self.server.url, wait_until="domcontentloaded")
        self.tab.wait_for_function(READY, timeout=120_000)
        self.tab.wait_for_timeout(2000)  # extensions go on loading; a graph loaded before fails to find its definitions
        self.errors = [error for error in self.errors if PACK in error]  # the rest is about an empty user folder

    # ---- the graph ----

    def load(self, workflow: dict[str, Any]) -> None:
        """Show a UI-format workflow. Messages of the page's schema check are added to `errors`."""
        self.tab.evaluate("async text => { await app.loadGraphData(JSON.parse(text)) }", json.dumps(workflow))
        self._settle()

    def open_file(self, path: Path) -> None:
        """Open a file as if it were dropped onto the page."""
        script = """async ([text, name, type]) => { await app.handleFile(new File([text], name, {type})) }"""
        self.tab.evaluate(script, [path.read_text(encoding="utf-8"), path.name, "application/json"])
        self._settle()

    def export(self) -> dict[str, Any]:
        """The shown graph: {"workflow": UI format, "output": API prompt}."""
        # Made a string inside the page, because a value on its way out turns undefined into null.
        return json.loads(self.tab.evaluate("async () => JSON.stringify(await app.graphToPrompt())"))

    def missing_nodes(self) -> list[str]:
        """The types of shown nodes that the page does not know."""
        script = """() => app.graph._nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"""
        return self.tab.evaluate(script)

    def title_of(self, node_type: str) -> str:
        """The display name of a node type, in the language of the page."""
        return self.tab.evaluate("type => LiteGraph.registered_node_types[type].title", node_type)

    def toasts(self) -> list[str]:
        """The messages in front of the page."""
        return [text.strip() for text in self.tab.locator(".p-toast-message").all_inner_texts()]

    def close_toasts(self) -> None:
        self.tab.evaluate("() => document.querySelectorAll('.p-toast-close-button').forEach(button => button.click())")
        self.tab.wait_for_timeout(300)

    def _settle(self) -> None:
        self.tab.wait_for_timeout(300)  # widgets of DOM elements are placed in the next frames
        self.errors += self.toasts()
        self.close_toasts()

    # ---- runs ----

    def queue(self) -> None:
        """Press Run. Raises ServerError if the server rejects the graph."""
        before = set(self.server.get("/history"))
        self.tab.evaluate("async () => { await app.queuePrompt(0, 1) }")
        errors = self.tab.evaluate("() => JSON.stringify(app.lastNodeErrors ?? {})")
        if json.loads(errors):
            raise ServerError(f"the graph was refused: {errors}", json.loads(errors))
        self._before = before

    def wait(self, timeout: float = 600) -> dict[str, Any]:
        """Wait until the server is idle and return the history of the last run. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while self.server.busy() or not (new := set(self.server.get("/history")) - self._before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout} s")
            self.tab.wait_for_timeout(200)
        self._settle()
        return self.server.history(new.pop())

    # ---- what a user looks up ----

    def templates(self) -> dict[str, bool]:
        """Open the dialog of templates and return the entries of the pack: title -> whether its thumbnail is shown.

        Leaves the dialog open. The pack's group is named by its folder.
        """
        came = {}

        def thumbnail(response: Response) -> None:
            place = unquote(urlsplit(response.url).path)
            if place.endswith(".jpg") and f"/workflow_templates/{PACK}/" in place:
                came[PurePosixPath(place).stem] = response.status == 200

        self.tab.on("response", thumbnail)
        self.tab.evaluate("async () => { await app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        self.tab.get_by_text(PACK, exact=True).first.click()
        # "Showing 3 of 3 templates" is below the last one; thumbnails come when they are scrolled into view.
        self.tab.get_by_role("dialog").first.hover()
        for _ in range(12):
            self.tab.wait_for_timeout(200)
            self.tab.mouse.wheel(0, 200)
        self.tab.get_by_text("Showing", exact=False).scroll_into_view_if_needed()
        self.tab.wait_for_timeout(1500)
        self.tab.remove_listener("response", thumbnail)
        return {title: fine and self._template(title).is_visible() for title, fine in came.items()}

    def _template(self, title: str) -> Locator:
        return self.tab.get_by_role("dialog").get_by_text(title, exact=True).first

    def open_template(self, title: str) -> None:
        """Click a template in the open dialog."""
        self._template(title).click()
        self.tab.get_by_role("dialog").wait_for(state="hidden")
        self.tab.wait_for_function("() => app.graph._nodes.length > 0")
        self._settle()

    def search(self, words: str) -> list[str]:
        """Type words into the node search and return the titles of the results, best first. Closes the search.

        Replaces the graph by an empty one.
        """
        self._type_into_search(words)
        # A result has several lines; the first one is the title.
        found = [text.strip().splitlines()[0].strip() for text in self.tab.get_by_role("option").all_inner_texts()]
        self.tab.keyboard.press("Escape")
        self.tab.wait_for_timeout(1000)
        return found

    def add_by_search(self, words: str) -> list[str]:
        """Add the first result of the node search to an empty graph and return the titles of the graph's nodes."""
        self._type_into_search(words)
        self.tab.keyboard.press("Enter")
        self.tab.wait_for_timeout(1500)
        box = self.tab.locator("#graph-canvas").bounding_box()
        self.tab.mouse.click(
            box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2 + 100
        )  # 1.49: puts it down
        self.tab.wait_for_timeout(1000)
        return self.tab.evaluate("() => app.graph._nodes.map(node => node.title)")

    def _type_into_search(self, words: str) -> None:
        self.tab.evaluate(EMPTY)
        self.tab.wait_for_timeout(1000)  # a graph that is still being shown takes the focus away
        box, results = self.tab.locator("#graph-canvas").bounding_box(), self.tab.get_by_role("option")
        for _ in range(3):  # a double click is lost while the page is busy
            self.tab.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            self.tab.wait_for_timeout(1500)
            self.tab.keyboard.type(words)
            self.tab.wait_for_timeout(1500)  # the list is filled after a pause
            if results.count():
                return
            self.tab.keyboard.press("Escape")
            self.tab.wait_for_timeout(1000)
        raise TimeoutError(f"the node search did not open for {words!r}")

    def close_dialog(self) -> None:
        """Close all dialogs."""
        if self.tab.get_by_role("dialog").count():
            self.tab.keyboard.press("Escape")
            self.tab.get_by_role("dialog").first.wait_for(state="hidden")

    def node_help(self, node_type: str) -> str:
        """Return the text of "Node Info" for a node. Replaces the current graph."""
        script = """async type => {
            await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], version: 0.4})
            app.extensionManager.focusMode = false
            const node = LiteGraph.createNode(type)
            node.pos = [100, 100]
            app.graph.add(node)
            app.canvas.ds.scale = 1
            app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 100
            app.canvas.selectNode(node)
            app.canvas.setDirty(true, true)
        }"""
        self.tab.evaluate(script, node_type)
        self.tab.wait_for_timeout(300)
        self.tab.get_by_test_id("info-button").click()
        self.tab.locator(".node-help-content").wait_for()
        self.tab.wait_for_timeout(700)  # the text is fetched
        return self.tab.locator(".node-help-content").inner_text()

    # ---- the view ----

    def fit(self, margin: int = 40) -> None:
        """Fit the whole graph into the view and hide the rest of the page."""
        script = """([bounds, margin]) => {
            const canvas = app.canvas, view = canvas.canvas.getBoundingClientRect()
            const [x, y, width, height] = bounds
            const scale = Math.min((view.width - 2 * margin) / width, (view.height - 2 * margin) / height, 1.5)
            canvas.deselectAll?.()
            canvas.ds.scale = scale
            canvas.ds.offset[0] = view.width / scale / 2 - (x + width / 2)
            canvas.ds.offset[1] = view.height / scale / 2 - (y + height / 2)
            canvas.setDirty(true, true)
        }"""
        self.tab.evaluate("() => { app.extensionManager.focusMode = true }")
        self.tab.wait_for_timeout(300)  # the canvas takes the room of the side bars
        self.tab.evaluate(script, [self.tab.evaluate(BOUNDS), margin])
        self.tab.wait_for_timeout(500)

    def screenshot(self, path: Path, fit: bool = True, clip: dict[str, float] | None = None) -> None:
        """Save a screenshot; fit: of the whole graph. clip: {x, y, width, height} in pixels of the page."""
        if fit:
            self.fit()
        hidden = "button:has(.pi-bars), .p-toast { visibility: hidden !important }"
        self.tab.screenshot(path=path, clip=clip, style=hidden)


@contextmanager
def open_page(
    server: Server, locale: str = "en", size: tuple[int, int] = (1600, 1000), settings: dict[str, Any] = SETTINGS
) -> Iterator[Page]:
    """Open the page of a running server, which keeps the settings. Raises FileNotFoundError without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no chromium on PATH: install the package chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=flags)
        page = Page(browser.new_page(viewport={"width": size[0], "height": size[1]}), server, settings)
        page.open(locale)
        yield page
        browser.close()
