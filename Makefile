# make demo   the whole pipeline on built-in street scenes
# make test   lint, types and the suite            make test-fast   without the slow tests
# make test-long   what takes minutes: sweeps and jobs that are stopped, killed, lose a node or a server
# make bench  ratios, side by side, on this machine
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long test-fast lint bench clean

demo: .venv/demo
	$(BIN)/d2sm demo

test: lint
	$(BIN)/python -m pytest

test-long: .venv/dev
	$(BIN)/python -m pytest -m long

test-fast: lint
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m tests.benchmarks

# Markers say which extras are installed; a changed pyproject.toml or pin installs again.
.venv/demo: pyproject.toml pins.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c pins.txt -e ".[pipelines]"
	touch $@

.venv/dev: .venv/demo
	$(BIN)/python -m pip install --quiet -c pins.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
