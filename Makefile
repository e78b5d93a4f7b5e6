# Everything a user or a developer runs. Each target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test check protos format bench clean

help:  ## Say what can be run
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

# Installed once, and again when pyproject.toml changes.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …" >&2; exit 2; }
	@echo "Setting up $(VENV) (once; about a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,local]'
	@touch $@

setup: $(VENV)/.ready  ## Create the virtual environment

run: $(VENV)/.ready  ## The whole stack on this machine (RUN_SECONDS=, FETCHERS=, KEEPA_API_KEY=, …)
	@exec $(BIN)/python -m deploy.local

test: $(VENV)/.ready  ## The quick suite, Postgres included
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.ready  ## Linters, types, dependency rules, contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

protos: $(VENV)/.ready  ## Regenerate the modules from the .proto file
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=. \
	  --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/tokenbroker/v1/token_broker.proto

format: $(VENV)/.ready  ## Format code and contract
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format --write

clean:  ## Remove the environment and local data
	rm -rf $(VENV) .local .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
