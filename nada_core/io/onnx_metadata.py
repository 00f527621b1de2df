"""Read the metadata of an ONNX model, without its weights and without the Python package `onnx`.

A file is the protobuf message `ModelProto` (https://github.com/onnx/onnx, onnx.proto; wire format:
https://protobuf.dev/programming-guides/encoding). Only its outer fields are read; the graph is skipped.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError, DamagedCheckpointError

_VARINT, _BYTES = 0, 2  # wire types; ModelProto has no fixed-size numbers
_IR_VERSION, _PRODUCER, _OPSET, _METADATA = 1, 2, 8, 14  # fields of ModelProto
_MOST_BYTES = 4 << 20  # of all fields that are read
_MOST_FIELDS = 10_000  # of a message


def read_onnx_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of an ONNX model, with its `producer` and its `opset`.

    Raises:
        CheckpointError: the file is missing.
        DamagedCheckpointError: it is no ONNX model, or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    metadata: dict[str, str] = {}
    found: set[int] = set()
    try:
        with path.open("rb") as file:
            for number, value in _fields(file, path.stat().st_size, (_PRODUCER, _OPSET, _METADATA)):
                found.add(number)
                if number == _PRODUCER:
                    metadata["producer"] = _text(value)
                elif number == _OPSET:
                    opset = _message(value)
                    if not opset.get(1):  # the standard operators have no domain
                        metadata["opset"] = str(opset[2])
                elif number == _METADATA:
                    entry = _message(value)
                    metadata[_text(entry[1])] = _text(entry[2])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DamagedCheckpointError(f"{path}: not a sound ONNX model ({problem}). Copy it again.") from error
    if not {_IR_VERSION, _OPSET} <= found:
        raise DamagedCheckpointError(f"{path}: not an ONNX model, which states the version of its operators.")
    return metadata


def _fields(file: BinaryIO, size: int, wanted: tuple[int, ...]) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the fields of a message of `size` bytes; bytes that are not wanted stay empty."""
    total = 0
    for _ in range(_MOST_FIELDS):
        if file.tell() == size:
            return
        number, kind = divmod(_varint(file), 8)
        value = _varint(file)
        if kind == _VARINT:
            yield number, value
        elif kind != _BYTES:
            raise ValueError(f"a field of wire type {kind}")
        elif value > size - file.tell():
            raise ValueError(f"a field of {value} bytes beyond the end of the file")
        elif number not in wanted:
            file.seek(value, io.SEEK_CUR)
            yield number, b""
        else:
            total += value
            if total > _MOST_BYTES:
                raise ValueError(f"metadata of more than {_MOST_BYTES} bytes")
            yield number, file.read(value)
    raise ValueError(f"more than {_MOST_FIELDS} fields")


def _message(content: int | bytes) -> dict[int, int | bytes]:
    if isinstance(content, int):
        raise TypeError("a number in place of a message")
    return dict(_fields(io.BytesIO(content), len(content), (1, 2)))


def _text(content: int | bytes) -> str:
    if isinstance(content, int):
        raise TypeError("a number in place of a text")
    return content.decode()


def _varint(file: BinaryIO) -> int:
    """Read a number of seven bits a byte, the lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends in a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number of more than ten bytes")
