# Every target sets up .venv by itself, once: a stamp remembers that it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOKE := reports/runs/smoke

.PHONY: help venv bench docs gpu test test-all lint format clean

help:
	@echo "make bench   run the smoke preset and write $(SMOKE)/index.html"
	@echo "make gpu     measure on a GPU, eight minutes, records under $(GPU)"
	@echo "make test    run the tests but for the slow ones"
	@echo "make test-all  run all tests: what is compiled, too"
	@echo "make docs    build the documentation into build/site, notebooks executed"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite"

venv: $(STAMP)

# torch first and pinned: an open range would pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

bench: $(STAMP)
	$(BIN)/python -m bench run --preset smoke --out $(SMOKE) --resume
	$(BIN)/python -m bench report $(SMOKE)

# On a machine with a GPU: eight minutes, resumable; whatever torch is there serves.
GPU := reports/runs/gpu-headline
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(STAMP))
	$(GPU_PYTHON) -m bench run --preset gpu-headline --out $(GPU) --resume --threads 1 \
		--build-ahead 12 --time-limit 460

# One thread a process: the processes are what fills the cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --benchmark-disable -n auto --dist worksteal

test: $(STAMP)
	$(TEST) -m "not slow"

test-all: $(STAMP)
	$(TEST)

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
