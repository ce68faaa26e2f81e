# make install | train | test | lint, each from a fresh clone. Nothing is redone without need.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
CPP_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: install train test lint

install: .venv/installed

train: install
	$(BIN)/python -m deepcrf_ext.train

test: install
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

.venv/installed: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	$(BIN)/python -m deepcrf_ext.env
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
