# Everything runs inside .venv. The targets that need it make it themselves, so a fresh clone needs
# only Python >= 3.11 with pip, and make. `make demo` installs what it needs, the others install
# what the tests need on top.
# ARGS reaches the command behind a target: `make demo ARGS=--help`.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean demo-pythons test check unit coverage chaos bench bench-kernels bench-secure bench-pipeline experiment-privacy bench-codec experiment-compression format protos lock up down clean

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
COMPOSE := docker compose
WORKERS ?= 2
ARGS ?=
PYTEST := $(BIN)/python -m pytest

PACKAGES := aggregators cli client monitoring privacy protos security server simulation updates
# What is installed but never imported, at least by nothing that a person waits for.
NOT_IMPORTED := /(tests?|joblib|mpmath|narwhals|pip|setuptools|sklearn)/

# Bytecode is kept, whatever the environment says: else every process compiles all it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# The first of these that is new enough; `make PYTHON=/path/to/python setup` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; \
	done)

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install everything into .venv; later runs do nothing until the pins change.

# Where the interpreter has no ensurepip (Debian ships it apart), its own pip fills the environment.
INSTALL = pip=$(BIN)/pip; test -x $$pip || pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	$$pip install -qq --no-compile --disable-pip-version-check --no-input
PINNED = $(INSTALL) --constraint requirements.lock

# Bytecode and kernels are compiled here, on all cores, and not by every process that needs them.
$(RUNTIME): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "fedagg needs Python 3.11 or newer" >&2; exit 1; }
	@echo "Installing what runs into $(VENV) (about a minute, once)"
	@$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || \
		$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PINNED) setuptools
	@$(PINNED) --no-build-isolation --editable '.[sim]'
	@$(BIN)/python -m compileall -q -j 0 -x '$(NOT_IMPORTED)' $(VENV)/lib $(PACKAGES)
	@$(BIN)/python -m aggregators.warm_up & \
		$(BIN)/python -m security.secret_sharing.warm_up && wait $$!
	@touch $@

$(STAMP): $(RUNTIME)
	@echo "Installing what the tests need into $(VENV) (a minute or two, once)"
	@$(INSTALL) --no-deps --requirement requirements.lock
	@touch $@

demo: $(RUNTIME) ## Train one model on a fleet of simulated devices, on this machine.
	$(BIN)/fedagg demo $(ARGS)

demo-clean: ## Run three rounds of the demo in a clean clone, with pip's own settings.
	@$(PYTHON) -m tools.clean_demo $(ARGS)

demo-pythons: ## Do so on each of Python 3.11, 3.12 and 3.13 that is here.
	@$(PYTHON) -m tools.clean_demo 3.11 3.12 3.13 $(ARGS)

test: check ## Run every check and the whole test suite.
	$(PYTEST) -n $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP) ## Check format, lint, types, layers, generated code.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.protos --check

unit: $(STAMP) ## Run the tests that start no processes.
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not process" $(ARGS)

coverage: $(STAMP) ## Run the test suite and require 90 % line and branch coverage.
	$(PYTEST) -n $(WORKERS) --dist loadfile --cov --cov-report=term --cov-fail-under=90 $(ARGS)

chaos: $(STAMP) ## Run the fault simulations with thousands of examples.
	$(BIN)/python -m pytest tests/chaos --hypothesis-profile=chaos $(ARGS)

bench: $(STAMP) ## Measure throughput and latency on this machine.
	$(BIN)/python -m benchmarks.run $(ARGS)

# Only the comparison writes to standard output, so that ARGS="--format json" is one JSON object.
bench-kernels: $(STAMP) ## Time the aggregation rules beside other libraries; the history stays in .benchmarks/.
	@$(BIN)/fedagg bench kernels --all $(ARGS)
	@$(BIN)/python -m pytest benchmarks/kernels -W ignore::pytest_benchmark.logger.PytestBenchmarkWarning \
		--benchmark-storage file://./.benchmarks --benchmark-autosave --benchmark-compare >&2

bench-secure: $(STAMP) ## Measure shared rounds beside plain ones, and beside Flower's SecAgg+.
	@$(BIN)/python -m benchmarks.secure.run $(ARGS)

bench-codec: $(STAMP) ## Measure bytes and speed of every encoding of a real update.
	@$(BIN)/python -m benchmarks.codec.run $(ARGS)

# Only the table goes to standard output; rows show on standard error as they come.
experiment-compression: $(STAMP) ## Train with every way to compress updates; print what each costs.
	@$(BIN)/python -m simulation.compression_experiments $(ARGS)

bench-pipeline: $(STAMP) ## Time rounds with everything on beside plain ones (needs Fashion-MNIST).
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

experiment-privacy: $(STAMP) ## Train with and without privacy on MNIST: ARGS="--data-dir DIR".
	@$(BIN)/python -m simulation.private_training $(ARGS)

format: $(STAMP) ## Format the code and apply the safe lint fixes.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(STAMP) ## Regenerate the code in protos/.
	$(BIN)/python -m tools.protos

lock: $(STAMP) ## Rewrite requirements.lock from pyproject.toml.
	$(BIN)/python -m tools.lock

up: ## Start Redis, two coordinators, ten devices and Prometheus in containers.
	$(COMPOSE) up --build --detach --wait $(ARGS)

down: ## Stop the containers and delete their volumes.
	$(COMPOSE) down --volumes --remove-orphans $(ARGS)

clean: ## Delete caches and build outputs; .venv and demo data stay.
	rm -rf build dist htmlcov *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
