# `make help` lists the targets. Everything runs in .venv, which is built from
# setup.py on first use and again whenever setup.py changes.

# The first interpreter that is new enough; `make PYTHON=/path/to/python test`
# chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 \
  python; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  >/dev/null 2>&1 && { echo $$p; break; }; done)

BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2

# One thread for each worker of the test suite: two workers that each start a
# thread for every core take two to four times as long. XLA reads NPROC.
ONE_THREAD := NPROC=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# Most programs of the tests run for milliseconds and compile for seconds:
# XLA's costliest passes are left out there, and nowhere else.
TEST_ENV := JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(ONE_THREAD)
# XLA's older emitters compile twice as fast. A jaxlib that no longer has them
# ends at once when it reads the flag, so it is asked first.
FAST_XLA := --xla_cpu_use_fusion_emitters=false
WITH_XLA = XLA_FLAGS="$$XLA_FLAGS $$(XLA_FLAGS=$(FAST_XLA) JAX_PLATFORMS=cpu \
  $(BIN)/python -c 'import jax; jax.devices(); print("$(FAST_XLA)")' 2>/dev/null)"

.DEFAULT_GOAL := help
.PHONY: help demo test parity lint bench evidence clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) \
	  | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

demo: $(STAMP)  ## a small end-to-end run on the CPU
	$(BIN)/python -m experiments.demo

test: $(STAMP)  ## the fast tests
	$(WITH_XLA) $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) \
	  --dist loadfile -q -m "not slow" tests

parity: $(STAMP)  ## networks and metrics against torch's (installs it: 1 GB)
	$(BIN)/python -m pip install -q -e ".[parity]"
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -q tests/*parity_test.py \
	  tests/features_test.py tests/distances_test.py

lint: $(STAMP)  ## style and likely bugs, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## what the library's loop costs beside the bare network
	$(BIN)/python -m experiments.bench_overhead

evidence: $(STAMP)  ## the slow tests, then every system against its bars (hours)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -q -m slow tests
	$(BIN)/python -m experiments.evidence --system=all

clean:  ## remove .venv, runs and caches
	rm -rf .venv runs build dist *.egg-info .pytest_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so that an installation that broke off is done again.
$(STAMP): setup.py
	@test -n "$(PYTHON)" && "$(PYTHON)" -c \
	  'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "jaxdiff needs Python 3.11 or newer."; \
	  echo "PYTHON is '$(PYTHON)'; found:"; \
	  for p in $(PYTHON) python3 python; do command -v $$p >/dev/null 2>&1 \
	    && echo "  $$(command -v $$p): $$($$p --version 2>&1 | head -n 1)"; done; \
	  echo "Name one that is new enough: make PYTHON=/path/to/python3.11 ..."; \
	  exit 1; } >&2
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -q -e ".[test,plots,data,train]"
	@touch $@
