# `make course` and `make test` set up everything they need. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
PROFILE ?= laptop
BIN := .venv/bin

.PHONY: setup course test doctor fetch clean
setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with PYTHON=… ."; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "error: the virtual environment could not be made; on Debian or Ubuntu install python3-venv first."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || { echo "error: the pinned packages could not be installed; is the package index within reach?"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . || { echo "error: the project itself could not be installed."; exit 1; }
	@touch $@

fetch: setup
	@$(BIN)/python -m utils fetch --profile $(PROFILE)

course: fetch
	@$(BIN)/python -m utils course --profile $(PROFILE)

test: setup
	@$(BIN)/python -m utils fetch --profile smoke
	@$(BIN)/python -m pytest

doctor: setup
	@$(BIN)/python -m utils doctor

clean:
	rm -rf .venv
