# Consilium. `make demo` and `make test` need Python 3.11, make and git, and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
JOBS ?= 2  # tests side by side, each with one thread
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
# Plain pip and uv install the same locked files; uv is used when it is there, for its speed.
ifeq ($(UV),)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet
CHECK := $(PIP) check
else
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python
CHECK := $(UV) pip check --python $(BIN)/python
endif
# No resolver is asked and nothing is built: the lock alone decides, on any later day.
LOCKED := --no-deps --require-hashes --only-binary :all: -r requirements.lock

.PHONY: help setup lock demo test lint e2e documents mutate bench clean
help:  ## show the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed  ## create .venv with the locked dependencies
$(VENV)/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is missing: set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11, for which requirements.lock was made"; exit 1; }
	@echo "installing the locked dependencies into $(VENV) (several GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(LOCKED)
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@$(CHECK)
	@touch $@

lock: setup  ## make requirements.lock fit pyproject.toml again; UPGRADE=--upgrade for new releases
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras --generate-hashes --no-strip-extras --no-emit-index-url --python-version 3.11 --no-header $(UPGRADE) --quiet -o requirements.lock

demo: setup  ## four phantom hospitals learn together; ends with a table and a report
	$(BIN)/consilium-sim run simulations/plans/demo.yaml --out $(RUN)

test: setup  ## all fast tests with coverage, and the real Flower processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not documents" --cov --cov-report=term:skip-covered --cov-report=json:build/coverage.json
	$(BIN)/python -m tests.coverage_floor build/coverage.json

lint: setup  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

e2e: setup  ## the slow suites: kill -9, resume, whole federations, every line and every layer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow

documents: setup  ## the documents' long commands, a small one of each
	$(BIN)/python -m pytest -q -m documents

mutate: setup  ## break what privacy rests on, line by line, and see that tests notice
	$(BIN)/python -m tests.mutate

bench: setup  ## the benchmark table as ratios; writes build/bench.json
	$(BIN)/consilium-sim bench --out build/bench.json

clean:  ## remove the environment, builds and caches; runs/ is kept
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
