"""A test double of ComfyUI: as much of the host as this pack touches, held to the facts of real versions.

ComfyUI is on no package registry, so tests without it need a stand-in. `contract.json` has the facts,
`make_contract.py` reads them from a real tree, `double.py` puts modules of those shapes in place, `executor.py` runs
prompts on them. Everything is written from behaviour and signatures; no line of ComfyUI is in it.
"""
