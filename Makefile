# Every target sets up .venv by itself, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
STARTED := $(VENV)/.install-started
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-slow test-oldest check docs docs-serve dist bench soak gpu-queue format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv with pinned versions of what a run needs; afterwards .venv/bin/uhkd runs

install-dev: $(STAMP_DEV) ## the same, and what tests, checks, documentation and all extras need

demo: $(STAMP) ## a teacher and its students on handwritten digits, in minutes, on any CPU
	$(BIN)/uhkd demo --out runs/demo

test: $(STAMP_DEV) ## the tests, in parallel with one thread each
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --maxprocesses 8 -m "not slow"

test-slow: $(STAMP_DEV) ## the tests that take minutes
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --maxprocesses 8 -m slow

OLDEST := .venv-oldest
CORE := $(addprefix tests/,spectral features methods models data cache recipe runs evaluation training test_golden.py)

test-oldest: $(OLDEST)/.installed ## the tests of the core with the oldest supported versions, on Python 3.11, in .venv-oldest
	$(ONE_THREAD) $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal --maxprocesses 8 -m "not slow" $(CORE)

check: $(STAMP_DEV) ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP_DEV) ## the site of docs/ and the code in build/site, without network; a warning is an error
	$(BIN)/python website/make_site.py

docs-serve: $(STAMP_DEV) ## the same, shown at http://127.0.0.1:8000
	$(BIN)/python website/make_site.py --serve

bench: $(STAMP_DEV) ## all measurements in MINUTES (9), as the JSON file OUT; on a GPU where there is one
	$(BIN)/python benchmarks/everything.py --minutes $(or $(MINUTES),9) --out $(or $(OUT),bench.json)

soak: $(STAMP_DEV) ## kills, faults and resumed runs for MINUTES (60), what was lost or leaked as the JSON file OUT
	$(ONE_THREAD) $(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),60) --out $(or $(OUT),soak.json)

# PYTHON_HERE=python3 takes an interpreter that has everything already, as on a machine without a package index.
gpu-queue: $(if $(PYTHON_HERE),,$(STAMP_DEV)) ## the report and the large comparison in pieces of MINUTES (9) on a GPU: DATA is CIFAR-100, STATE what is carried on
	PYTHONPATH=$(CURDIR)/src $(or $(PYTHON_HERE),$(BIN)/python) benchmarks/gpu_queue.py --minutes $(or $(MINUTES),9) \
		--data $(or $(DATA),cifar100) --state $(or $(STATE),runs/gpu-state)

dist: $(STAMP_DEV) ## wheel and source distribution in dist/, built offline with what .venv has
	rm -rf dist build
	$(BIN)/python -m build --no-isolation

format: $(STAMP_DEV) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, .venv-oldest, caches and build output; runs stay
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e

# A stamp is written last. An installation that was cut short leaves .install-started behind and is begun anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "uhkd needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
		echo "Name another one: make install PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $(STARTED) ]; then echo "the last installation was cut short: beginning anew"; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(STARTED) && rm -f $(STAMP)
	@echo "setting up $(VENV) (once; torch and its CUDA libraries take about 6 GB)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@rm -f $(STARTED) && touch $(STAMP)

# Without the first stamp the next command looks whether this was cut short.
$(STAMP_DEV): $(STAMP)
	@touch $(STARTED) && rm -f $(STAMP) $(STAMP_DEV)
	@echo "adding to $(VENV) what tests, checks and documentation need"
	$(INSTALL) '.[dev]'
	@rm -f $(STARTED) && touch $(STAMP) && touch $(STAMP_DEV)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	rm -rf $(OLDEST)
	$(or $(PYTHON311),python3.11) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	@touch $@
