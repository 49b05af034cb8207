PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: help install demo test browser lint format benchmark clean

help:  ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/installed  ## Make .venv with all that demo and tests need

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Label generated images with the bundled model and show where the results are
	rm -rf prelabel-demo
	$(BIN)/prelabel demo --output prelabel-demo

test: install  ## Run all tests
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest

browser:  ## Install Debian's Chromium, without which the tests of pages skip
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq --yes chromium >/dev/null; }

lint: install .namespace  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .namespace/prelabel

# Type checkers do not follow setuptools' package-dir: they get the packages under their import names.
.namespace:
	mkdir -p .namespace/prelabel
	for name in schemas operators pipeline; do ln -sfn ../../$$name .namespace/prelabel/$$name; done

format: install  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install  ## Print how fast masks are made, against the stock way
	PYTHONSAFEPATH=1 $(BIN)/python benchmarks/masks.py

clean:  ## Remove what the other targets have made
	rm -rf .venv .namespace prelabel-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
