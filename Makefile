# Needs Python 3.11+ and make; everything else goes into .venv from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
# Two processes of tests, a file in one of them; where one dies its file fails and the run goes on to its end.
TWO := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: run test test-long bounds faults check setup bench sim lock clean
run: setup          ## the service, the demo city and a live view; ends by itself
	$(BIN)/opportune run

test: setup         ## everything that must hold, under 20 minutes
	$(BIN)/opportune warm
	$(BIN)/python -m pytest -q $(TWO) --durations=15

test-long: setup    ## longer rounds of crashes, seeds and fuzzing
	$(BIN)/opportune warm
	$(BIN)/python -m pytest -q --long $(TWO) --durations=15

bounds: setup       ## property and unit tests with every array access of the kernels checked, some 15 minutes
	NUMBA_BOUNDSCHECK=1 $(BIN)/opportune warm
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest -q $(TWO) tests/property tests/unit

faults: setup       ## every fault of docs/faults-cluster.md on real servers, some 30 minutes
	$(BIN)/opportune warm
	$(BIN)/python -m pytest -q --long --durations=0 tests/faults

setup: .venv/.complete

.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "opportune needs Python 3.11 or later; run make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked dependencies into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

check: setup        ## format, lint, types, import contracts, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit

bench: setup        ## a table of every benchmark, with its peer
	$(BIN)/python -m bench

SEEDS ?= 200
FROM ?= 0
sim: setup          ## the simulation over as many seeds as wanted: make sim SEEDS=1000 FROM=500
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --from $(FROM)

lock:               ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
