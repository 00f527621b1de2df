"""How the weights of the built-in portrait networks were trained: `python -m nada_core.portraits.fitting`."""
