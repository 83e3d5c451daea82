# Everything runs in .venv, which is made when it is missing and brought up to date when pyproject.toml has changed.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
CAPTURES := tests/captures

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup demo test check conformance faults bench format clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed-dev ## Make .venv with everything that development needs
	@:

demo: $(VENV)/.installed-dev ## Replay the bundled captures into a throw-away SQLite database
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 130' INT TERM && \
	$(BIN)/cdc-reactor replay \
		$(CAPTURES)/forum_schemas_on.records.ndjson $(CAPTURES)/forum_avro.records.ndjson \
		--schemas $(CAPTURES)/forum_avro.registry.json \
		--handlers table_handlers --database-url "sqlite:///$$folder/demo.db" --create-tables

test: $(VENV)/.installed-dev ## Run the tests in two processes; show the lines that none of them runs
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -q -n 2; status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

check: $(VENV)/.installed-dev ## Lint, formatting, types, layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@found=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$found"; exit 1; }

conformance: $(VENV)/.installed-dev ## Run the cases on every Pub/Sub that is here, then Google's own system tests
	@$(BIN)/python -m pytest -q tests/conformance
	@$(BIN)/python tests/conformance/outside.py

faults: $(VENV)/.installed-dev ## Run the fault tests with as many faults as are promised (about half an hour)
	@CDC_REACTOR_FAULTS=full $(BIN)/python -m pytest tests/faults --timeout 1800 -q -rP

bench: $(VENV)/.installed-bench ## Measure the throughput of the core and of a replay
	@$(BIN)/python -m benchmarks all

format: $(VENV)/.installed-dev ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

clean: ## Remove .venv, caches and what was built
	@rm -rf $(VENV) dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps lie inside .venv, so that they go when it goes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing what 'make' needs ($*)…" >&2
	@$(BIN)/python -m pip install -q -e '.[$*]'
	@touch $@

$(BIN)/python:
	@for python in python3.11 python3 python3.12 python3.13; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed, and neither python3.11 nor python3 is one. Install it and run make again." >&2; \
	exit 1
