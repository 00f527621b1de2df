"""A test double of ComfyUI: the parts of the host that this pack uses, checked against facts of real versions.

ComfyUI is not installed with the tests. `contract.json` holds facts about its versions, `make_contract.py` reads them
from a source tree, `double.py` provides modules of the same shape, and `executor.py` runs prompts on them. Everything
is written from behaviour and signatures; it contains no code of ComfyUI.
"""
