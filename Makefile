# Two commands for a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-all test-slow lint docs

# trains the whole method on the built-in phantom, then scores it; ends with a table and a report
# (large memory pages: on Linux a tenth faster, elsewhere without effect)
quickstart: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
quickstart: .venv/.core
	$(BIN)/ldm-morph train --config quickstart --workdir runs/quickstart
	$(BIN)/ldm-morph evaluate --workdir runs/quickstart --split test

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow and not integration"

# after `make test`, what takes longer: whole trainings, networks of the published sizes, accuracy on
# phantoms, volumes, the wheel, a notebook, a browser, several processes
test-all: lint
	$(PYTEST) -m "integration and not slow"

# soak, fault and scaling tests, which take about an hour
test-slow: lint
	$(BIN)/python -m pytest -m slow

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# the documentation as a website in site/, with the API's docstrings
docs: .venv/.docs
	$(BIN)/mkdocs build --strict

# (modules are compiled when they are first imported: most of them never are, and to compile all
# takes longer than to install them)
.venv/.test: EXTRAS := [test]
.venv/.docs: EXTRAS := [docs]
.venv/.core .venv/.test .venv/.docs: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --editable ".$(EXTRAS)"
	touch $@
