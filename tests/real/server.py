"""A real ComfyUI server on the CPU, with its own folders and port, and a client that records runs.

    with serve(comfy, python, pack, base) as server:
        run = server.run(api_prompt)
        run.status, run.outputs, run.cached, run.progress, run.previews, run.error, run.seconds

The protocol is ComfyUI's: POST /prompt, then JSON and binary events over a websocket, then GET /history.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket
from environment import PACK, make_base, process_environment

#: How a run ends, by the event that says so.
ENDS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}

#: The binary events that carry a text and a preview together with the node they belong to.
TEXT, PREVIEW_WITH_METADATA = 3, 4


class ServerError(RuntimeError):
    """The server returned an error. node_errors: the errors of single nodes of a prompt."""

    def __init__(self, message: str, node_errors: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.node_errors = node_errors or {}


@dataclass(frozen=True)
class Event:
    """A message of the server. at: time.perf_counter() of its arrival; image: the image of a preview."""

    at: float
    kind: str
    data: dict[str, Any]
    image: bytes = b""


@dataclass
class Run:
    """The record of one prompt. seconds: from the first event of the run to the last."""

    prompt_id: str
    status: str
    outputs: dict[str, dict[str, Any]]
    seconds: float
    cached: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[tuple[str, bytes]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)


class Server:
    """A client of a running ComfyUI, from `serve`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log_file: Path, base: Path) -> None:
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"
        self.process, self.log_file, self.base = process, log_file, base
        self.client_id = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None

    # ---- plain requests ----

    def get(self, path: str) -> Any:
        """Return the response to a GET request, parsed if it is JSON, else bytes. Raises ServerError."""
        return self._answer(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any) -> Any:
        """Return the response to a POST of JSON. Raises ServerError."""
        header = {"Content-Type": "application/json"}
        return self._answer(urllib.request.Request(self.url + path, json.dumps(body).encode(), header))

    def _answer(self, request: urllib.request.Request) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows no 127.0.0.1 of ours
        try:
            with opener.open(request, timeout=60) as response:
                body, kind = response.read(), response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            told = json.loads(text) if text.startswith("{") else {}
            message = f"{request.get_method()} {request.full_url}: {error.code} {text[:2000]}"
            raise ServerError(message, told.get("node_errors")) from error
        return json.loads(body) if kind == "application/json" and body else body

    def object_info(self) -> dict[str, Any]:
        """Return the schemas of all nodes."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def busy(self) -> bool:
        queue = self.get("/queue")
        return bool(queue["queue_running"] or queue["queue_pending"])

    @property
    def log(self) -> str:
        """Return the output of the server so far, without color codes."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(encoding="utf-8", errors="replace"))

    # ---- runs ----

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue an API prompt and return its id. Raises ServerError if any part of it is rejected."""
        if self._socket is None:  # before the prompt, otherwise its first events are lost
            self._socket = self._connect()
        reply = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        if errors := reply["node_errors"]:  # with one good output left the server accepts the rest and answers 200
            raise ServerError(f"parts of the prompt were refused: {json.dumps(errors)}", errors)
        return reply["prompt_id"]

    def events(self, prompt_id: str, timeout: float = 600) -> Iterator[Event]:
        """Yield the events of a queued prompt up to its end. Raises TimeoutError."""
        assert self._socket is not None, "nothing was queued by this client"
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                break
            event = decode(message)
            if event.data.get("prompt_id", prompt_id) == prompt_id:
                yield event
                if event.kind in ENDS:
                    return
        raise TimeoutError(f"the run did not end within {timeout} s; the log ends\n{self.log[-2000:]}")

    def run(self, prompt: dict[str, Any], timeout: float = 600, on_event: Callable[[Event], None] | None = None) -> Run:
        """Queue an API prompt and wait for its end. on_event is called with every event."""
        prompt_id = self.queue(prompt)
        events = []
        for event in self.events(prompt_id, timeout):
            events.append(event)
            if on_event is not None:
                on_event(event)
        return self._read(prompt_id, events)

    def history(self, prompt_id: str) -> dict[str, Any]:
        """Return the history of a run, which the server stores shortly after the last event."""
        for _ in range(50):
            if prompt_id in (found := self.get(f"/history/{prompt_id}")):
                return found[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(f"no history of {prompt_id}")

    def _read(self, prompt_id: str, events: list[Event]) -> Run:
        last = events[-1]
        started = next((event.at for event in events if event.kind == "execution_start"), events[0].at)
        run = Run(prompt_id, ENDS[last.kind], self.history(prompt_id)["outputs"], last.at - started, events=events)
        run.error = last.data if run.status == "error" else None
        for event in events:
            data = event.data
            if event.kind == "execution_cached":
                run.cached += data["nodes"]
            elif event.kind == "executing" and data["node"] is not None:
                run.executed.append(data["node"])
            elif event.kind == "progress":
                run.progress.append((data["node"], data["value"], data["max"]))
            elif event.kind == "preview":
                run.previews.append((data["node_id"], event.image))
        return run

    def _connect(self) -> websocket.WebSocket:
        url = f"ws://{self.host}/ws?clientId={self.client_id}"
        connection = websocket.create_connection(url, timeout=30, http_no_proxy=["127.0.0.1"])
        flags = {"supports_preview_metadata": True}  # else a preview does not say which node it belongs to
        connection.send(json.dumps({"type": "feature_flags", "data": flags}))
        return connection

    def close(self) -> None:
        """Stop the server and its child processes."""
        if self._socket is not None:
            self._socket.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def decode(message: str | bytes) -> Event:
    """Parse a websocket message: JSON text, or a binary message that begins with its kind: a text or a preview."""
    at = time.perf_counter()
    if isinstance(message, str):
        told = json.loads(message)
        return Event(at, told["type"], told["data"] or {})
    (kind,) = struct.unpack_from(">I", message)
    if kind not in (TEXT, PREVIEW_WITH_METADATA):
        return Event(at, f"binary {kind}", {})
    (length,) = struct.unpack_from(">I", message, 4)
    if kind == TEXT:
        node, text = message[8 : 8 + length].decode(), message[8 + length :].decode()
        return Event(at, "text", {"node": node, "text": text})
    return Event(at, "preview", json.loads(message[8 : 8 + length]), message[8 + length :])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(comfy: Path, python: str, base: Path, port: int) -> list[str]:
    """The command that starts ComfyUI with the pack and the core nodes only, without a browser or paid services."""
    user = base / "user"
    started = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    started += ["--base-directory", str(base), "--user-directory", str(user)]
    started += ["--database-url", f"sqlite:///{user}/comfyui.db"]
    if "--disable-api-nodes" in (comfy / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        started.append("--disable-api-nodes")  # their schemas are fetched and they double the start
    return started


@contextmanager
def serve(comfy: Path, python: str, pack: Path, base: Path, patience: float = 180) -> Iterator[Server]:
    """Run a server with `pack` installed as custom_nodes/stylegan-nada below `base`, and stop it afterwards.

    Raises ServerError when it does not come up, with the end of its log.
    """
    make_base(base, comfy, pack)
    log_file, port = base / "server.log", free_port()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command(comfy, python, base, port),
            cwd=comfy,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=process_environment(),
        )
    server = Server(port, process, log_file, base)
    try:
        _wait(server, patience)
        yield server
    finally:
        server.close()


def _wait(server: Server, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except urllib.error.URLError:  # it does not listen yet
            time.sleep(0.3)
    raise ServerError(f"ComfyUI did not come up; its log ends\n{server.log[-4000:]}")


def lines_about(log: str, *names: str) -> list[str]:
    """Return the log lines that name the pack, one of its nodes or one of `names`, except the import times.

    Every such line is a warning or an error: ComfyUI logs nothing else about a pack, and 0.20 prints no levels.
    """
    found = re.compile("|".join(map(re.escape, (f"custom_nodes/{PACK}", "StyleGANNADA_", *names))))
    return [line for line in log.splitlines() if found.search(line) and not re.search(r"\d seconds: ", line)]
