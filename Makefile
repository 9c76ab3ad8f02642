# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is built and installed is as new as these.
SOURCES := pyproject.toml setup.py $(wildcard csrc/* csrc/kernels/*)

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One stamp for each set of extras that is installed.
$(VENV)/.ready-%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	FASTOPTIM_REQUIRE_C=1 $(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

demo: $(VENV)/.ready-examples ## train on real handwritten digits, NumPy beside C, weights equal to the last bit
	$(BIN)/python examples/digits.py --out demo_out

test: $(VENV)/.ready-test ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/.ready-bench ## time this machine and write a report
	$(BIN)/fastoptim bench --out bench_out

lint: $(VENV)/.ready-lint ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what was built
	rm -rf build dist *.egg-info fastoptim/_c*.so $(VENV)/.ready-*

.PRECIOUS: $(VENV)/.ready-%
.PHONY: help demo test bench lint clean
