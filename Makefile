# Every target sets up .venv by itself, once: a stamp remembers that it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOKE := reports/runs/smoke

# Which build of torch: cpu, cuda, or auto, which takes cuda where an NVIDIA driver answers. The
# default index has CUDA packages of 5 GB behind its Linux builds for x86, and CPU builds elsewhere.
TORCH ?= auto
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# pip, or uv pip where uv is there and asked for: make venv PIP="uv pip".
PIP ?= $(BIN)/python -m pip

.PHONY: help venv bench report release release-check docs gpu axe test test-all test-slurm lint \
	format ci nightly history history-quick history-site continuous time-gate dist data clean

help:
	@echo "make bench   run the smoke preset and write $(SMOKE)/index.html"
	@echo "make report  render the published runs into $(HTML)/index.html"
	@echo "make release   measure all that is published, resumable; make release-check says what is missing"
	@echo "make dist, make data  build the packages, and the release's records as data"
	@echo "make gpu     measure on a GPU, eight minutes, records under $(GPU)"
	@echo "make test    run the tests but for the slow ones"
	@echo "make test-all  run all tests: what is compiled, and Parquet, too"
	@echo "make axe     fetch axe-core, for the accessibility test of make test-all"
	@echo "make test-slurm  run a Slurm of one node and the sweep on it (root, Debian's packages)"
	@echo "make docs    build the documentation into build/site, notebooks executed"
	@echo "make lint    ruff, mypy, docstrings, workflows"
	@echo "make format  let ruff rewrite"
	@echo "make ci, make nightly  what continuous integration runs"
	@echo "make history, history-quick, history-site  asv over this commit, its counts only, its pages"
	@echo "TORCH=cpu|cuda|auto  which build of torch .venv gets"

venv: $(STAMP)

# torch first and pinned: an open range would pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP="$(PIP)" BIN=$(BIN) TORCH=$(TORCH) TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) .ci/install-torch
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# What only some targets need is installed when one of them is first called.
$(VENV)/.%: $(STAMP)
	$(PIP) install --quiet -c constraints.txt -e ".[$*]"
	touch $@

bench: $(STAMP)
	$(BIN)/python -m bench run --preset smoke --out $(SMOKE) --resume
	$(BIN)/python -m bench report $(SMOKE)

# The pages of the runs kept under reports/, which hold records only.
HTML := reports/html
report: $(STAMP)
	$(BIN)/python -m bench.report.rendered --out $(HTML)

# Stopped at any moment, it goes on where it was. From a clean tree of a commit only.
release: $(STAMP)
	$(BIN)/python -m bench release

# Complete and of one state; and every page, table and verdict is what the records say.
release-check: $(STAMP)
	$(BIN)/python -m bench release --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -k "summary or generated or committed" \
		tests/test_published.py tests/bench/test_documents.py tests/bench/test_claims.py

# On a machine with a GPU: eight minutes, resumable; whatever torch is there serves.
GPU := reports/runs/gpu-headline
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(STAMP))
	$(GPU_PYTHON) -m bench run --preset gpu-headline --out $(GPU) --resume --threads 1 \
		--build-ahead 12 --time-limit 460

# One thread a process: the processes are what fills the cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --benchmark-disable -n auto --dist worksteal

test: $(STAMP)
	$(TEST) -m "not slow and not slurm"

test-all: $(STAMP) $(VENV)/.export
	$(TEST) -m "not slurm"

# What the test of the pages' accessibility runs in the browser; without npm it is skipped.
axe:
	npm install --silent --no-audit --no-fund --prefix build axe-core@4.14.1

# Twice: with Slurm's accounting database where slurmdbd and mariadbd are there, and without.
SLURM := /tmp/jfbbench-slurm
test-slurm: $(STAMP)
	for accounting in none $$(command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null && echo dbd); do \
		tests/slurm/node.sh start $(SLURM)-$$accounting $$accounting || exit 1; \
		SLURM_CONF=$(SLURM)-$$accounting/slurm.conf OMP_NUM_THREADS=1 \
			$(BIN)/python -m pytest -q tests/slurm -m slurm; code=$$?; \
		tests/slurm/node.sh stop $(SLURM)-$$accounting; \
		test $$code = 0 || exit $$code; \
	done

docs: $(STAMP) $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build

lint: $(STAMP) $(VENV)/.lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/interrogate --quiet jfbcore baselines
	$(BIN)/zizmor --quiet --offline .github
	if command -v actionlint >/dev/null; then actionlint; fi

format: $(STAMP) $(VENV)/.lint
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# What continuous integration runs: on every change, and every night.
ci: lint $(VENV)/.export test release-check
	$(BIN)/python -m bench gate
	$(BIN)/python -m bench verify --quick

nightly: bench test-all
	$(BIN)/python -m bench verify --quick
	$(BIN)/python -m bench gate --self-test --out reports/runs/gate-selftest

# The history of REVISIONS, by default of this commit, and the pages of all that is in reports/asv.
# history-quick: counts only. MACHINE: its name in the results, which are public: no host's name.
# COMMIT_URL: what a commit's hash is put after, for the links of the pages.
MACHINE ?= cpu
BENCH ?= .
REVISIONS ?= HEAD^!
BASE ?= origin/main
FACTOR ?= 1.1
ASV := $(BIN)/asv machine --yes --machine $(MACHINE) --os $$(uname -s) --arch $$(uname -m) && $(BIN)/asv
history: $(STAMP)
	$(ASV) run --machine $(MACHINE) --bench "$(BENCH)" --skip-existing-successful $(REVISIONS)

history-quick: BENCH := Quantities.track_(saved_bytes|peak_live_bytes|iterations)
history-quick: history

continuous: $(STAMP)
	$(ASV) continuous --machine $(MACHINE) --factor $(FACTOR) --bench "$(BENCH)" $(BASE) HEAD

# Time against the first parent, or against what was there SINCE a time.
SINCE ?=
time-gate: $(STAMP)
	base=HEAD^1; \
	if [ -n "$(SINCE)" ]; then base=$$(git rev-list -1 --first-parent --before="$(SINCE)" HEAD); fi; \
	$(BIN)/python -m bench gate --base "$${base:-HEAD^1}"

COMMIT_URL ?=
history-site: $(STAMP)
	sed 's|"show_commit_url": "[^"]*"|"show_commit_url": "$(COMMIT_URL)"|' asv.conf.json > .asv.site.json
	$(BIN)/asv --config .asv.site.json publish
	rm .asv.site.json

dist: $(STAMP) $(VENV)/.publish
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The release's records as data: lines, Parquet, schema, card, checksums, and all of it as one archive.
DATA := build/jfbbench-data-$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
data: $(STAMP) $(VENV)/.export
	rm -rf $(DATA) $(DATA).zip
	$(BIN)/python -m bench release --pack $(DATA)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
