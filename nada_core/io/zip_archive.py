"""Zip archives from outside, as PyTorch and numpy write them. Nothing is unpacked to a path."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DamagedCheckpointError

_MOST_MEMBERS = 65_535
_LARGEST_LIST = 8 << 20  # bytes of the list of members, which zipfile reads as a whole


class _File(io.BufferedReader):
    """A file that refuses long reads until `largest` is None."""

    largest: int | None = _LARGEST_LIST

    def read(self, size: int | None = -1, /) -> bytes:
        if self.largest is not None and size is not None and size > self.largest:
            raise zipfile.BadZipFile(f"a list of members of {size} bytes")
        return super().read(size)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive and check the names of its members.

    Raises:
        DamagedCheckpointError: it lists too many members, a member twice, or one outside of the archive.
        zipfile.BadZipFile: it is not complete.
    """
    with _File(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.largest = None
        names = archive.namelist()
        odd = [name for name in names if re.search(r"^/|\\|^\w:|(^|/)\.\.(/|$)", name)]
        if odd or len(set(names)) < len(names) or len(names) > _MOST_MEMBERS:
            fault = f"the name {odd[0][:60]!r}" if odd else f"{len(names)} names, of which {len(set(names))} differ"
            raise DamagedCheckpointError(
                f"{path}: got {fault} in a zip archive, expected every file once and below the top. Take the file from "
                "another place."
            )
        yield archive


def buffered(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BufferedReader:
    """Open a member for many small reads, and for reads into memory."""
    member: Any = archive.open(info)  # a ZipExtFile, which typeshed declares as IO[bytes]
    return io.BufferedReader(member)
