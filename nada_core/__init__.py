"""StyleGAN-NADA without ComfyUI: take a StyleGAN2 generator into a new domain from words alone.

from nada_core import AdaptConfig, TextShift, adapt, load_generator, load_guide, save_generator

source = load_generator("portraits")
guide = load_guide("portraits")
result = adapt(source, guide, TextShift("photo", "zombie"), AdaptConfig(steps=200, lr=0.015))
save_generator(result.generator, "zombie.safetensors", {"target": "zombie"})
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import PyTorch and the core with the first public name (PEP 562): a program can set its environment before."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".api", __name__), name)
