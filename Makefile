# `make demo` adapts the built-in generator, `make test` runs every check. Both create .venv on first use.
# README.md lists the same commands without make.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# OpenMP threads that wait actively are slow when other processes use the CPU. Set the variable yourself to choose
# otherwise.
export OMP_WAIT_POLICY ?= PASSIVE

# Processes that share the tests; tests/conftest.py lets each compute with one thread.
WORKERS ?= 2

.PHONY: demo test test-versions clean

demo: .venv/.ready
	.venv/bin/python -m nada_core demo

test: .venv/.ready-test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy nada_core
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile

# Python 3.10, 3.11 and 3.13 with torch 2.6, 2.11 and 2.14, in environments of their own under out/versions (50 GB).
test-versions:
	$(PYTHON) -m benchmarks.versions --workers $(WORKERS)

clean:
	rm -rf .venv out

# ComfyUI brings its own torch, so requirements.txt does not list it; the development environment installs it here.
.venv/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch torchvision -r requirements.txt
	touch $@

# The tests use comfy-cli (GPL-3) to convert workflow files as ComfyUI's page does. Nothing that users install needs it.
.venv/.ready-test: .venv/.ready Makefile
	$(PIP) pytest pytest-xdist ruff mypy comfy-cli onnx onnxruntime optuna
	touch $@
