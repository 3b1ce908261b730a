# make demo   the main job on a small archive in a directory: no account, no network
# make venv   .venv/bin/stager and .venv/bin/watcherd, to run from here (docs/operations.md)
# make test   all tests (as root: the Debian packages they use are installed); make lint   ruff and mypy
# make screenshots   the pictures of the documents, by a real browser
# make test-crash  the whole crash matrix, as a table (one scene of it: SCENES=retention)
# make schema the JSON Schemas and docs/reference.md, from the models
# make install   as a service (again: upgrade; systemd/install.sh has the options); make uninstall
# make test-systemd  the tests under a real systemd, told step by step
# make test-nfs  the tests on real NFS; make soak-nfs  all that can happen to its machines, a table
# make soak   all that docs/reliability.md has a figure of, one after the other: hours
# make bench  watcherd beside its peers, 1 GiB images (BENCH="--size 4G --case compare"); make bench-quick  does it run?
# WHEELS=DIR  install from wheels in a directory instead of an index

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install $(if $(WHEELS),--no-index --find-links $(WHEELS))

.PHONY: demo venv install uninstall test test-crash test-faults test-model soak-model test-nfs test-systemd soak-nfs soak bench bench-quick screenshots schema lint format clean check-python

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed: apt install python3 (or PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing: apt install python3-venv"; exit 1; }

$(BIN)/.runtime: pyproject.toml | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what watcherd needs into $(VENV) ..."
	@$(PIP) -e .
	@touch $@

$(BIN)/.test: pyproject.toml $(BIN)/.runtime
	@echo "installing what the tests need into $(VENV) ..."
	@$(PIP) -e '.[test]'
	@touch $@

venv: $(BIN)/.runtime

demo: $(BIN)/.runtime
	@$(BIN)/python demo/demo.py

$(BIN)/.debian: tests/debian.sh $(BIN)/.test
	@sh tests/debian.sh
	@touch $@

test: $(BIN)/.debian
	@$(BIN)/python tests/run.py

screenshots: $(BIN)/.debian
	@$(BIN)/python tests/browser/screenshots.py

test-systemd: $(BIN)/.debian
	@$(BIN)/python -m pytest -v -s tests/systemd

test-nfs: $(BIN)/.debian
	@$(BIN)/python -m pytest -q tests/nfs

soak-nfs: $(BIN)/.debian
	@PYTHONPATH=.:tests $(BIN)/python tests/nfs/soak.py $(SOAK_ARGS)

soak: test-crash test-faults soak-model soak-nfs

schema: $(BIN)/.runtime
	@$(BIN)/python schema/generate.py

test-crash: $(BIN)/.debian
	@PYTHONPATH=.:tests $(BIN)/python tests/crash/report.py $(SCENES)
test-faults: $(BIN)/.debian
	@FAULTS=full $(BIN)/python -m pytest -q tests/faults

# The model of several machines (tests/model): in a minute, and for as many seeds as wanted.
SCHEDULES ?= 1000
FIRST ?= 1
MODEL := PYTHONHASHSEED=0 PYTHONPATH=.:tests $(BIN)/python -m model.soak

test-model: $(BIN)/.test
	@$(BIN)/python -m pytest -q tests/model

soak-model: $(BIN)/.test
	@$(MODEL) histories $(FIRST) $(SCHEDULES)
	@$(MODEL) rules 200

$(BIN)/.bench: pyproject.toml $(BIN)/.runtime
	@echo "installing the benchmark's peers into $(VENV) ..."
	@$(PIP) -e '.[bench]'
	@touch $@

bench: $(BIN)/.bench $(BIN)/.debian
	@$(BIN)/python -m benchmarks $(BENCH)

bench-quick: $(BIN)/.bench $(BIN)/.debian
	@$(BIN)/python -m benchmarks --quick

lint: $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install uninstall:
	@sh systemd/install.sh $@

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
