# Two commands: `make demo` and `make test`. Each one sets itself up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := build,ort,report,test
# One stamp per state of the two files that decide what is installed: setup runs again only when one of them changes.
STATE := $(shell cat pyproject.toml constraints.txt Makefile 2>/dev/null | cksum | tr ' ' '-')
STAMP := $(VENV)/.setup-$(STATE)
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv with everything that build, demo and the tests need.
	@:

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nemotron-export needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; PyTorch is a large download) ..."
	@# a .venv that uv made has no pip
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@$(BIN)/python -m pip install --quiet uv
	@# compiled here once: where the environment forbids Python to keep its bytecode, every start would compile torch anew
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.setup-* && touch $@

demo: setup ## Build the embedded checkpoint, prove its numbers, generate text, measure it beside PyTorch.
	@$(BIN)/nemotron-export demo

test: setup ## Check who imports whom, then run every test.
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests -n $(TEST_WORKERS) --dist loadfile

lint: setup ## Style, types and the import contract.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
