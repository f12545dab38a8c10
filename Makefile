# `make demo` and `make test` need python3 (3.11 or newer), git and make; the rest is installed into .venv under
# the versions of constraints.txt. Set PYTHON to use another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
TL3 := .venv-tl3
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
OLD_LENS := $(TL3)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-tl3 lint bench docs clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(RUNTIME)  ## set up, then find the circuit of a model that ships (no download of weights)
	$(VENV)/bin/wiretrace discover ioi

# Up to four processes, one thread each: more would only wait for each other.
PYTEST := -m pytest -n auto --maxprocesses 4

test test-tl3: export HF_HUB_OFFLINE := 1
test test-tl3: export OMP_NUM_THREADS := 1

test: $(DEVELOPMENT)  ## set up, then run the tests
	$(VENV)/bin/python $(PYTEST) $(TESTS)

test-tl3: $(OLD_LENS)  ## the same tests in a second environment, with transformer_lens 3.9
	$(TL3)/bin/python $(PYTEST) $(TESTS)

lint: $(DEVELOPMENT)  ## ruff and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: $(RUNTIME)  ## the benchmark table
	$(VENV)/bin/python -m experiments.benchmarks

docs: $(DEVELOPMENT)  ## the documentation site, into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

clean:  ## remove the environments, caches and built files (never runs/)
	rm -rf $(VENV) $(TL3) build dist site .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: pip then takes the build that it finds for the pinned version, and the packages
# after it find their requirement met.
$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Wiretrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (about 1.7 GB; a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt torch==2.13.0
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

$(OLD_LENS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TL3)
	sed 's/^transformer-lens==.*/transformer-lens==3.9.0/' constraints.txt > $(TL3)/constraints.txt
	$(TL3)/bin/python $(PIP_INSTALL) -c $(TL3)/constraints.txt torch==2.13.0
	$(TL3)/bin/python $(PIP_INSTALL) -c $(TL3)/constraints.txt -e '.[dev]'
	@touch $@
