# `make demo` runs the main job, `make test` the tests; both install what they need into .venv first.
# The first that works: a name alone may be a shim of a version that is not there.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3; do $$name -c '$(SUPPORTED)' 2>/dev/null && command -v $$name && break; done),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Threads that wait sleep: spinning ones take the cores that the others need.
export OMP_WAIT_POLICY ?= PASSIVE
TORCH ?= torch==2.13.0
# On Linux PyPI's torch brings CUDA along. `make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu` does not.
TORCH_INDEX ?=

.PHONY: help setup demo demo-fleet test lint types imports unit soak fuzz crd golden lock images-check clean

help:
	@echo "make demo   chat with the demo model, brought up from examples/llmdeployment.yaml"
	@echo "make demo-fleet   a burst on the demo model: replicas come, one is killed, they go again, and no request fails"
	@echo "make test   lint, types, import contract, tests"
	@echo "make fuzz   requests made from the server's description, 200 valid and 200 invalid of each operation"
	@echo "make soak   half an hour of load on a server too small for it (MINUTES=30)"
	@echo "make setup  .venv with everything"
	@echo "make lock   what the images hold, by version and hash (needs uv)"
	@echo "make images-check   the commands of the images' build stages, without Docker"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(BIN)/python -c 'import pip; $(SUPPORTED)' 2>/dev/null || { \
	  $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	    echo "Octavo needs Python 3.11 or 3.12, and $(PYTHON) is not one ($$($(PYTHON) --version 2>&1)): make setup PYTHON=python3.12" >&2; exit 1; }; \
	  rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (once; a few minutes on a slow network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,pull,dev]'
	@# An emulator of S3 for the tests, beside: its boto3 and our kubernetes want different versions of one library.
	@$(BIN)/python -m venv --without-pip $(VENV)/s3
	@$(BIN)/python -m pip --python $(VENV)/s3 install --quiet --disable-pip-version-check 'moto[s3]>=5,<6' flask flask-cors
	@touch $@

demo: $(STAMP)
	@$(BIN)/octavo up -f examples/llmdeployment.yaml --once "Tell me a joke"

# Behind the gateway, from no replica to three and back to one, with one killed: a minute and a half on two free cores.
demo-fleet: $(STAMP)
	@$(BIN)/octavo up -f examples/fleet.yaml --burst 20

test: lint types imports unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# So many tests at a time, shared out by tests/conftest.py; WORKERS=0: in one process, one by one.
WORKERS ?= 2
# Tests start some hundred processes, which import the same: it is compiled once, whatever containers are set up to do.
unit: export PYTHONDONTWRITEBYTECODE :=
unit: $(STAMP)
	$(BIN)/pytest --numprocesses $(WORKERS)

MINUTES ?= 30
soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

EXAMPLES ?= 200
fuzz: $(STAMP)
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/server/test_fuzz.py -k description -s -q

crd: $(STAMP)
	$(BIN)/octavo crd | tee crds/octavo.dev_llmdeployments.yaml > charts/octavo/files/octavo.dev_llmdeployments.yaml

# The images' Python, and the versions that the tests ran with.
UV ?= uv
LOCK := $(UV) pip compile --quiet --no-config --index-url https://pypi.org/simple --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" --constraint build/tested.txt
LOCKS := images/requirements
lock: $(STAMP)
	@mkdir -p build
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable | sed -e '/@/d' -e 's/+cpu$$//' > build/tested.txt
	$(LOCK) --output-file $(LOCKS)/build.txt $(LOCKS)/build.in
	$(LOCK) --output-file $(LOCKS)/control-plane.txt --extra gateway --extra pull pyproject.toml
	$(LOCK) --output-file $(LOCKS)/server.txt --extra server --extra tracing pyproject.toml

IMAGE ?= control-plane
images-check: $(STAMP)
	$(BIN)/python images/exercise.py $(IMAGE)

# What the examples become, as tests/operator/golden keeps it.
GOLDEN := $(notdir $(basename $(wildcard tests/operator/golden/*.yaml)))
golden: $(STAMP)
	@for name in $(GOLDEN); do $(BIN)/octavo plan -f examples/$$name.yaml \
	  --server-image registry.example.com/octavo-server:1 --pull-image registry.example.com/octavo:1 \
	  > tests/operator/golden/$$name.yaml 2>/dev/null; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
