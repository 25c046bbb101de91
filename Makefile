# `make help` lists the targets. PYTHON chooses the interpreter that .venv is made from.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo yes),$(p))))
BIN := .venv/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit bench wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: .venv/installed ## Make .venv with the pinned versions

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "modeconn needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Installing PyTorch and the rest into .venv, which takes some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
# torchvision's own pin may ask for another build of torch than the one that is here
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## Two seeds of an MLP on digits: segment, Bezier curve, barriers, picture
	$(BIN)/modeconn fit-curve

test: lint types unit ## Lint, types and tests

lint: install ## Style, and the walls between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## Static types
	$(BIN)/mypy

unit: install ## Tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

bench: install ## Ratios: curve step to bare step, loop to fixed batch, evaluation to bare passes
	$(BIN)/python scripts/bench_curve.py

wheel: install ## Build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## Remove .venv and caches; outputs stay
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
