"""One description of a run, from which its provenance and its fingerprint are made.

The provenance is stored with results and says how to make the same weights again. The fingerprint is stored with an
autosave, and a run resumes only from an autosave with its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.reconstruction import FaceRecognizer, Features
from ..guidance.shifts import Shift, shift_parts
from ..guidance.targets import weighted_guides
from ..models.clip import ClipGuide
from ..models.generator import Generator
from .config import AdaptConfig, LayerChoice
from .pairs import Pairs

#: Settings that change neither weights nor history, up to rounding.
_NEUTRAL = ("autosave_every", "chunk", "checkpointing")


@dataclass(frozen=True)
class RunInputs:
    """Everything that decides a run's result."""

    source: Generator
    guides: tuple[tuple[ClipGuide, float], ...]
    shift: Shift | None  # None: pairs alone
    config: AdaptConfig
    judge: ClipGuide | None = None
    perceptual: Features | None = None
    identity: FaceRecognizer | None = None
    pairs: Pairs | None = None

    @property
    def judged_by(self) -> str:
        """What chooses the best step; empty when none is chosen."""
        if self.judge is not None:
            return self.judge.name
        return f"{len(self.pairs.held_out)} held-out pairs" if self.pairs and self.pairs.held_out else ""

    def describe(self) -> dict[str, Any]:
        """A JSON-ready provenance."""
        parts = shift_parts(self.shift) if self.shift else ()
        mixed = [{**part.describe(), "weight": weight} for part, weight in parts]
        description = {
            "source": {"sha256": self.source.source},
            **({"mixed": mixed} if len(parts) > 1 else parts[0][0].describe() if parts else {}),
            "guides": [{"name": g.name, "fingerprint": g.fingerprint, "weight": weight} for g, weight in self.guides],
            "config": asdict(self.config),
        }
        if self.pairs is not None:
            description["pairs"] = self.pairs.describe()
        if self.judge is not None:
            description["judge"] = {"name": self.judge.name, "fingerprint": self.judge.fingerprint}
        return description

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any input that can change the result, networks included."""
        description = self.describe()
        description["source"] = self.source.spec()
        description["config"] = {k: v for k, v in description["config"].items() if k not in _NEUTRAL}
        description["config"]["layers"]["chunk"] = LayerChoice().chunk  # neutral, too
        if self.pairs is not None:  # what is used of them follows from the inputs
            description["pairs"] = self.pairs.settings()
        for guide in [*description["guides"], description.get("judge", {})]:
            guide.pop("name", None)
        tensors = {f"source.{name}": value for name, value in self.source.state_dict().items()}
        for index, (part, _) in enumerate(shift_parts(self.shift) if self.shift else ()):
            tensors |= {f"shift.{index}{suffix}": value for suffix, value in part.tensors().items()}
        if self.pairs is not None:
            tensors |= self.pairs.tensors()
        for role, network in self._used_networks().items():
            if isinstance(network, nn.Module):
                tensors |= {f"{role}.{name}": value for name, value in network.state_dict().items()}
        return _digest(description, tensors)

    def _used_networks(self) -> dict[str, Features | FaceRecognizer | None]:
        """The networks of terms with a weight; the face recognizer also filters pairs."""
        perceptual = self.config.lpips or (self.pairs is not None and self.pairs.config.lpips)
        identity = self.config.id or self.pairs is not None
        return {"perceptual": self.perceptual if perceptual else None, "identity": self.identity if identity else None}


def run_fingerprint(
    generator: Generator,
    guides: ClipGuide | Sequence[ClipGuide | tuple[ClipGuide, float]],
    shift: Shift,
    config: AdaptConfig,
    judge: ClipGuide | None = None,
    perceptual: Features | None = None,
    identity: FaceRecognizer | None = None,
) -> str:
    """Return the fingerprint of the run that `adapt` makes of these inputs, as its autosave has it."""
    return RunInputs(generator, weighted_guides(guides), shift, config, judge, perceptual, identity).fingerprint()


def _digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
