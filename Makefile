# `make course`, `make test`, `make lint` and `make lab` set up everything they need.
# PYTHON picks the interpreter (3.11 to 3.13), PROFILE the scale, WORKERS the tests' processes, of one thread each.
PYTHON ?= python3
PROFILE ?= laptop
WORKERS ?= 2
BIN := .venv/bin

.PHONY: setup fetch course lab test lint doctor clean
setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=… ."; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "error: the virtual environment could not be made; on Debian or Ubuntu install python3-venv first."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || { echo "error: the pinned packages could not be installed; is the package index within reach?"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . || { echo "error: the project itself could not be installed."; exit 1; }
	@touch $@

fetch: setup
	@$(BIN)/python -m utils fetch --profile $(PROFILE)

course: fetch
	@$(BIN)/python -m utils course --profile $(PROFILE)

lab: setup
	@$(BIN)/jupyter lab notebooks/

test: setup
	@$(BIN)/python -m utils fetch --profile smoke
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

# Three tools, each also a test (tests/test_habits.py) and a hook (.pre-commit-config.yaml); rules in pyproject.toml.
lint: setup
	@$(BIN)/ruff check
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

doctor: setup
	@$(BIN)/python -m utils doctor

clean:
	rm -rf .venv
