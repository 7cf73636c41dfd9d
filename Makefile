PYTHON ?= python3
# The versions to install; empty for the newest that pip finds.
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED := $(VENV)/.installed
DOCUMENTED := $(VENV)/.documented

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-portable test-slow lint style types table docs bench dist clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(INSTALLED) ## compare encoders on the bundled digits, in two processes; writes runs/demo/report.html
	rm -rf runs/demo
	$(BIN)/gae compare digits --devices 2 --out runs/demo
	@echo "Report: $(CURDIR)/runs/demo/report.html"

# Two workers of one thread each: the tests are many small computations, which more threads do not speed up. Each begins
# with a half of the files, so that few fixtures of a module are made twice.
test: $(INSTALLED) ## run the tests and the examples in the docstrings, without those that take seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(INSTALLED) ## run the tests that take seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-all: $(INSTALLED) ## run all of them, every engine with every likelihood too, and more random examples
	GAE_FULL=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Tests that train or follow a trajectory, whose end rounding may move. For other seeds see tests/seeds.py.
TRAJECTORIES := $(addprefix tests/,analysis/test_activation.py analysis/test_restoration.py evidence/test_annealed.py \
	inference/test_amortized.py inference/test_auto_decoder.py inference/test_learned.py inference/test_mcmc.py \
	inference/test_solver.py inference/test_steps.py likelihood/test_codebook.py likelihood/test_nonnegative.py \
	likelihood/test_relational.py likelihood/test_sequence.py systems \
	training/test_adversarial.py training/test_fitting.py training/test_layerwise.py)

test-portable: $(INSTALLED) ## run what trains once more, on the processor's plainest instructions
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 --dist worksteal $(TRAJECTORIES)

lint: style types ## check style (ruff) and types (mypy)

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy gae notes/[0-9]*.py

table: $(INSTALLED) ## write what the table of systems decides into README.md and the stubs
	$(BIN)/python -m gae.systems

# One thread: the gallery is many small computations. Two processes read and write the pages.
docs: $(DOCUMENTED) ## build the site, with its gallery; writes docs/_build/html/index.html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W -j 2 -c docs -d docs/_build/doctrees . docs/_build/html
	@echo "Site: $(CURDIR)/docs/_build/html/index.html"

bench: $(INSTALLED) ## run the side-by-side benchmarks; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run

dist: ## build the sdist and the wheel in dist, and use the wheel in a fresh environment
	$(PYTHON) tests/distribution.py $(addprefix --constraint ,$(CONSTRAINTS))

clean: ## remove the environment, runs and caches
	rm -rf docs/_build docs/gallery docs/reference
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'gae needs Python 3.11 or newer as "$(PYTHON)". Name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev,tensorboard]'
	@touch $@

$(DOCUMENTED): $(INSTALLED)
	$(BIN)/python -m pip install $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[docs]'
	@touch $@
