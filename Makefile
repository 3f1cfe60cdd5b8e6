# `make` or `make help` lists the targets. Everything runs in .venv, which `make setup` makes.

CONFIG ?= configs/cub200_resnet50.yaml
ARGS ?=
IMAGES ?=
GPUS ?= 1
BENCH ?= all
NAME ?= all
PYTHON ?= python3

BIN := .venv/bin
READY := .venv/ready
LAUNCH := $(if $(filter-out 1,$(GPUS)),$(BIN)/torchrun --standalone --nproc-per-node $(GPUS) -m pipeline,$(BIN)/python -m pipeline)

.DEFAULT_GOAL := help
.PHONY: help setup data train eval report audit study schedule lr-find summary predict config demo test kill-test check format bench clean

help: ## list the targets and their variables
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo
	@echo '  CONFIG=$(CONFIG)   the configuration of all but demo, test and check'
	@echo '  ARGS="optim.lr=0.01 run.name=x"   overrides, as `make config` lists them'
	@echo '  GPUS=$(GPUS)   processes of train and eval on this machine, one a GPU'
	@echo '  BENCH=$(BENCH)   all, loader, step or data'

setup: $(READY) ## make .venv with all that is needed; again only when pyproject.toml changes

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

data: $(READY) ## download or take the archive, unpack, check, store, split
	$(BIN)/python -m pipeline data --config $(CONFIG) $(ARGS)

train: $(READY) ## train, or go on where the run was interrupted
	$(LAUNCH) train --config $(CONFIG) $(ARGS)

eval: $(READY) ## accuracy per class of the run's best epoch, on the test split
	$(LAUNCH) eval --config $(CONFIG) $(ARGS)

report: $(READY) ## report.html again, from stored predictions
	$(BIN)/python -m pipeline report --config $(CONFIG) $(ARGS)

audit: $(READY) ## likely label errors and near-duplicates, by a trained model's features
	$(LAUNCH) audit --config $(CONFIG) $(ARGS)

study: $(READY) ## the runs of configs/studies/NAME.yaml, its table and its figure (NAME=all: all of them)
	$(BIN)/python -m pipeline study $(NAME) $(ARGS)

schedule: $(READY) ## draw learning rate, momentum and optimizer, before anything is trained
	$(BIN)/python -m pipeline schedule --config $(CONFIG) $(ARGS)

lr-find: $(READY) ## propose a learning rate: the range test
	$(BIN)/python -m pipeline lr-find --config $(CONFIG) $(ARGS)

summary: $(READY) ## the network's layers, parameters and multiply-adds; needs no data
	$(BIN)/python -m pipeline summary --config $(CONFIG) $(ARGS)

predict: $(READY) ## the most likely classes of single pictures, IMAGES="a.jpg b.jpg"
	$(BIN)/python -m pipeline predict --config $(CONFIG) $(IMAGES) $(ARGS)

config: $(READY) ## print every key with its value and meaning
	$(BIN)/python -m pipeline config --config $(CONFIG) $(ARGS)

demo: $(READY) ## the whole job on drawn birds, without any download
	$(BIN)/python -m pipeline data --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m pipeline train --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m pipeline eval --config configs/demo.yaml $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(ARGS)

kill-test: $(READY) ## kill a small training 20 times; it has to end as one that was never killed
	$(BIN)/python scripts/kill_test.py $(ARGS)

check: $(READY) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure speeds, each as a ratio within one run
	$(BIN)/python scripts/bench.py $(BENCH) $(if $(filter file,$(origin CONFIG)),,--config $(CONFIG)) $(ARGS)

clean: ## remove .venv and caches; data and runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
