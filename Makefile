# make quickstart   environment, real data, training and evaluation on 2 ranks, comparators, report
# make test         the tests                make test-quick   those that start no ranks
# make lint         style and types          make benchmarks   the benchmarks that need no GPU
# Settings: PYTHON=python3.12  VENV=.venv  RANKS=2
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Without a GPU, deepspeed is told so; else every process says that it found none.
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
export PATH := $(abspath $(BIN)):$(PATH)
DEEPSPEED := deepspeed --num_gpus $(RANKS) --log_level error

.PHONY: install quickstart synthetic test test-quick lint benchmarks clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "install: $(VENV) with the versions of constraints.txt (one to three minutes, more where torch brings CUDA)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install
	@$(DEEPSPEED) launch/train.py +experiment=quickstart
	@$(DEEPSPEED) launch/evaluate.py run=runs/quickstart
	@python launch/comparators.py run=runs/quickstart
	@python launch/report.py runs='[runs/quickstart]'

synthetic: install
	@$(DEEPSPEED) launch/train.py +experiment=synthetic_small
	@$(DEEPSPEED) launch/evaluate.py run=runs/synthetic_small
	@python launch/comparators.py run=runs/synthetic_small comparators='[marginal,first_order,truth]'
	@python launch/report.py runs='[runs/synthetic_small]'

test: install
	@pytest -q

test-quick: install
	@pytest -q -m 'not ranks'

lint: install
	@ruff check .
	@ruff format --check .
	@mypy

benchmarks: install
	@python benchmarks/row_fill.py
	@python benchmarks/prepare_throughput.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
