# Needs make and Python >= 3.11, nothing else: the targets make a virtual environment in $(VENV) and install into it.
#
#   make demo                         install and run the main job on built-in data
#   make test ARGS='-k resnet'        install and run the tests
#   make demo PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'     with torch for CPUs only (smaller)
#   make demo PYTHON=python3.13 VENV=../opsin-env

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=
ARGS     ?=
NAME     ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN  := $(BIN)/python
PIP  := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
CODE := src tests

.DEFAULT_GOAL := help
.PHONY: help demo test check format contract docs clean

help:  ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18
	@echo "  Variables: PYTHON VENV PIP_ARGS ARGS (see the head of Makefile)"

demo: $(VENV)/installed  ## install once, then run the main job on built-in data (ARGS=... go to opsin demo)
	$(RUN) -m opsin demo $(ARGS)

test: $(VENV)/installed-dev  ## run the tests (ARGS=... go to pytest)
	$(RUN) -m pytest $(ARGS)

check: $(VENV)/installed-dev  ## check format, style, types and who imports whom
	$(RUN) -m ruff format --check $(CODE)
	$(RUN) -m ruff check $(CODE)
	$(RUN) -m mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/installed-dev  ## format the code and mend what can be mended
	$(RUN) -m ruff format $(CODE)
	$(RUN) -m ruff check --fix $(CODE)

contract: $(VENV)/installed-dev  ## run the contract tests of one thing: make contract NAME=resnet
	@test -n "$(NAME)" || { echo "Which one? For example: make contract NAME=resnet"; exit 2; }
	$(RUN) -m pytest tests/contracts -k "$(NAME)" $(ARGS)

docs: $(VENV)/installed-docs  ## build the documentation into site/
	$(RUN) -m mkdocs build --strict $(ARGS)

clean:  ## remove the virtual environment, caches and build products; runs and results stay
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

# The environment. Each file is a stamp: it is made anew when what is to be installed has changed.

$(VENV)/created:
	@$(PYTHON) -c 'pass' || { echo "'$(PYTHON)' cannot be run. Install Python 3.11 or newer, or name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "opsin needs Python 3.11 or newer and '$(PYTHON)' is older. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv. Or name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing opsin and what it needs into $(VENV), once. The standard torch for Linux brings CUDA (about 5 GB);"
	@echo "for CPUs only: PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'."
	$(PIP) -e '.[export]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[export,dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/created constraints.txt
	$(PIP) mkdocs
	@touch $@
