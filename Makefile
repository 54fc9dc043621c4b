# Everything runs inside .venv. The targets that need it make it themselves, so a fresh clone needs
# only Python >= 3.11 with pip, and make. `make demo` installs what it needs, the others install
# what the tests need on top. Libraries that are only compared with are in .venv-peers.
# ARGS reaches the command behind a target: `make demo ARGS=--help`.
.DEFAULT_GOAL := help
.PHONY: help setup peers demo demo-clean demo-pythons test test-all check races quality unit coverage long chaos planted-faults bench bench-kernels bench-secure bench-pipeline bench-page experiment-privacy bench-codec experiment-compression format protos lock up down clean

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
PEERS_VENV := .venv-peers
PEERS := $(PEERS_VENV)/.installed
COMPOSE := docker compose
WORKERS ?= 2
ARGS ?=
PRODUCT := aggregators cli client monitoring privacy protos security server simulation updates
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

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
pip = pip=$(1)/bin/pip; test -x $$pip || pip="$(PYTHON) -m pip --python $(1)/bin/python"; $$pip
install = $(call pip,$(1)) install -qq --no-compile --disable-pip-version-check --no-input \
	--no-build-isolation --constraint $(2)
INSTALL = $(call install,$(VENV),requirements.lock)

# What does not start, or contradicts itself, is made anew.
# Bytecode and kernels are compiled here, on two cores, and not by every process that needs them.
$(RUNTIME): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "fedagg needs Python 3.11 or newer" >&2; exit 1; }
	@echo "Installing what runs into $(VENV) (about a minute, once)"
	@{ $(call pip,$(VENV)) check; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || \
		$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(INSTALL) setuptools
	@$(INSTALL) --editable '.[server]'
	@$(BIN)/python -m aggregators.warm_up & \
		$(BIN)/python -m tools.bytecode && $(BIN)/python -m security.secret_sharing.warm_up && wait $$!
	@touch $@

$(STAMP): $(RUNTIME)
	@echo "Installing what the tests need into $(VENV) (a minute or two, once)"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

peers: $(PEERS) ## Install libraries to compare with, for benchmarks and tests, into .venv-peers.

# All of .venv is seen there too, behind what is installed there.
$(PEERS): $(STAMP) requirements-peers.lock
	@echo "Installing what is compared with into $(PEERS_VENV) (about a minute, once)"
	@$(BIN)/python -m venv --clear $(PEERS_VENV) >/dev/null 2>&1 || \
		$(BIN)/python -m venv --clear --without-pip $(PEERS_VENV)
	@where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(BIN)/python -c "$$where")')" \
		>"$$($(PEERS_VENV)/bin/python -c "$$where")/behind.pth"
	@$(call install,$(PEERS_VENV),requirements-peers.lock) setuptools
	@$(call install,$(PEERS_VENV),requirements-peers.lock) --editable '.[peers]'
	@touch $@

demo: $(RUNTIME) ## Train one model on a fleet of simulated devices, on this machine.
	$(BIN)/fedagg demo $(ARGS)

demo-clean: ## Run three rounds of the demo in a clean clone, with pip's own settings.
	@$(PYTHON) -m tools.clean_demo $(ARGS)

demo-pythons: ## Do so on each of Python 3.11, 3.12 and 3.13 that is here.
	@$(PYTHON) -m tools.clean_demo 3.11 3.12 3.13 $(ARGS)

# Tests that need libraries to compare with are skipped, or run where `make peers` installed these.
ifeq ($(wildcard $(PEERS)),)
run-tests = $(PYTEST) $(if $(1),-m "$(1)") $(2) $(3) $(ARGS)
else
run-tests = $(PYTEST) -m "not peers$(if $(1), and $(1))" $(2) $(3) $(ARGS) && \
	$(PEERS_VENV)/bin/python -m pytest -m "peers$(if $(1), and $(1))" $(2) \
		$$(grep -lr --include='test_*.py' mark.peers tests) $(ARGS)
endif

# MEASURED=1 counts what tests cover and asks for 95 % of lines and branches; it takes half as long
# again. So does CI, and runs the long tests apart: with both, everything has run once.
test: check ## Run every check and all tests but the long ones (6 minutes on two cores).
	$(call run-tests,not long,,$(if $(MEASURED),--cov --cov-report=term --cov-fail-under=95))

test-all: check ## Run every check and all tests, properties with four times as many examples.
	$(call run-tests,,--hypothesis-profile=thorough)

check: $(STAMP) ## Check packages, format, lint, types, layers, lengths, generated code.
	@$(call pip,$(VENV)) check
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.function_lengths
	$(BIN)/python -m tools.protos --check

# Both hunts take the same tests: this one looks at ten times as many cases, new ones each time.
races: $(STAMP) ## Hunt for races in what threads and tasks share.
	$(BIN)/python -m pytest tests/races --hypothesis-profile=races $(ARGS)

quality: $(STAMP) ## Ask black and pylint for their opinion, then hunt for races.
	$(BIN)/black --check --quiet .
	$(BIN)/pylint $(PRODUCT) tools
	$(MAKE) --no-print-directory races

unit: $(STAMP) ## Run the tests of single modules, without services (2 minutes on two cores).
	$(PYTEST) -m "not process and not long" $(addprefix --ignore=tests/,contract integration chaos) $(ARGS)

coverage: ## Run make test and require 95 % line and branch coverage.
	@$(MAKE) --no-print-directory test MEASURED=1

long: $(STAMP) ## Run the long tests alone, properties with four times as many examples.
	$(call run-tests,long,--hypothesis-profile=thorough)

chaos: $(STAMP) ## Run the fault simulations with thousands of examples.
	$(BIN)/python -m pytest tests/chaos --hypothesis-profile=chaos $(ARGS)

planted-faults: $(STAMP) ## Plant small faults one at a time; a test must fail for each (ARGS=NAME).
	$(BIN)/python -m tools.planted_faults --jobs $(WORKERS) $(ARGS)

bench: $(STAMP) ## Measure throughput, latency and memory on this machine.
	@$(BIN)/python -m benchmarks.service $(ARGS)

# Only the comparison writes to standard output, so that ARGS="--format json" is one JSON object.
bench-kernels: $(PEERS) ## Time the aggregation rules beside other libraries; the history stays in .benchmarks/.
	@$(PEERS_VENV)/bin/python -m benchmarks.kernels --all $(ARGS)
	@$(BIN)/python -m pytest benchmarks/kernels -W ignore::pytest_benchmark.logger.PytestBenchmarkWarning \
		--benchmark-storage file://./.benchmarks --benchmark-autosave --benchmark-compare >&2

bench-secure: $(PEERS) ## Measure shared rounds beside plain ones, and beside Flower's SecAgg+.
	@$(BIN)/python -m benchmarks.secure $(ARGS)

bench-codec: $(PEERS) ## Measure bytes and speed of every encoding of a real update.
	@$(PEERS_VENV)/bin/python -m benchmarks.codec $(ARGS)

# Only the table goes to standard output; rows show on standard error as they come.
experiment-compression: $(STAMP) ## Train with every way to compress updates; print what each costs.
	@$(BIN)/python -m simulation.experiments.compression_table $(ARGS)

bench-pipeline: $(STAMP) ## Time rounds with everything on beside plain ones (needs ARGS="--data-dir DIR").
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

bench-page: $(STAMP) ## Write what was measured into docs/Performance.md.
	@$(BIN)/python -m benchmarks.page

experiment-privacy: $(STAMP) ## Train with and without privacy on MNIST: ARGS="--data-dir DIR".
	@$(BIN)/python -m simulation.experiments.private_training $(ARGS)

format: $(STAMP) ## Format the code and apply the safe lint fixes.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(STAMP) ## Regenerate the code in protos/.
	$(BIN)/python -m tools.protos

lock: $(STAMP) ## Rewrite the locks from pyproject.toml.
	$(BIN)/python -m tools.lock

up: ## Start Redis, two coordinators, ten devices and Prometheus in containers.
	$(COMPOSE) up --build --detach --wait $(ARGS)

down: ## Stop the containers and delete their volumes.
	$(COMPOSE) down --volumes --remove-orphans $(ARGS)

clean: ## Delete caches and build outputs; .venv and demo data stay.
	rm -rf build dist htmlcov *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)*' -prune -exec rm -rf {} +
