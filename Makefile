# `make bench` and `make test` set everything up by themselves; the rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CUDA_VENV := .venv-cuda
OLDEST_VENV := .venv-oldest
SOURCES := $(wildcard csrc/*.cpp csrc/*/*)
BUILD_FILES := setup.py pyproject.toml $(wildcard build_backend/*.py)
# Two test processes on two cores: threads that wait must not keep the other process from running.
PYTEST_OPTIONS := -n auto --maxprocesses 4 --dist loadfile
TEST_ENVIRONMENT := OMP_WAIT_POLICY=passive

.PHONY: bench bench-full test lint format cuda-check oldest-check package-check gpu-check clean

bench: $(VENV)/.built
	$(BIN)/python -m mixer_kernels bench --preset quick

bench-full: $(VENV)/.built
	$(BIN)/python -m mixer_kernels bench --preset full

test: $(VENV)/.built
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest $(PYTEST_OPTIONS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The CUDA extension built, linked, imported and inspected against a CUDA build of torch, and the whole test-suite there.
# A regular install: an editable one would replace the extension that $(VENV) uses.
cuda-check: $(CUDA_VENV)/.installed
	MIXER_KERNELS_CUDA=1 $(CUDA_VENV)/bin/pip install --no-deps --force-reinstall .
	$(CUDA_VENV)/bin/python tests/check_cuda_build.py
	$(TEST_ENVIRONMENT) $(CUDA_VENV)/bin/pytest $(PYTEST_OPTIONS)

# The test-suite with the oldest releases that the package accepts.
oldest-check: $(OLDEST_VENV)/.installed
	MIXER_KERNELS_CUDA=0 $(OLDEST_VENV)/bin/pip install --no-deps --force-reinstall .
	$(TEST_ENVIRONMENT) $(OLDEST_VENV)/bin/pytest $(PYTEST_OPTIONS)

# Every way to install: sdist, wheel, without build isolation.
package-check: $(VENV)/.built
	$(BIN)/python tests/check_packaging.py

# On a machine with an NVIDIA GPU, with the Python and torch that are there; see tests/gpu_check.py for its stages.
gpu-check:
	$(PYTHON) tests/gpu_check.py

$(VENV)/.installed: requirements/dev.txt requirements/tools.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -r requirements/dev.txt
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES) $(BUILD_FILES)
	$(BIN)/pip install -e .
	@touch $@

$(CUDA_VENV)/.installed: requirements/cuda.txt requirements/tools.txt
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install -r requirements/cuda.txt
	@touch $@

$(OLDEST_VENV)/.installed: requirements/oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install -r requirements/oldest.txt
	@touch $@

clean:
	rm -rf build dist *.egg-info mixer_kernels/_C*.so $(VENV) $(CUDA_VENV) $(OLDEST_VENV)
