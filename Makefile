# make train, make test: each builds .venv first. EXTRA=cuda12 (or cuda13, tpu) builds it for an accelerator.
VENV ?= .venv
# What was built before stays: `make train` after `make env EXTRA=cuda12` keeps the accelerator's environment.
EXTRA ?= $(filter-out cpu,$(firstword $(patsubst $(VENV)/.built-%,%,$(wildcard $(VENV)/.built-*))))
BIN := $(VENV)/bin
TORCH ?= .venv-torch
PEERS ?= .venv-peers
SOLVER ?= .venv-solver
# A Python with a CPU build of PyTorch at hand: the newest may find only the CUDA build, which is gigabytes.
TORCH_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.11*/bin/python) $(shell command -v python3.11) python3)
STAMP := $(VENV)/.built-$(or $(EXTRA),cpu)
CONSTRAINTS ?= constraints.txt

.PHONY: train test test-oldest test-slow test-browser parity check results figures docs docs-serve wheel env bench bench-torch bench-models bench-rl bench-scale bench-connect-four clean

train: env  ## the main job: a CNN on handwritten digits over eight seeds
	$(BIN)/jdl run digits --seeds 8

test: env  ## the tests, under 8 minutes on 2 cores
	$(BIN)/python -m pytest

test-oldest:  ## the tests with the oldest dependencies that pyproject.toml allows, in an environment of their own
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt PYTHON=$(PYTHON)

# Tests of one file go to whichever worker is free: some are minutes long. Shapes are checked in `make test` alone: a
# fifth of the time.
test-slow: env  ## those that take seconds or minutes each: learning agents, kills, processes, sweeps, every page of the documentation, every experiment
	$(BIN)/python -m pytest -m "(slow or medium) and not diagnosis" --dist worksteal --jaxtyping-packages=

test-browser: env  ## the report in headless Chromium
	$(BIN)/python -m pytest -m browser

parity: env $(TORCH)/.built  ## networks beside PyTorch and Transformers, updates beside Stable-Baselines3, with the same weights
	JDL_TORCH_PYTHON=$(TORCH)/bin/python $(BIN)/python -m pytest -m parity

check: env  ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/jdl results --check

results: env  ## the tables of the READMEs, written from the records
	$(BIN)/jdl results --write

figures: env  ## measure again the records that are out of date, one after another (hours); ONLY=NAME for one
	$(BIN)/jdl measure $(ONLY)

docs: env  ## the documentation site, in site/; warnings are errors
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_notebooks.py
	$(BIN)/zensical build --strict --clean

docs-serve: docs  ## the site at localhost:8000
	$(BIN)/zensical serve

wheel: env  ## the package, in dist/
	$(BIN)/python -m build

env: $(STAMP)  ## the environment alone

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python=$$(PYTHON=$(PYTHON) sh ./find-python) && echo "building $(VENV) with $$python" && $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c $(CONSTRAINTS) pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) --group dev -e ".$(if $(EXTRA),[$(EXTRA)])"
	# Its returns are what ours are tested against; of what it depends on, one part knows no JAX of today.
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) rlax
	# Of skfolio only a file of prices is read, so nothing that it depends on is needed.
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) skfolio
	@touch $@

bench: env  ## the framework's speed beside hand-written loops
	$(BIN)/python -m experiments.bench.core

bench-torch: env $(TORCH)/.built  ## beside PyTorch (CPU, 2 threads), which has an environment of its own
	$(BIN)/python -m experiments.bench.torch_peer --torch-python $(TORCH)/bin/python

bench-models: env $(TORCH)/.built  ## the network families beside PyTorch, eager and compiled
	$(BIN)/python -m experiments.bench.models --torch-python $(TORCH)/bin/python

$(TORCH)/.built:
	$(TORCH_PYTHON) -m venv --clear $(TORCH)
	$(TORCH)/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 stable-baselines3==2.9.2
	@touch $@

bench-scale: env  ## modes of using devices, checkpoints, plans beside measured steps
	$(BIN)/python -m experiments.bench.scale
	$(BIN)/python -m experiments.bench.estimates
	$(BIN)/python -m experiments.bench.drift

bench-rl: env $(PEERS)/.built  ## beside Stable-Baselines3 and SBX, which have an environment of their own
	$(BIN)/python -m experiments.bench.rl --peer-python $(PEERS)/bin/python

bench-connect-four: env $(SOLVER)/.built  ## mistakes of the agents of RUN, by a perfect solver, which has an environment of its own
	$(BIN)/python -m experiments.bench.connect_four $(RUN) --solver-python $(SOLVER)/bin/python

$(SOLVER)/.built: env
	$(BIN)/python -m venv --clear $(SOLVER)
	$(SOLVER)/bin/python -m pip install --quiet bitbully==0.0.79 bitbully-databases==0.0.2
	@touch $@

$(PEERS)/.built:
	$(TORCH_PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 stable-baselines3==2.9.2 sbx-rl==0.28.0 mujoco==3.17.0
	@touch $@

clean:
	rm -rf $(VENV) $(TORCH) $(PEERS) $(SOLVER)
