# Two commands for a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow lint docs

# trains the whole method on the built-in phantom, then scores it; ends with a table and a report
# (large memory pages: on Linux a tenth faster, elsewhere without effect)
quickstart: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
quickstart: .venv/.core
	$(BIN)/ldm-morph train --config quickstart --workdir runs/quickstart
	$(BIN)/ldm-morph evaluate --workdir runs/quickstart --split test

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

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

.venv/.test: EXTRAS := [test]
.venv/.docs: EXTRAS := [docs]
.venv/.core .venv/.test .venv/.docs: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".$(EXTRAS)"
	touch $@
