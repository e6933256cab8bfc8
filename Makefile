# make train, make test: each builds .venv first. EXTRA=cuda12 (or cuda13, tpu) builds it for an accelerator.
VENV ?= .venv
EXTRA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.built-$(or $(EXTRA),cpu)

.PHONY: train test test-slow test-browser check env bench bench-torch clean

train: env  ## the main job: a CNN on handwritten digits over eight seeds
	$(BIN)/jdl run digits --seeds 8

test: env  ## the tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest

test-slow: env  ## minutes more: at least 20 kills, full trainings
	$(BIN)/python -m pytest -m slow

test-browser: env  ## the report in headless Chromium
	$(BIN)/python -m pytest -m browser

check: env  ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

env: $(STAMP)  ## the environment alone

$(STAMP): pyproject.toml constraints.txt
	@python=$$(sh ./find-python) && echo "building $(VENV) with $$python" && $$python -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e ".$(if $(EXTRA),[$(EXTRA)])"
	@touch $@

bench: env  ## the framework's speed beside hand-written loops
	$(BIN)/python -m experiments.bench.core

clean:
	rm -rf $(VENV) .venv-torch
