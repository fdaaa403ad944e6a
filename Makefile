# `make demo` runs the main job, `make test` the tests; both install what they need into .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait sleep: spinning ones take the cores that the others need.
export OMP_WAIT_POLICY ?= PASSIVE
TORCH ?= torch==2.13.0
# On Linux PyPI's torch brings CUDA along. `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu` does not.
TORCH_INDEX ?=

.PHONY: help setup demo test lint types imports unit crd bench clean

help:
	@echo "make demo   chat with the demo model, brought up from examples/llmdeployment.yaml"
	@echo "make test   lint, types, import contract, tests"
	@echo "make setup  .venv with everything"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes on a slow network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/octavo up -f examples/llmdeployment.yaml --once "Tell me a joke"

test: lint types imports unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/pytest

crd: $(STAMP)
	$(BIN)/octavo crd | tee crds/octavo.dev_llmdeployments.yaml > charts/octavo/crds/octavo.dev_llmdeployments.yaml

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
