# make quickstart   environment, real data, training and evaluation on 2 ranks, baselines, report
# make synthetic    the synthetic market of docs/replications.md: model, all baselines, report, replication package (hours)
# make nlsy97       the same for the NLSY97 (DATA="..." for a file elsewhere)
# make test         the tests                make test-quick   those that start no ranks
# make test-hosts   over two hosts           make test-slurm   under a Slurm of one node
#                   (both as root, with Debian's programs; else they say what is missing)
# make test-all     test, test-hosts and test-slurm in one session, as CI runs them
# make test-peers   scores beside those of lm-evaluation-harness, liger-kernel's loss beside ours (installs both)
# make lint         style and types          make benchmarks   the benchmarks that need no GPU
# make gpu-suite    correctness, speed and memory on one NVIDIA GPU, nine minutes at most
# make docs         the manual as a site in site/, its reference pages made from the code
# Settings: PYTHON=python3.12  VENV=.venv  RANKS=2  WORKERS=2 (processes of pytest)
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
WORKERS ?= 2
BIN := $(VENV)/bin
comma := ,
INSTALLED := $(VENV)/installed
# Without a GPU, deepspeed is told so; else every process says that it found none.
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
export PATH := $(abspath $(BIN)):$(PATH)
# A port of its own, so that two runs on one machine do not meet.
PORT = $(shell python3 -c "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])")
DEEPSPEED = deepspeed --num_gpus $(RANKS) --master_port $(PORT) --log_level error

.PHONY: install quickstart synthetic nlsy97 goals test test-all test-quick test-ranks test-hosts test-slurm test-peers lint docs benchmarks gpu-suite peers clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "install: $(VENV) with the versions of constraints.txt (one to three minutes, more where torch brings CUDA)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps linearmodels
	@touch $@

# A step is done again only where something it is made from has changed; the scripts themselves go on where they were.
SOURCES := $(shell find conf laborllm_dist launch -name '*.py' -o -name '*.yaml' -o -name '*.csv')

quickstart: runs/quickstart/scores/baselines
	@python launch/report.py runs='[runs/quickstart]'

runs/%/export/laborllm_dist.json: $(INSTALLED) $(SOURCES)
	@$(DEEPSPEED) launch/train.py +experiment=$*
	@touch $@

runs/%/scores/test.parquet: runs/%/export/laborllm_dist.json
	@$(DEEPSPEED) launch/evaluate.py run=runs/$*
	@touch $@

runs/%/scores/baselines: runs/%/scores/test.parquet
	@python launch/baselines.py run=runs/$*
	@touch $@

# A replication: $(1) experiment, $(2) settings of its data, $(3) baselines beside the others. Every command starts where
# an earlier one was stopped, and does nothing where it is complete.
define replication
	@$(DEEPSPEED) launch/train.py +experiment=$(1) $(2)
	@$(DEEPSPEED) launch/evaluate.py run=runs/$(1)
	@$(DEEPSPEED) launch/evaluate.py run=runs/$(1) title_head=true titles=all
	@$(DEEPSPEED) launch/evaluate.py run=runs/$(1) title_head=true titles=all split=validation
	@python launch/baselines.py run=runs/$(1) baselines='[marginal,first_order,second_order$(3)]'
	@python launch/baselines.py run=runs/$(1) baselines='[logit,logit_two_stage,bag_of_jobs,career]' +schedule=cpu
	@python launch/baselines.py run=runs/$(1) baselines='[average]' average.of='[two_stage_head,career]' +schedule=cpu
	@python launch/report.py runs='[runs/$(1)]'
	@python launch/replicate.py runs='[runs/$(1)]' output=packages/$(1)
endef

synthetic: install
	$(call replication,synthetic_small,,$(comma)truth)

nlsy97: install
	$(call replication,nlsy97_small,$(DATA),)

.PRECIOUS: runs/%/export/laborllm_dist.json runs/%/scores/test.parquet runs/%/scores/baselines

# A file's tests stay in one process: they share what is made once. Files that start ranks come first (tests/conftest.py),
# and while one waits for its ranks, another uses the processor.
PYTEST := OMP_NUM_THREADS=1 pytest -q --dist loadfile --no-loadscope-reorder

test: install
	@$(PYTEST) -n $(WORKERS) -m 'not hosts and not slurm and not peers'

test-all: install
	@$(PYTEST) -n $(WORKERS) -rs -m 'not peers'

test-quick: install
	@$(PYTEST) -n $(WORKERS) -m 'not ranks and not hosts and not slurm and not peers'

test-ranks: install
	@$(PYTEST) -n $(WORKERS) -m 'ranks and not hosts and not slurm and not peers'

test-hosts: install
	@pytest -q -rs tests/distributed/test_hosts.py

test-slurm: install
	@pytest -q -rs tests/distributed/test_slurm.py

test-peers: peers
	@pytest -q -rs -m peers

lint: install
	@ruff check .
	@ruff format --check .
	@mypy

docs: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@$(BIN)/python docs/make_reference.py
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict

goals: quickstart synthetic
	@python benchmarks/goals.py

# One that finds something bad ends with an error; the others go on, and the last one fills the page.
benchmarks: install
	-@python benchmarks/row_fill.py
	-@python benchmarks/architectures.py
	-@python benchmarks/prepare_throughput.py
	-@python benchmarks/prepare_throughput.py --resumes --shards 2
	-@python benchmarks/training_speed.py
	-@python benchmarks/train_throughput.py
	-@python benchmarks/evaluation_throughput.py
	-@python benchmarks/title_coder.py
	-@python benchmarks/memory_plan.py
	-@python benchmarks/kills.py
	-@python benchmarks/own_panels.py --ranks 2
	-@python benchmarks/cluster_simulator.py
	@python benchmarks/records.py

gpu-suite: install
	@python benchmarks/gpu_suite

# What tests and benchmarks compare with: make test-peers; make benchmarks skips those that are not installed
peers: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		dashscope==2.0.2 llama-models==0.3.0 mistral-common==1.13.1

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
