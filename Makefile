# make demo     set up, then train on embedded handwritten digits
# make test     set up, then run the tests
# make sabotage break one line after the other, and demand that the formulas' tests notice
# make lint     formatting, lint and types
# make bench    the figures of the README beside their targets (installs TensorFlow in an environment of its own)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test sabotage lint bench setup clean

setup: $(VENV)/.done

$(VENV)/.done: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,tune,parquet,serve,dev]"
	touch $@

demo: setup
	$(BIN)/linnaeus demo

test: setup
	$(BIN)/python -m pytest

sabotage: setup
	$(BIN)/python tests/sabotage.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build
