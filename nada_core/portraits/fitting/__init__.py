"""How the weights of the built-in world were made: `python -m nada_core.portraits.fitting`."""
