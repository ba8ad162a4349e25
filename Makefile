# make install   d2sm and all it needs, into .venv; then: source .venv/bin/activate
# make demo   the whole pipeline on built-in street scenes (installs first)
# make test   lint, types and the suite            make test-fast   without the slow tests
# make test-long   what takes minutes: sweeps and jobs that are stopped, killed, lose a node or a server
# make test-floors   the quick tests with the oldest versions that pyproject.toml allows, in an environment of their own
# make bench  ratios, side by side, on this machine       make gpu [DATA=folder]   what needs a GPU, in 8 minutes
PYTHON ?= python3
BIN := .venv/bin
# Two processes: much of the suite waits for Ray to start, or for a process to end.
SIDE_BY_SIDE := -n 2 --dist loadfile

.PHONY: install demo test test-long test-fast test-floors lint bench gpu clean

install: .venv/demo
	@echo "d2sm is installed in .venv; put it on the path with: source .venv/bin/activate"

demo: .venv/demo
	$(BIN)/d2sm demo

test: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-long: .venv/dev
	$(BIN)/python -m pytest -m long

test-fast: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-floors: .venv/floors/installed
	.venv/floors/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not long"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m tests.benchmarks

gpu: .venv/dev
	$(BIN)/python -m tests.gpu $(if $(DATA),--data "$(DATA)")

# Markers say which extras are installed; a changed pyproject.toml or pin installs again.
.venv/demo: pyproject.toml pins.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "d2sm needs Python 3.11 or later, $(PYTHON) is older; name another: make install PYTHON=python3.12"; exit 1; }
	@echo "installing d2sm and what it needs (torch, Ray, MLflow) into .venv: about 7 GB, 3 to 5 minutes; pip shows how far"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c pins.txt -e ".[pipelines]"
	@touch $@

.venv/dev: .venv/demo
	@echo "installing the tools of the tests into .venv"
	$(BIN)/python -m pip install -c pins.txt -e ".[dev]"
	@touch $@

.venv/floors/installed: pyproject.toml
	$(PYTHON) -m venv .venv/floors
	.venv/floors/bin/python -m pip install --quiet uv
	.venv/floors/bin/uv pip install --quiet --python .venv/floors --resolution lowest-direct -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
