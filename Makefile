# reproduce  the whole experiment of a profile and its report   make reproduce PROFILE=tiny SYSTEMS=all (default: the profile's `main`)
# tune       the rivals' settings on the tuning split; the report shows what it found
# plan       what `reproduce` would need: bytes, FLOPs, hours, what cannot fit     make plan PROFILE=paper
# bench      routing and the engine on this machine, against what could be used instead; about ten minutes
# bench-gpu  checks every kernel on a GPU, then measures, and writes under reports/bench/
# test       the tests
# lint       style and layers
# clean      a profile's results; the environment stays
# Each sets up what it needs by itself: Python >= 3.11, make and a C compiler are enough.

PROFILE ?= tiny
SYSTEMS ?= main
BENCH ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: reproduce tune plan bench bench-gpu test lint clean
.DEFAULT_GOAL := reproduce

reproduce: $(READY)
	@$(BIN)/python -m configs.workflow --profile $(PROFILE) --systems $(SYSTEMS)
	@cat results/$(PROFILE)/report/summary.txt

tune: $(READY)
	@$(BIN)/snakemake --cores all --quiet rules --rerun-triggers mtime params input --config profile=$(PROFILE) systems=$(SYSTEMS) -- tuning

plan: $(READY)
	@$(BIN)/python -m baselines.plan --profile $(PROFILE)

bench: $(READY)
	@$(BIN)/python -m msa.bench $(BENCH)
	@$(BIN)/python -m reports.bench results/bench

bench-gpu: $(READY)
	@$(BIN)/python -m msa.bench --gpu $(BENCH)

test: $(READY)
	@$(BIN)/python -m pytest -n auto

lint: $(READY)
	@$(BIN)/ruff check .

clean:
	rm -rf results/$(PROFILE)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or newer is needed; name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
