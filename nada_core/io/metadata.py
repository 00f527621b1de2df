"""Files written by this package: safetensors with a description in the metadata, replaced atomically.

The description consists of a `kind`, the format's `version`, a free `provenance` and fields of the kind. Strings are
stored as they are, other values as JSON. Generators are recognized by their `spec` and have no `kind`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError, DamagedCheckpointError, UnsupportedCheckpointError, brief

_LARGEST_HEADER = 4 << 20  # bytes; every tensor of 50 bytes in the header takes about 1 KiB of memory
_MOST_CONTAINERS, _MOST_VALUES = 1_000_000, 4_000_000  # in a JSON text; an empty dict takes 72 bytes, from 3


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError for invalid JSON, deep nesting, and more values than any description has."""
    if not isinstance(text, str):
        raise TypeError(f"got {brief(text)}, expected JSON")
    if text.count("[") + text.count("{") > _MOST_CONTAINERS or text.count(",") > _MOST_VALUES:
        raise ValueError("JSON of too many values")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file without its tensors.

    Raises:
        CheckpointError: for a missing file and one that is not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Check the path.")
    with path.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
    if size > _LARGEST_HEADER:
        raise DamagedCheckpointError(f"{path}: a header of {size} bytes, expected at most {_LARGEST_HEADER}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: not a sound safetensors file ({error}). Copy it again.") from error


def read_description(path: str | Path, hints: Mapping[str, Any], newest: int, *json_fields: str) -> dict[str, Any]:
    """Check the version of a file of ours and parse its description.

    Args:
        path: named in errors.
        hints: metadata of the file.
        newest: latest known format version.
        json_fields: further required fields in JSON.

    Returns:
        The hints, with `version` and `json_fields` as values.

    Raises:
        DamagedCheckpointError: for a missing field and invalid JSON.
        UnsupportedCheckpointError: for a newer version.
    """
    try:
        values = {name: parse_json(hints[name]) for name in ("version", *json_fields)}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "description", error) from error
    if not isinstance(values["version"], int) or values["version"] > newest:
        raise UnsupportedCheckpointError(
            f"{path}: got format version {values['version']}, known is {newest}. Update this package."
        )
    return {**hints, **values}


def read_object(path: str | Path, hints: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Parse an optional field that holds a JSON object; {} where it is absent.

    Raises:
        DamagedCheckpointError: for anything else than a JSON object.
    """
    try:
        return dict(parse_json(hints.get(name, "{}")))
    except (TypeError, ValueError) as error:
        raise _damaged(path, name, error) from error


def _damaged(path: str | Path, field: str, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path}: its {field} cannot be read ({type(error).__name__}: {error}). The file was changed; copy it again."
    )


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description atomically: a failed write leaves the previous file."""
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}
    with replace_atomically(Path(path)) as temporary:  # save_file would make it readable by its owner only
        temporary.write_bytes(safetensors.torch.save(content, metadata=metadata))


def write_torch(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a PyTorch archive of tensors and plain values atomically, for programs that read nothing else."""
    buffer = BytesIO()
    torch.save(dict(content), buffer)  # into a file, it raises RuntimeError when the disk is full
    with replace_atomically(Path(path)) as temporary:
        temporary.write_bytes(buffer.getbuffer())


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` on success and is removed on failure."""
    with _written_first(path) as temporary:
        yield temporary
        _sync(temporary)
        _replace(temporary, path)


def create_atomically(paths: Iterable[Path], write: Callable[[Path], object]) -> Path:
    """Write a new file under the first of these paths that does not exist, and return it.

    Processes that do so at the same time get different paths. A failed write leaves no file.

    Args:
        paths: in one folder, such as numbered names without an end.
        write: writes the file at the temporary path it is given.
    """
    remaining = iter(paths)
    path = next(remaining)
    with _written_first(path) as temporary:
        write(temporary)
        _sync(temporary)
        while not _claim(path):
            path = next(remaining)
        try:
            _replace(temporary, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return path


def _claim(path: Path) -> bool:
    """Create an empty file; False where there is one. Of several processes, one succeeds."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def _written_first(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is removed in the end; errors name `path` instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
    except OSError as error:
        if error.errno and (error.filename is None or str(error.filename) == str(temporary)):
            error.filename = str(path)  # a failed write names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Create the folder of a file that will be written later, and check that it can be written.

    Raises:
        OSError: for a folder that is read-only, a full disk and a name that is too long, with the path.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.name[14:]}.part")  # as long as the name of the file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.lstat()  # raises for a name of too many bytes, which `temporary` may not have
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written ({error.strerror}); choose another path") from error


def _temporary(path: Path) -> Path:
    # A name of 255 bytes, the limit of most file systems, would leave no room for the suffix.
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.part")


def _sync(temporary: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())  # without it a power cut may leave an empty file under the new name


def _replace(temporary: Path, path: Path) -> None:
    for pause in (0.05, 0.1, 0.2, 0.4, 0.8):  # on Windows, a process that reads the old file is in the way
        with suppress(PermissionError):
            os.replace(temporary, path)
            return
        time.sleep(pause)
    os.replace(temporary, path)
