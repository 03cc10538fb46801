# Each target sets up .venv by itself. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# axolotl reports each run to its makers' server unless this is set before it starts.
export AXOLOTL_DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help: ## say what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/installed ## make .venv, or bring it up to date with the requirements

$(VENV)/installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required")'
	@echo "== Installing into $(VENV): about 5 GB, 4 to 5 minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# fschat asks for it, and what its own setup.py fetches to build itself with is broken; built by pip it is not.
	$(BIN)/python -m pip install --quiet --use-pep517 wavedrom==2.0.3.post3
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet -e . --no-deps
	@touch $@

demo: install ## run the whole main job on generated data: process, prepare, train, evaluate, compare
	@echo "== The main job on the quickstart data, on this machine's CPU"
	PATH="$(CURDIR)/$(BIN):$$PATH" python examples/quickstart/run_demo.py

test: install ## run the tests, two files at a time
	@echo "== Tests"
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -n 2 --dist loadfile

lint: install ## check style and formatting
	@echo "== Lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) *.egg-info examples/quickstart/data examples/quickstart/base_model examples/quickstart/run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .hypothesis
