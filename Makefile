# Each target sets up .venv by itself. `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
DEMO_MODEL := examples/quickstart/run/model/pair_pm.json
# axolotl reports each run to its makers' server unless this is set before it starts.
export AXOLOTL_DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm lint clean

help: ## say what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## make .venv, or bring it up to date with the requirements

$(VENV)/installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required")'
	@echo "== Installing into $(VENV): about 5 GB, 4 to 5 minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# fschat asks for it, and what its own setup.py fetches to build itself with is broken; built by pip it is not.
	$(BIN)/python -m pip install --quiet --use-pep517 wavedrom==2.0.3.post3
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	@# Its scoring functions are an oracle of the tests; what it requires is not needed for that, and would conflict.
	$(BIN)/python -m pip install --quiet --no-deps rewardbench==0.1.4
	$(BIN)/python -m pip install --quiet -e . --no-deps
	@touch $@

demo: install ## run the whole main job on generated data: process, prepare, train, evaluate, compare
	@echo "== The main job on the quickstart data, on this machine's CPU"
	PATH="$(CURDIR)/$(BIN):$$PATH" python examples/quickstart/run_demo.py

test: install ## run the tests, two files at a time
	@echo "== Tests"
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-vllm: install $(VLLM_VENV)/installed $(DEMO_MODEL) ## run the tests against real vLLM servers, on the CPU
	@echo "== Tests against vLLM on the quickstart's model"
	PATH="$(CURDIR)/$(BIN):$$PATH" PAIR_PM_VLLM_PYTHON="$(CURDIR)/$(VLLM_VENV)/bin/python" \
		python -m pytest tests/test_with_vllm.py

$(VLLM_VENV)/installed: requirements-vllm-cpu.txt
	@echo "== Installing vLLM into $(VLLM_VENV): 3.5 GB, 2 minutes"
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet -r requirements-vllm-cpu.txt
	@# They come along as builds for CUDA, and beside a CPU's torch they break the import of transformers.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(DEMO_MODEL):
	$(MAKE) demo

lint: install ## check style and formatting
	@echo "== Lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(VLLM_VENV) *.egg-info examples/quickstart/data examples/quickstart/base_model examples/quickstart/run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .hypothesis
