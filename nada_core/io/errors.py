"""Errors of reading model files. Their messages name the file, the fault and what to do."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A model file is missing or cannot be used."""


class DamagedCheckpointError(CheckpointError):
    """The content is not what the file should hold: truncated, a web page, a pointer, NaN, contradictory metadata."""


class UnsafeCheckpointError(CheckpointError):
    """Reading the file would call something that is not on the allow list."""

    @classmethod
    def for_global(cls, path: object, name: str) -> UnsafeCheckpointError:
        """The error for a pickled reference to a Python global."""
        return cls(
            f"{path}: got a pickle that refers to {name}, which is not on the list of harmless globals; it was not "
            "called. If you trust the file, open it with the program that wrote it and save the weights as safetensors."
        )


class UnsupportedCheckpointError(CheckpointError):
    """The file is intact, but of a kind or version this package does not read."""


def brief(value: object) -> str:
    """Return a value from a file for a message, in constant time: containers of a pickle may be nested without end."""
    if isinstance(value, str | bytes):
        return repr(value[:60])
    return repr(value)[:60] if value is None or isinstance(value, bool | int | float) else f"a {type(value).__name__}"
