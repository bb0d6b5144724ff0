# Everything a newcomer or the build server runs. Needs Python 3.11+, make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo interop test test-all bench check-format lint layers types unit paths clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" pilotctl fleet run examples/wordcount.toml \
		--tasks examples/wordcount-tasks.jsonl --results demo-results.jsonl

test: check-format lint layers types unit

test-all: test demo paths

interop: venv
	$(BIN)/python -m tests.support.isolated $(BIN)/python -m tests.interop.matrix

bench: venv
	$(BIN)/python -m bench

check-format: venv
	$(BIN)/ruff format --check .

lint: venv
	$(BIN)/ruff check .

layers: venv
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

unit: venv
	$(BIN)/python -m tests.support.isolated $(BIN)/pytest --numprocesses auto --dist worksteal

# Real NATs in network namespaces: needs root and Linux.
paths: venv
	tests/paths/install.sh
	PILOTFLEET_PATHS=1 $(BIN)/pytest --numprocesses 6 tests/paths

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
