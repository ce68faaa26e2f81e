# make install | train | test | test-all | lint | sanitize | wheel, each from a fresh clone. Nothing is redone without need.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
CPP_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: install train test test-all lint sanitize

install: .venv/installed

train: install
	$(BIN)/python -m deepcrf_ext.train

# A process for each core, and so one thread in each. What a change needs; test-all is everything.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --hypothesis-profile few

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

# The operator tests over a build with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: install
	$(BIN)/cmake --fresh -S . -B build/sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DDEEPCRF_CUDA=off -DDEEPCRF_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitized
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=tests DEEPCRF_EXTENSION_FOLDER=build/sanitized/module \
	OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n auto -p extension_folder -k "not cuda and not compile" \
	  tests/ops/test_operators.py tests/ops/test_pairwise_nll.py tests/ops/test_pairwise_messages.py \
	  tests/ops/test_mean_field.py tests/ops/test_pseudo_likelihood.py tests/ops/test_range_box_edges.py \
	  tests/ops/test_permutohedral_filter.py tests/ops/test_dense_crf.py \
	  tests/ops/test_gated_crf_loss.py tests/ops/test_dense_crf_loss.py

.venv/installed: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	$(BIN)/python -m deepcrf_ext.env
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
