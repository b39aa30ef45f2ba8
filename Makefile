# make demo, make test: each does all set-up on a fresh machine (into .venv), then runs. A second call starts at once.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ARGS ?=
# Requirements beside the package, such as TORCH="torch==2.8.* torchvision==0.23.*" (with a VENV of its own).
TORCH ?=

.PHONY: help demo test oldest faults lint bench docs pictures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     two to six minutes: pretrain on drawn shapes, compare features (ARGS=--fast: seconds)"
	@echo "make test     all tests (ARGS='-m \"not slow\"', ARGS=tests/test_loss.py, ...)"
	@echo "make oldest   what depends on torch's version, on the oldest torch that is supported"
	@echo "make faults   all faults that the project must survive, and a table of them"
	@echo "make lint     ruff, mypy, and the layers of the package"
	@echo "make bench    every benchmark but protocols.py, which needs a run; results go to benchmarks/results"
	@echo "make docs     the documentation site, in site/ (every link checked)"
	@echo "make pictures the README's, from runs/demo (ARGS=RUN: of another run on shapes)"
	@echo "make clean    remove what was built, the environment included"

$(STAMP): setup.py pyproject.toml barlowtwins/version.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH) -e '.[test]'
	@touch $(STAMP)

demo: $(STAMP)
	$(PY) -m barlowtwins demo $(ARGS)

# Two processes of one thread each: more threads than cores make every test slower.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal $(ARGS)

# Files, programs, processes and autograd: what torch has changed between versions. Needs Python 3.13 or older.
oldest:
	$(MAKE) test VENV=.venv-oldest TORCH='torch==2.8.* torchvision==0.23.*' ARGS='-q -m "not slow" $(OLDEST)'

OLDEST := $(addprefix tests/test_, $(addsuffix .py, formats conversion export timm weights checkpoint models loss matmul optim \
	microbatch distributed embedder hub)) tests/faults/test_faults_weights.py

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal --exhaustive tests/faults $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

bench: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@set -e; for script in $(filter-out %/common.py %/protocols.py, $(wildcard benchmarks/*.py)); do echo "== $$script"; $(PY) $$script; done

docs: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

pictures: $(STAMP)
	$(PY) docs/pictures.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-oldest build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
