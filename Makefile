# reproduce        the whole experiment of a profile and its report    make reproduce PROFILE=tiny SYSTEMS=all
#                  SYSTEMS: main (the profile's, the default), all, or names with commas between
#                  DATA: where fetched sets and novels lie             make reproduce PROFILE=qa DATA=DIR
# smoke            the whole pipeline in about two minutes: every stage once, at 16K, with models of a few steps
#                  SYSTEMS: all, unless some are named                  make smoke SYSTEMS=rag_bm25
# tune             the rivals' settings on the tuning split; the report shows what it found
# plan             what `reproduce` and the tables would need: bytes, hours, dollars      make plan PROFILE=paper
# table-2          the paper's table: its cells alone, beside what was published; table-3, table-4, figure-1, figure-4
#                  and figure-training-time too      make table-2 PROFILE=paper, or paper_rehearsal on two cores
# bench            routing and the engine here, against what could be used instead; about ten minutes
# bench-workflow   how fast each stage of a profile works, in runs of one kernel (smoke, unless another is named)
# load             many clients ask while the memory is edited, each answer checked      make load PROFILE=tiny SYSTEMS=msa,rag_bm25
# bench-gpu        checks every kernel on a GPU, then measures, and writes under reports/bench/
# report-check     opens a finished report in headless Chromium (Debian's package): figures, links, axe    make report-check PROFILE=tiny
# snapshot         the report of a finished run as small files, for review     make snapshot PROFILE=tiny NAME=tiny
# compare          two results directories, side by side   make compare A=results B=other/results PROFILE=tiny
# exchange         what is scored as TREC runs and as logs of inspect_ai and lm-eval     make exchange PROFILE=tiny
# new-baseline     one file and its entry, runnable at once; new-task too     make new-baseline NAME=my_system
# check-retrieval  BM25 and dense retrieval against bm25s and exact search     make check-retrieval DATA=DIR
# check-hipporag   HippoRAG 2 against dense retrieval, paired intervals        make check-hipporag DATA=DIR
# wandb-sync       sends to Weights & Biases what was mirrored offline       make wandb-sync PROFILE=tiny
# test             the tests
# soak             what takes an hour or more: coverage of intervals, kills (with DATA=DIR of the tables too), full disks, drawn cases
# mutants          faults put into the modules that make numbers, and whether tests catch them; some minutes
# versions         the tests under Python 3.11 to 3.13 and torch 2.11 to 2.13      make versions
# lint             style and layers
# clean            a profile's results; the environment stays
# help             this list
# With any of these: ISA=avx2 holds torch, oneDNN, MKL, FAISS, libxsmm and the kernels here to AVX2, as most laptops have    make bench ISA=avx2
# Each sets up what it needs by itself: Python >= 3.11, make and a C compiler are enough.

PROFILE ?= tiny
NAME ?= $(PROFILE)
DATA ?=
SYSTEMS ?= main
ALL := all
BENCH ?=
ISA ?=
PYTHON ?= python3
CHECKS := baselines.checks.check tasks.check reports.check
# a variable as one word of a command, whatever is in it
quoted = '$(subst ','\'',$(value $(1)))'
EXPERIMENT = --profile $(call quoted,PROFILE)$(if $(value DATA), --data $(call quoted,DATA))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 FAISS_OPT_LEVEL=avx2 LIBXSMM_TARGET=hsw
ifneq ($(ISA),)
$(if $(filter avx2,$(ISA)),,$(error ISA=$(ISA) is unknown; write ISA=avx2 or leave it out))
$(foreach held,$(AVX2),$(eval export $(held)))
endif

.PHONY: help reproduce smoke tune table-2 table-3 table-4 figure-1 figure-4 figure-training-time plan bench bench-workflow load bench-gpu snapshot report-check compare exchange new-baseline new-task check-retrieval check-hipporag wandb-sync test soak mutants versions lint clean
.DEFAULT_GOAL := reproduce

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

reproduce: $(READY)
	@set -e; for check in $(CHECKS); do $(BIN)/python -m $$check $(EXPERIMENT); done
	@$(BIN)/python -m msa_base.workflow $(EXPERIMENT) --systems $(call quoted,SYSTEMS)
	@cat results/$(call quoted,PROFILE)/report/summary.txt

smoke:
	@$(MAKE) --no-print-directory reproduce PROFILE=smoke SYSTEMS=$(call quoted,$(if $(filter file,$(origin SYSTEMS)),ALL,SYSTEMS))

tune: $(READY)
	@$(BIN)/python -m msa_base.workflow tuning $(EXPERIMENT) --systems $(call quoted,SYSTEMS)

table-2 table-3 table-4 figure-1 figure-4 figure-training-time: $(READY)
	@$(BIN)/python -m reports.paper_tables $@ $(EXPERIMENT)

plan: $(READY)
	@$(BIN)/python -m reports.paper_plan $(EXPERIMENT)

bench: $(READY)
	@$(BIN)/python -m msa.bench $(BENCH)
	@$(BIN)/python -m reports.bench results/bench

bench-workflow: PROFILE = smoke
bench-workflow: SYSTEMS = all
bench-workflow: $(READY)
	@$(BIN)/python -m msa.bench.workflow --results results/bench $(EXPERIMENT) --systems $(call quoted,SYSTEMS) $(BENCH)
	@$(BIN)/python -m reports.bench --workflow

load: SYSTEMS = msa,rag_bm25,rag_dense
load: $(READY)
	@$(BIN)/python -m baselines.checks.load $(EXPERIMENT) --systems $(call quoted,SYSTEMS) $(BENCH)

bench-gpu: $(READY)
	@$(BIN)/python -m msa.bench --gpu $(BENCH)

snapshot: $(READY)
	@$(BIN)/python -m reports.snapshot --profile $(call quoted,PROFILE) --name $(call quoted,$(if $(filter file,$(origin NAME)),PROFILE,NAME))

compare: $(READY)
	@$(if $(and $(A),$(B)),,echo "error: name both: make compare A=results B=other/results" >&2; exit 2)
	@$(BIN)/python -m reports.compare $(call quoted,A) $(call quoted,B) $(EXPERIMENT)

exchange: $(READY)
	@$(BIN)/python -m reports.exchange $(EXPERIMENT)

wandb-sync: $(READY)
	@$(BIN)/python -m reports.track $(EXPERIMENT) --sync

new-baseline: $(READY)
	@$(if $(filter file,$(origin NAME)),echo "error: name it: make $@ NAME=my_name" >&2; exit 2)
	@$(BIN)/python -m msa_base.scaffold $(@:new-%=%) $(call quoted,NAME)

new-task: $(READY)
	@$(if $(filter file,$(origin NAME)),echo "error: name it: make $@ NAME=my_name" >&2; exit 2)
	@$(BIN)/python -m msa_base.scaffold $(@:new-%=%) $(call quoted,NAME)

report-check: $(READY)
	@$(BIN)/python -m reports.page_check $(EXPERIMENT)

check-retrieval: $(READY)
	@$(BIN)/python -m baselines.checks.retrieval_check --data $(call quoted,DATA) --embedder results/tiny/_models/embedder

check-hipporag: $(READY)
	@mkdir -p results
	@$(BIN)/python -m baselines.checks.hipporag_check --data $(call quoted,DATA) --embedder results/tiny/_models/embedder \
	  --output results/recalls.json
	@$(BIN)/python -m reports.recall results/recalls.json

test: $(READY)
	@$(BIN)/python -m pytest -n auto

soak: $(READY)
	@$(BIN)/python -m reports.coverage
	@HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n auto -m "soak or not soak"

mutants: $(READY)
	@$(BIN)/python -m tests.mutants

versions:
	@tests/versions.sh

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --quiet --check . || { echo "error: not formatted; run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/yamllint --strict .

clean:
	rm -rf results/$(call quoted,PROFILE)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or newer is needed;" \
	    "name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[suite,dev]'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --only-binary :all: --editable '.[peers]' || \
	  echo "no wheels of the libraries that make bench races (extra peers); their rows will be \"not measured\""
	@touch $@
