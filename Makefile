# `make help` lists the targets. Everything runs in .venv, which is built from
# setup.py on first use and again whenever setup.py changes.

# The interpreters to try, the newest first: those on PATH, and those that pyenv
# keeps and does not show there. `make PYTHON=/path/to/python test` names one.
PYTHON ?=
LOOK := import sys; v = sys.version_info; \
  v[:2] >= (3, 11) and v[3] == "final" and \
  print("{}.{}.{}".format(*v), sys.executable)
define INTERPRETERS
  for p in $(if $(PYTHON),"$(PYTHON)",python3 python python3.11 python3.12 \
    python3.13 python3.14 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.*/bin/python); \
  do "$$p" -c '$(LOOK)' 2>/dev/null; done \
  | sort -s -t. -k1,1nr -k2,2nr -k3,3nr | awk '!seen[$$1]++'
endef

BIN := .venv/bin
STAMP := .venv/.installed
INSTALL = $(BIN)/python -m pip install -q -e ".[test,plots,data,train]"
WORKERS ?= 2

OLDEST := .venv-oldest
CONTRACTS := $(addprefix tests/,import_test.py processes grids_test.py \
  predictions_test.py tableau_test.py tree_test.py denoisers_test.py \
  sampling_test.py solvers samplers learning training guests/nnx_test.py \
  guests/given_noise_test.py guests/bring_your_model_test.py \
  diagnostics/convention_test.py)

# One thread for each worker of the test suite: two workers that each start a
# thread for every core take two to four times as long. XLA reads NPROC.
ONE_THREAD := NPROC=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# Most programs of the tests run for milliseconds and compile for seconds:
# XLA's costliest passes are left out there, and nowhere else.
TEST_ENV := JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(ONE_THREAD)
# XLA's older emitters compile twice as fast. A jaxlib that no longer has them
# ends at once when it reads the flag, so it is asked first. Without them the
# variable stays as it is: XLA takes a blank for the name of a file.
FAST_XLA := --xla_cpu_use_fusion_emitters=false
define WITH_XLA
  if XLA_FLAGS=$(FAST_XLA) JAX_PLATFORMS=cpu $(BIN)/python -c \
    'import jax; jax.devices()' >/dev/null 2>&1; \
  then export XLA_FLAGS="$(FAST_XLA) $$XLA_FLAGS"; fi
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest parity lint types docs bench evidence clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) \
	  | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

demo: $(STAMP)  ## a small end-to-end run on the CPU
	$(BIN)/python -m experiments.demo

test: $(STAMP)  ## the fast tests
	@$(WITH_XLA); $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) \
	  --dist loadfile -q -m "not slow" tests

# Exactly the versions that setup.py names as its lower bounds.
test-oldest: BIN := $(OLDEST)/bin
test-oldest:  ## what every method promises, with the oldest versions
	@python=$$($(INTERPRETERS) | sed -n 's/^3\.11\.[0-9]* //p' | head -n 1); \
	if test -z "$$python"; then \
	  echo "Left out: the oldest versions are tried with Python 3.11, and there \
	is none."; exit 0; fi; \
	test $(OLDEST)/.installed -nt setup.py || { \
	  "$$python" -m venv --clear $(OLDEST) && \
	  grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' setup.py | tr -d '"' \
	    | sed 's/>=/==/' > $(OLDEST)/oldest.txt && \
	  $(INSTALL) -c $(OLDEST)/oldest.txt && touch $(OLDEST)/.installed; } || exit 1; \
	$(WITH_XLA); $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) \
	  --dist loadfile -q -m "not slow" $(CONTRACTS)

parity: $(STAMP)  ## networks and metrics against torch's (installs it: 1 GB)
	$(BIN)/python -m pip install -q -e ".[parity]"
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -q tests/networks/*parity_test.py \
	  tests/metrics/features_test.py tests/metrics/distances_test.py

lint: $(STAMP)  ## style and likely bugs, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## a type checker on what users write (installs mypy)
	$(BIN)/python -m pip install -q -e ".[types]"
	$(BIN)/python -m mypy tests/typing_programs.py

docs: $(STAMP)  ## the documentation as pages for a browser; fails on broken links
	$(BIN)/python -m pip install -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -f docs/site/mkdocs.yml
	$(BIN)/python docs/site/check.py build/docs

bench: $(STAMP)  ## what the library's loop costs beside the bare network
	$(BIN)/python -m experiments.bench.overhead

evidence: $(STAMP)  ## the slow tests, then every system against its bars (hours)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -q -m slow tests
	$(BIN)/python -m experiments.evidence --system=all --publish

clean:  ## remove .venv, runs and caches
	rm -rf .venv .venv-oldest runs build dist *.egg-info .pytest_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so that an installation that broke off is done again. An
# interpreter for which a dependency has no wheel makes room for the next.
$(STAMP): setup.py
	@if test -z "$(PYTHON)" -a -x $(BIN)/python && $(INSTALL); then touch $@; exit 0; fi; \
	$(INTERPRETERS) | { while read -r version python; do \
	  echo "Installing into .venv for Python $$version ($$python)"; \
	  if "$$python" -m venv --clear .venv </dev/null && $(INSTALL) </dev/null; \
	  then touch $@; exit 0; fi; \
	  echo "jaxdiff cannot be installed for Python $$version ($$python)."; \
	done; \
	echo "jaxdiff needs Python 3.11 or newer, and its dependencies from PyPI."; \
	for p in $(PYTHON) python3 python; do command -v "$$p" >/dev/null 2>&1 \
	  && echo "  $$(command -v "$$p"): $$("$$p" --version 2>&1 | head -n 1)"; done; \
	echo "Name one that is new enough: make PYTHON=/path/to/python3.11 ..."; \
	exit 1; } >&2
