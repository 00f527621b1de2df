"""StyleGAN-NADA for ComfyUI (Gal et al., 2021, arXiv:2108.00946): the door of the node pack.

The algorithms live in `nada_core`, which knows nothing of ComfyUI and can be used without it.
"""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
