# `make demo` shows the main job on the built-in world; `make test` runs every check. Both work on a fresh machine.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test clean

demo: .venv/.ready
	.venv/bin/python -m nada_core demo

test: .venv/.ready-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy nada_core
	.venv/bin/python -m pytest -q

clean:
	rm -rf .venv out

# Outside ComfyUI nobody brings torch, so the development environment installs it itself.
.venv/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch torchvision -r requirements.txt
	touch $@

# comfy-cli (GPL-3) converts workflows in tests as ComfyUI's page does; nothing that users install depends on it.
.venv/.ready-test: .venv/.ready
	$(PIP) pytest ruff mypy comfy-cli
	touch $@
