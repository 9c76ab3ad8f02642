# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is built and installed is as new as these.
SOURCES := pyproject.toml setup.py $(wildcard csrc/* csrc/kernels/*)

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One stamp for each set of extras that is installed. Python compiles modules when they are first imported: compiling all of
# them here took a third of the time.
$(VENV)/.ready-%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_COMPILE=0 FASTOPTIM_REQUIRE_C=1 $(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

demo: $(VENV)/.ready-examples ## train on handwritten digits with NumPy and with C: bit-identical weights, two times
	$(BIN)/python examples/digits.py --out demo_out

# Tests of the core that take a minute on two cores; samples of the long proofs are left out.
QUICK := $(addprefix tests/,common rules arrays optimizers checkpoint backends/test_golden.py backends/test_pace.py \
	test_house.py test_schedules.py)

check: $(VENV)/.ready-test ## ruff and the quick tests: about a minute
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n auto --dist loadfile -k "not test_a_sample_of" $(QUICK)

test: $(VENV)/.ready-test ## run all tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.ready-bench ## time this machine and write a report
	$(BIN)/fastoptim bench --out bench_out

wheels: $(VENV)/.ready-wheels ## eight wheels and the source archive into dist/, checked; macOS and Windows too
	$(BIN)/python wheels/make_wheels.py
	$(BIN)/python wheels/check_wheels.py

lint: $(VENV)/.ready-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.ready-docs ## build the documentation site (warnings are errors) and run the examples in docstrings
	$(BIN)/sphinx-build -q -W --keep-going -d docs/_build/doctrees -b html docs docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -d docs/_build/doctrees -b doctest docs docs/_build/doctest
	@echo "open docs/_build/html/index.html"

clean: ## remove what was built
	rm -rf build dist docs/_build docs/reference/api *.egg-info fastoptim/_c*.so $(VENV)/.ready-*

.PRECIOUS: $(VENV)/.ready-%
.PHONY: help demo check test bench wheels lint docs clean
