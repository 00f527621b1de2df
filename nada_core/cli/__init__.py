"""The command line: `python -m nada_core`."""
