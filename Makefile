# `make` or `make help` lists the targets. Each prints the command it runs, which works without make as well.
# Whatever needs packages first creates .venv and installs into it; nothing outside this folder is changed.

.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2
PORT ?= 5000
STORE ?= sqlite:///$(CURDIR)/mlflow.db
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Neither DVC nor MLflow reports usage from here.
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

# Memory that a training step frees is kept for the next, up to 4 GiB a process, instead of being asked for anew. The
# first is the most that every glibc takes.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 268435456

.PHONY: help
help:  ## list the targets
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS='...'       more arguments for repro, test, paper, compare, demo, smoke, sweep, bench"
	@echo "  PYTHON=...       the interpreter .venv is made with, 3.11 or later (now: $(PYTHON))"
	@echo "  TORCH_INDEX=...  where torch comes from; https://download.pytorch.org/whl/cpu spares"
	@echo "                   machines without a GPU the CUDA packages"
	@echo "  WORKERS=N        test processes ($(WORKERS))"
	@echo "  PORT=N           of the page that ui serves ($(PORT)); STORE=... what it shows"

.PHONY: setup
setup: $(READY)  ## create .venv and install the pinned packages

.PHONY: repro
repro: $(READY)  ## run the pipeline: whatever in dvc.yaml is not up to date
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro $(ARGS)

.PHONY: test
test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(ARGS)

.PHONY: paper
paper: $(READY)  ## run the studies of the paper that are left, then draw the page (ARGS='dark_room --workers 4')
	$(BIN)/python -m distillery.stages.paper $(ARGS)

.PHONY: readme
readme: $(READY)  ## write the README's tables from data/reports/metrics.json and data/results
	$(BIN)/python -m distillery.stages.readme

.PHONY: compare
compare: $(READY)  ## hold two results against each other (ARGS='dark_room/ad dark_room/ed')
	$(BIN)/python -m distillery.stages.compare $(ARGS)

.PHONY: demo
demo: $(READY)  ## watch a trained model learn in context, in the terminal
	$(BIN)/python -m distillery.stages.demo $(ARGS)

.PHONY: smoke
smoke: $(READY)  ## run the whole pipeline at toy size in a temporary copy (ARGS=--keep keeps it)
	$(BIN)/python -m distillery.stages.smoke $(ARGS)

.PHONY: ui
ui: $(READY)  ## serve the tracked runs on http://127.0.0.1:PORT
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 --host 127.0.0.1 --port $(PORT) \
		--backend-store-uri "$(STORE)"

.PHONY: sweep
sweep: $(READY)  ## search hyper-parameters of dark_room (ARGS='sweeps.num_trials=20 ...')
	$(BIN)/python -m distillery.stages.sweep -cd data/resolved/experiments -cn dark_room $(ARGS)

.PHONY: bench
bench: $(READY)  ## time every stage beside what people use today (ARGS='training --threads 1', ARGS=--list)
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: lint
lint: $(READY)  ## check style, format, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: lock
lock: $(READY)  ## pin the newest packages that pyproject.toml admits, in .constraints.txt
	$(BIN)/python .ci/lock $(ARGS)

.PHONY: clean
clean:  ## remove .venv and caches; keeps data, models, unfinished work, DVC's cache and tracked runs
	rm -rf $(VENV) .scratch/packed .scratch/locks .pytest_cache .ruff_cache .mypy_cache .import_linter_cache \
		build src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# With a TORCH_INDEX, torch alone comes from there; the rest finds it installed.
$(READY): pyproject.toml .constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -c '' 2>/dev/null || { \
		echo "error: there is no working '$(PYTHON)'; install Python 3.11 or later, or name one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1), but 3.11 or later is needed; name one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --no-deps -c .constraints.txt --index-url "$(TORCH_INDEX)" torch)
	$(BIN)/python -m pip install --quiet -c .constraints.txt -e '.[dev]'
	@touch $@
