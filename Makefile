# Burnish: set up, try, test.  Everything lives in .venv; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-vllm check bench clean

help:
	@echo "make demo   set up and train a tool-using agent from zero (minutes, on a CPU)"
	@echo "make test   set up and run the tests"
	@echo "make test-vllm  install vLLM for CPUs in an environment of its own (3.4 GB) and test against it"
	@echo "make check  format, lint, types and import rules"
	@echo "make setup  only set up"
	@echo "make bench  quick form of every benchmark and claim"
	@echo "make clean  remove the environment and caches"

setup: $(VENV)/.train
demo: $(VENV)/.train
	$(BIN)/burnish demo

# One process more than there are cores, since some tests wait; at most four, for memory.  Bytecode is kept, whatever
# the environment says: hundreds of processes import the same, and asserts are rewritten once.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(min(4, 1 + os.cpu_count()))') --dist worksteal --durations 10

test-vllm: $(VENV)/.dev .venv-vllm/.ready
	BURNISH_VLLM=1 $(BIN)/python -m pytest tests/vllm --durations 10

.venv-vllm/.ready: tools/vllm.sh
	PYTHON=$(BIN)/python sh tools/vllm.sh install
	touch $@

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(VENV)/.train
	@for file in benchmarks/*.py claims/*/run.py; do echo "== $$file"; $(BIN)/python $$file --quick || exit 1; done

clean:
	rm -rf $(VENV) .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Burnish needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	sh tools/install.sh $(BIN)/pip ".[train]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	sh tools/install.sh $(BIN)/pip ".[dev]"
	touch $@ $(VENV)/.train
