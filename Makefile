# On a fresh machine with Python 3.11 or newer:
#   make demo    sets up and shows the monitor at work
#   make stack   the same with Kafka, Ray nodes, an S3 server, Prometheus and Alertmanager
#   make test    sets up, checks and tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
READY := $(VENV)/.ready
# Three processes beside each other, one of which mostly waits for Ray; tests/conftest.py says what
# each of them has of its own.
PYTEST := $(BIN)/pytest -n 3 --dist loadgroup
# The tests start hundreds of processes. None is to compile what another one has compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo stack test test-fast test-slow gpu check setup lock clean

setup: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "nap-stream needs Python 3.11 or newer; name one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements-dev.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/nap-stream demo

# A whole stack on this machine, and the demo's stream through it; deploy/stack.py says of what.
stack: setup
	$(BIN)/python -m deploy.stack

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	@$(MAKE) --no-print-directory --jobs 2 check test-fast

test-fast: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

# The tests and the benchmark of a machine with a GPU.
gpu: setup
	benchmarks/gpu.sh

# Exact versions and hashes, for development and for images.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --quiet --upgrade --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --quiet --upgrade \
		--constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) demo-run stack-run
