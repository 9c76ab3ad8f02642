# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where this file exists, the package and what the tests need are installed and as new as their sources.
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml setup.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	FASTOPTIM_REQUIRE_C=1 $(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: $(READY) ## train on real handwritten digits, NumPy beside C, weights equal to the last bit
	$(BIN)/python examples/digits.py --out demo_out

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

bench: $(READY) ## time this machine and write a report
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/fastoptim bench --out bench_out

lint: $(READY) ## ruff and mypy
	$(BIN)/python -m pip install --quiet ruff mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what was built
	rm -rf build dist *.egg-info fastoptim/_c*.so $(READY)

.PHONY: help demo test bench lint clean
