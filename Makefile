# Everything from a fresh machine: `make demo` shows the main job on real data, `make test` runs all checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt freedom-requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rdrop-analysis needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r freedom-requirements.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/rdrop-analyze demo --output rdrop-demo

test: lint
	$(BIN)/python -m pytest -q

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) rdrop-demo rdrop-report build dist
