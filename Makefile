# `make` or `make help` lists the targets. Everything runs in .venv, which `make setup` makes.

CONFIG ?= configs/cub200_resnet50.yaml
ARGS ?=
IMAGES ?=
GPUS ?= 1
BENCH ?= all
NAME ?= all
SWEEP ?= configs/sweeps/birds.yaml
N ?=
SORT ?= started
PYTHON ?= python3

BIN := .venv/bin
READY := .venv/ready
LAUNCH := $(if $(filter-out 1,$(GPUS)),$(BIN)/python -m pipeline.launch --standalone --nproc-per-node $(GPUS),$(BIN)/python -m pipeline)
# pytest-xdist: a process a core
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist loadfile

# test-lowest: a venv of its own, and what the packages of pyproject.toml are for
LOWEST := .venv/lowest
LOWEST_TESTS := $(addprefix tests/,answering audit config data evaluation explain inference models report training)

# A word of the shell, spaces and all
quoted = '$(subst ','\'',$(1))'
# The paths that a variable holds, as "$$@": all of it where that is one path, else its words; quotes within keep spaces
paths = if [ -e $(quoted) ]; then set -- $(quoted); else eval set -- $(quoted); fi

.DEFAULT_GOAL := help
.NOTPARALLEL: # data, train and eval need one another in this order, also under MAKEFLAGS=-j
.PHONY: help setup doctor data inspect train eval predict page report audit probe study sweep runs sync schedule lr-find summary config demo serve smoke test test-all test-lowest kill-test fuzz gpu-check check format bench clean

help: ## list the targets and their variables
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables\n'
	@printf '  %-8s %s\n' \
	  CONFIG 'configuration file; not of demo, smoke, test, check ($(CONFIG))' \
	  ARGS   'overrides such as "optim.lr=0.01 run.name=x", or options; quotes within keep spaces' \
	  GPUS   'processes of train, eval, probe, audit and doctor on this machine, one a GPU ($(GPUS))' \
	  IMAGES 'pictures and folders of predict; one with spaces in its name alone, or in quotes within' \
	  NAME   'study of configs/studies, or all ($(NAME))' \
	  SWEEP  'sweep file, or a folder of stages ($(SWEEP))' \
	  N      'number of trials of the sweep, in all' \
	  SORT   'column by which runs are listed ($(SORT))' \
	  RUN    'run directories of sync; the one of serve and page' \
	  BENCH  'all, or of loader, step, inference, export, data, start, growth, memory, tracking, ddp, contest ($(BENCH))' \
	  PYTHON 'Python of setup, 3.11 or newer ($(PYTHON))'

##@ Set up

setup: $(READY) ## make .venv with all that is needed; again only when pyproject.toml changes

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## data, train, eval on drawn birds, no download; a minute on 2 CPU cores
	$(BIN)/python -m pipeline data --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m pipeline train --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m pipeline eval --config configs/demo.yaml $(ARGS)

smoke: $(READY) ## data, train, eval on a few drawn birds, in a temporary folder: does it work here?
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && for verb in data train eval; do \
	  $(BIN)/python -m pipeline $$verb --config configs/smoke.yaml "data.root=$$folder/data" "run.root=$$folder/runs" $(ARGS) || exit; \
	done

doctor: $(READY) ## check this machine before an expensive run (ARGS=--quick: without training steps)
	$(LAUNCH) doctor --config $(call quoted,$(CONFIG)) $(ARGS)

clean: ## remove .venv and caches; data and runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info

##@ Prepare data and settings

data: $(READY) ## download or take the archive, unpack, check, store, split
	$(BIN)/python -m pipeline data --config $(call quoted,$(CONFIG)) $(ARGS)

inspect: $(READY) ## what to know of the data before training: duplicates, sizes, crops; a page
	$(BIN)/python -m pipeline inspect --config $(call quoted,$(CONFIG)) $(ARGS)

config: $(READY) ## print every key with its value and meaning
	$(BIN)/python -m pipeline config --config $(call quoted,$(CONFIG)) $(ARGS)

schedule: $(READY) ## draw learning rate, momentum and optimizer, before anything is trained
	$(BIN)/python -m pipeline schedule --config $(call quoted,$(CONFIG)) $(ARGS)

lr-find: $(READY) ## propose a learning rate: the range test
	$(BIN)/python -m pipeline lr-find --config $(call quoted,$(CONFIG)) $(ARGS)

summary: $(READY) ## the network's layers, parameters and multiply-adds; needs no data
	$(BIN)/python -m pipeline summary --config $(call quoted,$(CONFIG)) $(ARGS)

##@ Train

train: $(READY) ## train, or resume where the run was interrupted
	$(LAUNCH) train --config $(call quoted,$(CONFIG)) $(ARGS)

##@ Evaluate

eval: $(READY) ## accuracy per class of the run's best epoch, on the test split
	$(LAUNCH) eval --config $(call quoted,$(CONFIG)) $(ARGS)

report: $(READY) ## report.html again, from stored predictions
	$(BIN)/python -m pipeline report --config $(call quoted,$(CONFIG)) $(ARGS)

audit: $(READY) ## likely label errors and near-duplicates, by a trained model's features
	$(LAUNCH) audit --config $(call quoted,$(CONFIG)) $(ARGS)

probe: $(READY) ## how far a backbone's features go without training: linear head, neighbours, class means
	$(LAUNCH) probe --config $(call quoted,$(CONFIG)) $(ARGS)

predict: $(READY) ## the most likely classes of pictures (IMAGES="a.jpg 'my b.jpg' folder")
	$(call paths,$(IMAGES)) && $(BIN)/python -m pipeline predict --config $(call quoted,$(CONFIG)) "$$@" $(ARGS)

serve: $(READY) ## answer over HTTP with an exported run (RUN=runs/birds ARGS="--port 8080")
	$(call paths,$(RUN)) && $(BIN)/python -m pipeline serve "$$@" $(ARGS)

page: $(READY) ## RUN/export/page.html: a page that names classes without a server (RUN=runs/NAME, exported)
	$(call paths,$(RUN)) && $(BIN)/python -m pipeline page "$$@" $(ARGS)

##@ Many runs

study: $(READY) ## the runs of configs/studies/NAME.yaml, its table and figure (NAME=all: all)
	$(BIN)/python -m pipeline study $(call quoted,$(NAME)) $(ARGS)

sweep: $(READY) ## the trials of SWEEP, N in all; a sweep that was killed resumes
	$(BIN)/python -m pipeline sweep $(call quoted,$(SWEEP)) $(if $(N),--trials $(N)) $(ARGS)

runs: $(READY) ## list all runs with their results (SORT=best; ARGS=--csv)
	@$(BIN)/python -m pipeline runs --sort $(SORT) $(ARGS)

sync: $(READY) ## complete the W&B runs of RUN="runs/a runs/b" (ARGS=--offline: as folders)
	$(call paths,$(RUN)) && $(BIN)/python -m pipeline sync "$$@" $(ARGS)

##@ Develop

test: $(READY) ## run the quick suite
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-all: $(READY) ## run every test, also those marked slow
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow" $(ARGS)

test-lowest: $(READY) ## the quick suite's core with the lowest versions that pyproject.toml allows
	$(BIN)/python -m venv $(LOWEST)
	$(BIN)/python -c 'import tomllib; \
	  needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
	  print(*(need.replace(">=", "==") for need in needs), sep="\n")' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement $(LOWEST)/lowest.txt pytest pytest-xdist statsmodels pyarrow datasets
	$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(LOWEST_TESTS) $(ARGS)

kill-test: $(READY) ## kill a small training 20 times; it has to end as one that was never killed
	$(BIN)/python scripts/kill_test.py $(ARGS)

fuzz: $(READY) ## fire some 4,900 hostile inputs at the program (ARGS="pictures --cases 50 --seed 1": some)
	$(BIN)/python scripts/fuzz $(ARGS)

gpu-check: $(READY) ## what only a GPU can show, in nine minutes: speeds, waits, memory, exactness (ARGS=--tiny: small, on a CPU)
	$(BIN)/python scripts/gpu_check $(ARGS)

check: $(READY) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speeds beside others', into docs/benchmarks.md (BENCH=step; ARGS=--tiny: only that it works)
	$(BIN)/python scripts/bench $(BENCH) $(ARGS)
