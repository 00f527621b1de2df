"""Find the network in a file: its layout, and the prefix of its tensors.

Programs wrap the same state dict in many ways (`module.`, `state_dict`, `generator`, `params_ema`, a whole training
state). The prefix is found by searching for one tensor that each layout always has, not from a list of prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..io.checkpoint_file import RawCheckpoint
from ..io.errors import UnsupportedCheckpointError


@dataclass(frozen=True)
class Reading:
    """The content of a file in our terms. `state` may lack mapping.w_avg or every noise map, as some files do."""

    spec: dict[str, Any]
    state: dict[str, Tensor]  # by our names; unknown tensors keep their name
    names: dict[str, str]  # our name -> the file's, for messages


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a network."""

    name: str
    probe: str  # the name of a tensor that every network of this layout has, and no other
    read: Callable[[RawCheckpoint, str], Reading]  # (file, prefix of the network's tensors)

    def prefixes(self, raw: RawCheckpoint) -> list[str]:
        """List the prefixes of all networks of this layout in the file: "", "g_ema.", "state_dict.decoder."."""
        ends = [name.removesuffix(self.probe) for name in raw.tensors if name.endswith(self.probe)]
        return [prefix for prefix in ends if not prefix or prefix.endswith(".")]


def find_network(raw: RawCheckpoint, layouts: Sequence[Layout]) -> tuple[Layout, str] | None:
    """Return the layout and prefix of the network in a file; None if no layout fits.

    Training programs store a moving average next to the current weights. Of several networks, the only one with "ema"
    in its prefix (or the Gs of a TensorFlow pickle) is used.

    Raises:
        UnsupportedCheckpointError: there are several networks, and not exactly one is an average.
    """
    networks = [(layout, prefix) for layout in layouts for prefix in layout.prefixes(raw)]
    averages = [(layout, prefix) for layout, prefix in networks if "ema" in prefix.lower() or prefix == "Gs."]
    for candidates in (networks, averages):
        if len(candidates) == 1:
            return candidates[0]
    if not networks:
        return None
    names = ", ".join(sorted(prefix.rstrip(".") or "the file itself" for _, prefix in averages or networks))
    raise UnsupportedCheckpointError(
        f"got {len(averages or networks)} generators ({names}), expected one or one average. Save that one by itself."
    )


def file_settings(raw: RawCheckpoint, prefix: str) -> dict[str, Any]:
    """Return the attributes of a pickled network's modules by dotted name; empty for a state dict."""
    settings: dict[str, Any] = {}
    for key, hint in raw.hints.items():
        attributes = hint.get("attributes") if isinstance(hint, Mapping) else None
        for name, value in attributes.items() if isinstance(attributes, Mapping) else ():
            full = f"{key}.{name}" if key else str(name)
            if full.startswith(prefix):
                settings[full.removeprefix(prefix)] = value
    return settings


def value_at(hints: Any, *path: str) -> Any:
    """Return the value of nested mappings at a path, or None."""
    for key in path:
        hints = hints.get(key) if isinstance(hints, Mapping) else None
    return hints
