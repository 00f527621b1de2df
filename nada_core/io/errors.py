"""The only opener of model files. A file is recognised by its content; nothing a file holds is ever run.

Containers: safetensors; PyTorch archives, new (zip) and old, read with `weights_only=True`; pickles of
NVlabs/stylegan2-ada-pytorch and NVlabs/stylegan3, read by an unpickler that knows a short list of harmless globals;
numpy's .npy and .npz, of numbers only. Those pickles carry the source text of their own classes for their loader to
execute: here it stays text.
"""

from pathlib import Path


class CheckpointError(ValueError):
    """A model file cannot be used. The message says what was found and what to do next."""


class DamagedCheckpointError(CheckpointError):
    """Not the file it was meant to be: cut short, a web page, a pointer, weights that are not numbers."""


class UnsafeCheckpointError(CheckpointError):
    """Reading it would mean calling something that is not on the list of harmless things."""


class UnsupportedCheckpointError(CheckpointError):
    """Sound, but of a kind that is not read here."""


def _blocked(path: Path, name: str) -> str:
    return (
        f"{path}: the file asks for {name}, which is not on the list of harmless globals; it was not called. "
        "If you trust the file, open it with the program that wrote it and save the weights as safetensors."
    )
