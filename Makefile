# Two commands for a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint

# trains the whole method on the built-in phantom, then scores it; ends with a table and a report
quickstart: .venv/.core
	$(BIN)/python -m ldm_morph_jax.train --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python -m ldm_morph_jax.evaluate --workdir runs/quickstart --split test

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.test: EXTRAS := [test]
.venv/.core .venv/.test: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".$(EXTRAS)"
	touch $@
