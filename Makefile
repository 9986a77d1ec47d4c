# make quickstart   from nothing to two trained models and a picture, about ten minutes on two cores
# make test         everything that is tested, in the same environment
VENV ?= .venv
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
MEGABLOCKS := $(VENV)/.megablocks
CORE_TESTS := tests/evaluation/test_pretrained.py tests/test_accounting.py tests/test_preflight.py tests/test_checkpoint.py tests/test_metrics.py tests/test_olmo_compat.py tests/test_core_world.py
PYTEST := $(BIN)/python -m pytest
# tests at once share the cores: with several threads in each, most of the time would go into waiting for one another
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: benchmark quickstart test test-core test-cluster test-fast soak checks install install-core megablocks format clean

quickstart: $(INSTALLED)
	$(BIN)/python -m olmoe_parrots.quickstart $(if $(STEPS),--steps $(STEPS))

test: $(INSTALLED) $(MEGABLOCKS)
	$(ONE_THREAD) $(PYTEST) -m "not cluster" -n 3 --dist loadfile --no-loadscope-reorder

# What `make test` leaves out for its length: further grids of runs, on a real Slurm (which it installs where it may) and without.
test-cluster: $(INSTALLED)
	$(PYTEST) -m cluster

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not cluster"

# The core without dolma, hence with current transformers, in an environment of its own.
test-core: $(VENV)-core/.installed
	$(ONE_THREAD) $(VENV)-core/bin/python -m pytest -n 2 --dist loadfile $(CORE_TESTS)

install-core: $(VENV)-core/.installed

$(VENV)-core/.installed: setup.py constraints-core.txt
	test -x $(VENV)-core/bin/python || $(PYTHON) -m venv $(VENV)-core
	$(VENV)-core/bin/python -c "import torch" 2>/dev/null || $(VENV)-core/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-core/bin/python -m pip install --quiet --constraint constraints-core.txt --editable ".[hf]" pytest pytest-xdist hypothesis networkx
	touch $@

# The kill test in full, minutes of it; make test has it in short.
soak: $(INSTALLED)
	$(BIN)/python tests/soak.py

# Ratios to floors and to other libraries, on an idle machine; docs/performance.md. Reports go to runs/benchmarks.
benchmark: install-core
	mkdir -p runs/benchmarks
	$(VENV)-core/bin/python benchmarks/moe_layer.py --short --output runs/benchmarks
	$(VENV)-core/bin/python benchmarks/train_step.py --rounds 5 --slow-rounds 1 --output runs/benchmarks
	$(VENV)-core/bin/python benchmarks/memory.py --short --rounds 1 --output runs/benchmarks
	$(VENV)-core/bin/python benchmarks/scaling.py --short --output runs/benchmarks
	$(VENV)-core/bin/python benchmarks/start_up.py --rounds 3 --output runs/benchmarks

checks: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

# A torch that is already in the environment is left alone; all the rest is pinned by constraints.txt.
$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[data,eval,hf,dev]"
	touch $@

megablocks: $(MEGABLOCKS)

# MegaBlocks' pure Python and Triton parts, without its CUDA extension (which CUDA 13 does not compile) and without
# its pins (which would replace torch). Its setup.py asks torch for CUDA_HOME: a stand-in tells it that there is none.
$(MEGABLOCKS): $(INSTALLED)
	$(PIP) install --quiet "setuptools>=68" wheel packaging
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install --quiet --no-deps triton==3.9.0
	mkdir -p build/no-cuda/torch/utils
	printf '__version__ = "0"\n' > build/no-cuda/torch/__init__.py
	: > build/no-cuda/torch/utils/__init__.py
	printf 'CUDA_HOME = BuildExtension = CUDAExtension = None\n' > build/no-cuda/torch/utils/cpp_extension.py
	PYTHONPATH=$(CURDIR)/build/no-cuda $(PIP) install --quiet --no-deps --no-build-isolation stanford-stk==0.7.1 megablocks==0.10.0
	$(BIN)/python -c "from olmoe_parrots.moe.megablocks import load_megablocks; print(load_megablocks().__file__)"
	touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
