"""Builders of hostile files: pickles by instruction, archives by member, and safetensors by header."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

from nvidia_pickle import _Pickler

STOP = b"."
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value: str) -> bytes:
    """The instruction that pushes a string."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def fragment(content: object) -> bytes:
    """The instructions that push plain content."""
    return pickle.dumps(content, 2)[2:-1]


def doubled(make: type[list[Any]] | type[tuple[Any, ...]], levels: int = 60) -> bytes:
    """Instructions that push a container of two containers of two containers ...: few bytes, 2 ** levels elements."""
    value: Any = "x"
    for _ in range(levels):
        value = make((value, value))
    return fragment(value)


def integer(value: int) -> bytes:
    """The instruction that pushes an integer."""
    return fragment(value)


def named(module: str, name: str) -> bytes:
    """The instruction that pushes a global."""
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """Instructions that push function(*arguments)."""
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """Instructions that push a storage of the archive."""
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"


def tensor(source: bytes, size: Iterable[int], stride: Iterable[int], offset: int = 0) -> bytes:
    """Instructions that push a tensor of a storage."""
    sizes, strides = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, source, integer(offset), sizes, strides, b"\x89", b"}")


def state(**values: bytes) -> bytes:
    """Instructions that push a dict."""
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def program(body: bytes) -> bytes:
    """A pickle of these instructions."""
    return b"\x80\x02" + body + STOP


def dumps(content: object) -> bytes:
    """Pickle objects of the fake classes and calls of `nvidia_pickle`."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def archive(pickled: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch archive of the zip format. members: below the top folder, such as "data/0"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **(members or {})}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def old_archive(pickled: bytes, keys: list[str] | None = None, storages: bytes = b"") -> bytes:
    """A PyTorch archive of the format before version 1.6."""
    return MAGIC + pickle.dumps(1001, 2) + pickle.dumps(SYSTEM, 2) + pickled + pickle.dumps(keys or [], 2) + storages


def safetensors(header: dict[str, Any] | bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file. length: claimed size of the header, by default the true one."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    return struct.pack("<Q", len(written) if length is None else length) + written + content


def zipped(members: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of any members, the same name twice included."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()
