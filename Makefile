# Everything is run from here; each target makes the environment it needs. `make` alone lists the targets.
DATASET ?= digits# or mnist, fashion_mnist, cifar10
PROFILE ?= smoke#  or cpu, paper
DEVICE  ?= cpu#    or cuda for bench, or mock for test
JOBS    ?= 2#      tests at a time
BASE_URL ?=#       where the site will be published, such as https://owner.github.io/name
WORKERS ?=#        runs at a time in run and study
VENV    ?= .venv

PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)

# A data folder shared beside the clone is used when there is one; see data/README.md.
ifeq ($(CATLIB_DATA),)
  CATLIB_DATA := $(abspath $(wildcard ../shared/data))
endif
ifneq ($(CATLIB_DATA),)
  export CATLIB_DATA
endif

.DEFAULT_GOAL := help
.PHONY: help run test lab bench gpu study course slides student lint clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(READY)  ## execute the notebooks on DATASET and print the AT-against-CAT table
	$(PYTHON) -m catlib.lab run --dataset $(DATASET) $(if $(WORKERS),--workers $(WORKERS))

# DEVICE=mock gives the tests and the kernels of the notebooks the mock GPU of tests/mock_gpu.py.
ifeq ($(strip $(DEVICE)),mock)
  ON_MOCK := PYTHONPATH=$(abspath tests) PYTHONSTARTUP=$(abspath tests/mock_kernel.py)
  MOCK := -p mock_gpu
endif

# What is watched in a browser is timed, so it runs alone; on one thread, as several wait for each other
# beside another program. In the rest a worker gets a file at a time (loadscope), since the cells of a
# notebook share a kernel.
test: lint  ## check style and types, and run every test, the notebooks included; DEVICE=mock mocks a GPU
	$(if $(MOCK),,$(if $(wildcard tests/browser/test_*.py),OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/browser))
	$(ON_MOCK) OMP_NUM_THREADS=1 CATLIB_HEADLESS=1 \
	  $(PYTHON) -m pytest $(MOCK) -n $(JOBS) --dist loadscope --ignore=tests/browser \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout 600 tests $(NOTEBOOKS)

lab: $(READY)  ## open notebook 00 in JupyterLab, on this machine only
	$(PYTHON) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir=. notebooks/00_start_here.ipynb

bench: $(READY)  ## measure against other implementations on DEVICE
	CATLIB_DEVICE=$(DEVICE) $(PYTHON) -m pytest tests/benchmarks

gpu: $(READY)  ## check and measure this machine's GPU, and say what the study takes on it
	$(PYTHON) -m catlib.lab gpu

study: $(READY)  ## run the study of the paper's claims at the size PROFILE
	$(PYTHON) -m catlib.lab study --profile $(PROFILE) $(if $(WORKERS),--workers $(WORKERS))

course: $(READY)  ## write the notebooks as a site to runs/course; BASE_URL adds addresses
	$(PYTHON) -m catlib.lab course --dataset $(DATASET) $(if $(BASE_URL),--base-url $(BASE_URL))

slides: $(READY)  ## write every notebook as slides to runs/slides
	$(PYTHON) -m catlib.lab editions slides

student: $(READY)  ## write the lessons without outputs, and assignments for nbgrader
	$(PYTHON) -m catlib.lab editions student
	$(PYTHON) -m catlib.lab editions graded

lint: $(READY)  ## check style, format and types alone, notebooks included
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## remove caches and build leftovers; runs/ and the environment stay
	rm -rf build *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# An environment that is already there is completed, not replaced.
$(READY): pyproject.toml constraints.txt requirements-peers.txt
	@echo "Installing into $(VENV); the first time this downloads torch and takes some minutes."
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e ".[notebooks,test]"
	$(PYTHON) -m pip install --quiet --no-deps -r requirements-peers.txt
	touch $@
