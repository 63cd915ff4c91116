# Two commands: `make quickstart` and `make test`. Both create the environment if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow test-chaos test-slurm test-ray lint types check settings clean help

help:            ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; say which: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

quickstart: $(STAMP)  ## render smears, run the sweep, print the matrix (under 10 minutes on 2 cores)
	$(BIN)/da-leukemia sweep run experiments/quickstart.yaml

test: $(STAMP)   ## the tests (under 8 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 -q

test-slow: $(STAMP)  ## tests that train for minutes
	$(BIN)/python -m pytest -q -m slow -o addopts=""

test-chaos: $(STAMP)  ## kills runners at 30 random moments, the matrix must not change
	$(BIN)/python -m pytest -q -m chaos tests/test_chaos.py

SLURM_HOME ?= /tmp/da-leukemia-slurm
test-slurm: $(STAMP)  ## the SLURM executor on a SLURM of its own (Debian; installs it, as root)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,slurm]"
	bash tests/cluster/slurm_up.sh $(SLURM_HOME)
	. $(SLURM_HOME)/env.sh && $(BIN)/python -m pytest -q -m slurm tests/test_executors_slurm.py; \
	  code=$$?; bash tests/cluster/slurm_down.sh $(SLURM_HOME); exit $$code

test-ray: $(STAMP)  ## the Ray executor on a cluster of two nodes on this machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,ray]"
	$(BIN)/python -m pytest -q -m ray tests/test_executors_ray.py

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## what CI runs

settings: $(STAMP)  ## docs/settings.md, the list of all settings
	$(BIN)/python docs/settings.py

clean:           ## forget the environment and all runs
	rm -rf $(VENV) runs
