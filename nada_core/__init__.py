"""StyleGAN-NADA without ComfyUI: take a StyleGAN2 generator into a new domain from words alone.

from nada_core import AdaptConfig, TextShift, adapt, load_generator, load_guide, save_generator

source = load_generator("portraits")
guide = load_guide("portraits")
result = adapt(source, guide, TextShift("photo", "zombie"), AdaptConfig(steps=200, lr=0.015))
save_generator(result.generator, "zombie.safetensors", {"target": "zombie"})
"""

import lazy_loader

__version__ = "0.2.0"

# The names in __init__.pyi, each imported when it is first used: PyTorch reads some environment variables when it
# loads, and a program may set them after importing this package.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
