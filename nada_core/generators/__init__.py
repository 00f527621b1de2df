"""The families of generators. A spec, as `Generator.spec()` gives it and as our files carry it, names its family."""

from collections.abc import Callable, Mapping
from typing import Any

from .base import Generator, Layer, Noise
from .stylegan2 import StyleGAN2

FAMILIES: dict[str, Callable[..., Generator]] = {StyleGAN2.family: StyleGAN2}

__all__ = ["FAMILIES", "Generator", "Layer", "Noise", "StyleGAN2", "build"]


def build(spec: Mapping[str, Any]) -> Generator:
    """The architecture a spec describes, freshly initialised."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"got the spec {spec!r:.80}, expected what Generator.spec() gives: names and values.")
    settings = dict(spec)
    family = settings.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"spec names the generator family {family!r}; known are {sorted(FAMILIES)}. "
                         "A newer version of this package may have written it.")
    try:
        return FAMILIES[family](**settings)
    except (TypeError, RuntimeError) as error:  # a wrong kind of value; a size beyond any memory
        raise ValueError(f"spec does not fit the family {family!r}: {error}. Got {sorted(settings)}.") from error
