PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# The real tools that exports are for, each in an environment of its own, since they can't all live in one.
TOOLS := datumaro datasets label-studio
TOOL_datumaro := 'datumaro>=1.13' 'supervision>=0.31'
TOOL_datasets := 'datasets>=5' 'webdataset>=1'
TOOL_label-studio := 'label-studio>=1.23,<1.24'
TOOL_fiftyone := 'fiftyone>=1.22'
TOOL_ultralytics := 'ultralytics>=8.4'
TESTS_datumaro := tests/tools/test_datumaro.py tests/tools/test_supervision.py
TESTS_label-studio := tests/tools/test_real_label_studio.py
TESTS_ultralytics := tests/tools/test_supervision.py

# Each says what it shows; ARGS=--quick tries it.
BENCHES := masks forward sweep overhead peers scale

.PHONY: help install demo test test-tools soak browser lint format bench clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/installed  ## Make .venv with all that demo and tests need

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Label generated images with the bundled model and show where the results are
	rm -rf prelabel-demo
	$(BIN)/prelabel demo --output prelabel-demo

test: install  ## Run all tests, two at a time
	PYTHONSAFEPATH=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-tools: install $(TOOLS:%=.tools/%)  ## Import exports into the real tools: Label Studio, datumaro, supervision, datasets
	@for tool in $(TOOLS); do $(MAKE) --no-print-directory test-tool-$$tool || exit 1; done

test-tool-%: install .tools/%
	PYTHONSAFEPATH=1 PRELABEL_TOOLS_PYTHON=.tools/$*/bin/python $(BIN)/python -m pytest $(or $(TESTS_$*),tests/tools/test_$(subst -,_,$*).py)

.tools/%:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check $(TOOL_$*) || { rm -rf $@; exit 1; }

soak: install  ## Play 200 faults against small jobs; takes an hour or so, and ends by itself
	PYTHONSAFEPATH=1 $(BIN)/python tests/faults/soak.py

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

bench: $(BENCHES:%=bench-%)  ## Run all benchmarks, which takes hours; `make bench-masks` runs one

bench-%: install
	PYTHONPATH=benchmarks PYTHONSAFEPATH=1 $(BIN)/python benchmarks/$*.py $(ARGS)

clean:  ## Remove what the other targets have made
	rm -rf .venv .tools .namespace prelabel-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
