# Multi-query and grouped-query attention in machine translation. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
# Shazeer 2019, table 1: its rows in its order; and every attention that conf/ has.
TABLE1 := mha mqa mha-w32 mqa-w32 mha-1x128 mha-2x64 mha-4x32 mha-8x16
WMT14_MODELS := $(addprefix wmt14-,$(filter-out base,$(notdir $(basename $(wildcard conf/attention/*.yaml)))))
comma := ,
space := $(subst ,, )
STUDY := mha,gqa2,mqa
STUDY_METHODS := mean,first,random,svd-product
.PHONY: help setup quickstart uptrain study study-l10n study-more wmt14 $(WMT14_MODELS) wmt14-table1 wmt14-sweep wmt14-data wmt14-bench test test-long lint report lock clean gpu

TORCH ?= default
TORCH_VERSION := 2.13.0
# The one that this torch's CUDA build requires; with a CPU build it interprets the GPU kernels in
# the tests. It comes with torch, not from the locks: TORCH=system brings its own.
TRITON_VERSION := 3.7.1
# What torch alone brings: the CUDA build's libraries, which a CPU build does not want.
TORCH_ONLY := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas \
	cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
ARGS ?=
# Of gpu: wheels of what the machine lacks, some of the parts, a folder that is brought back.
WHEELS ?=
PARTS ?=
DEVICE ?= cuda
MIRROR ?=
DRY_RUN ?=
PLACEMENT ?=
# Lists of a sweep; a target that has no list of its own takes these.
SEEDS ?=
ALL_SEEDS := 1,2,3
KV_HEADS ?= 1,2,4,8
VARIANTS ?= mqa
METHODS ?= mean,svd-product
PRESETS := $(filter-out base,$(notdir $(basename $(wildcard conf/hardware/*.yaml))))
HARDWARE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu1 || echo cpu)
# Of wmt14-bench: training pairs, and the two files of lines that are varied (else the sample).
PAIRS ?= 100000
TEXT ?=
FEW_PAIRS := 5000
BENCH := outputs/wmt14-bench
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin

# What a user gave as one word for the shell, and as a setting whose value is text for Hydra.
shell-word = '$(subst ','\'',$(1))'
hydra-text = $(call shell-word,$(1)="$(subst ",\",$(2))")

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' \
		| awk -F'\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'
	@echo
	@echo '  ARGS="key=value ..." passes overrides on, e.g. make quickstart ARGS="seed=2"; text that has more'
	@echo '  than letters, digits and ./_- goes in quotes: ARGS="'"'"'paths.runs=\"my runs, 2\"'"'"'"'
	@echo '  HARDWARE=$(HARDWARE) is what WMT14 runs on here (one of $(PRESETS)), PLACEMENT=decoder'
	@echo '  the GQA paper'"'"'s placement; DRY_RUN=1 prints the commands and needs no data'
	@echo '  VARIANTS=mqa,gqa2 METHODS=mean,first,random,svd,svd-product SEEDS=1,2,3 widen make uptrain'
	@echo '  TORCH=system uses the torch of the machine (a GPU machine that brings its own)'

setup: export VENV := $(VENV)
setup: export PYTHON := $(PYTHON)
setup: export TORCH := $(TORCH)
setup: export TORCH_VERSION := $(TORCH_VERSION)
setup: export TRITON_VERSION := $(TRITON_VERSION)
setup: export DRY_RUN := $(DRY_RUN)
setup:  ## Create .venv and install exact pins (TORCH=default|system)
	@bash requirements/setup.sh

quickstart: setup  ## Raw text to results table with MHA, GQA-2 and MQA: about 15 minutes on 2 cores
	$(BIN)/python -m experiments.run -m experiment=quickstart attention=mha,gqa2,mqa $(PLAN_ALONE) $(ARGS)

# The multi-head model is the control: its conversion changes nothing, and it is trained on alike.
uptrain: setup  ## The quickstart's MHA model with fewer KV heads, trained on: 10 minutes on 2 cores
	$(BIN)/python -m experiments.run -m experiment=uptrain attention=mha,$(VARIANTS) \
		uptrain.method=$(METHODS) uptrain.alpha=0,0.05,0.1 $(if $(SEEDS),seed=$(SEEDS)) $(PLAN_ALONE) $(ARGS)

# Seed by seed, so that what is there at any time is balanced; what is done is not run again.
study: setup  ## docs/study.md: SEEDS=1,2,3 of MHA, GQA-2 and MQA on image captions, and uptraining (hours)
	for seed in $(foreach each,$(subst $(comma), ,$(or $(SEEDS),$(ALL_SEEDS))),$(call shell-word,$(each))); do \
		$(STUDY_RUN)=study_multi30k attention=$(STUDY) seed="$$seed" $(STUDY_ARGS); \
		$(STUDY_RUN)=study_uptrain attention=$(STUDY) uptrain.method=$(STUDY_METHODS) \
			uptrain.alpha=0,0.05,0.1 seed="$$seed" $(STUDY_ARGS); \
	done

study-l10n: setup  ## docs/study.md: SEEDS=1,2 of the same models on debian-l10n in outputs/debian-l10n (hours)
	$(STUDY_RUN)=study_l10n seed=$(call shell-word,$(or $(SEEDS),1$(comma)2)) attention=$(STUDY) $(STUDY_ARGS)

# With the multi-head model in each, which is trained once, so that it is measured beside them.
study-more: setup  ## docs/study.md: SEEDS=1,2,3 of its other variants on image captions (hours)
	for seed in $(foreach each,$(subst $(comma), ,$(or $(SEEDS),$(ALL_SEEDS))),$(call shell-word,$(each))); do \
		$(STUDY_RUN)=study_multi30k attention=mha,gqa4,mha-4x32 seed="$$seed" $(STUDY_ARGS); \
		$(STUDY_RUN)=study_multi30k attention=$(STUDY) attention.placement=decoder seed="$$seed" $(STUDY_ARGS); \
		$(STUDY_RUN)=study_multi30k attention=mha,mha-1x128 attention.head_dim=16 seed="$$seed" $(STUDY_ARGS); \
		$(STUDY_RUN)=study_multi30k attention=mha attention.window=null,8 seed="$$seed" $(STUDY_ARGS); \
		$(STUDY_RUN)=study_multi30k attention=mha,mqa model=mini,narrow seed="$$seed" $(STUDY_ARGS); \
	done
STUDY_RUN = $(BIN)/python -m experiments.run -m experiment
STUDY_ARGS = $(FROM) $(PLAN_ALONE) $(ARGS)
PLAN_ALONE = $(if $(filter-out 0,$(DRY_RUN)),dry_run=true)

# Where a record is refused, both commands name it, and the second one still reports the others.
report: setup  ## Build results/report from results/ (runs, measurements, tests, the papers' numbers)
	-$(BIN)/python -m experiments.significance --records results/runs --out results/tests
	$(BIN)/python -m experiments.report --records results/runs --measurements results/measurements \
		--tests results/tests --data outputs/data --out results/report

# What all of WMT14 has in common; refuses what Hydra would explain at length.
refuse = echo $(call shell-word,error: $(1)) >&2; exit 2;
WMT14 = $(if $(filter $(HARDWARE),$(PRESETS)),,$(call refuse,HARDWARE=$(HARDWARE) is unknown: choose one of $(PRESETS))) \
	$(if $(filter $(or $(PLACEMENT),all),all decoder),,$(call refuse,PLACEMENT=$(PLACEMENT) is unknown: choose all or decoder)) \
	$(BIN)/python -m experiments.run -m experiment=wmt14 $(call shell-word,hardware=$(HARDWARE)) \
	paths.report=outputs/report-wmt14 \
	$(if $(PLACEMENT),attention.placement=$(PLACEMENT)) $(FROM) $(PLAN_ALONE)
# The value as it was given: make itself expands nothing in it, here or in the environment.
unexport MIRROR
FROM = $(if $(value MIRROR),$(call hydra-text,data.mirror,$(value MIRROR)))

$(WMT14_MODELS): wmt14-%: setup
	@$(WMT14) attention=$* $(ARGS)

wmt14-mqa:  ## Train, measure and report MQA on WMT14 (wmt14-NAME: any of conf/attention; HARDWARE=gpu8)

wmt14: setup  ## All four models on WMT14, and the report
	@$(WMT14) attention=mha,gqa4,gqa2,mqa $(ARGS)

wmt14-table1: setup  ## The eight models of Shazeer 2019, table 1, and the report
	@$(WMT14) attention=$(subst $(space),$(comma),$(TABLE1)) $(ARGS)

wmt14-sweep: setup  ## SEEDS=1,2,3 and KV_HEADS=1,2,4,8 on WMT14, and the report
	@$(WMT14) $(call shell-word,attention.num_kv_heads=$(KV_HEADS)) $(call shell-word,seed=$(if $(SEEDS),$(SEEDS),$(ALL_SEEDS))) $(ARGS)

wmt14-data: setup  ## Fetch and prepare WMT14 English-German (MIRROR=folder or URL): docs/wmt14.md
	@$(if $(PLAN_ALONE),$(call refuse,wmt14-data has no dry run: make wmt14-mqa DRY_RUN=1 says what data it wants)) \
	$(BIN)/python -m experiments.prepare data=wmt14_en_de $(FROM) $(ARGS)

wmt14-bench: $(BENCH)/mirror-$(PAIRS)/sources.json $(BENCH)/mirror-$(FEW_PAIRS)/sources.json
wmt14-bench:  ## Speed and memory of wmt14-data's steps (PAIRS=N)
	$(BIN)/python -m data_prep.bench $(BENCH)/mirror-$(PAIRS) --smaller $(BENCH)/mirror-$(FEW_PAIRS) \
		--folder $(BENCH) $(ARGS)

$(BENCH)/mirror-%/sources.json: | setup
	@[[ '$*' =~ ^[0-9]+$$ && ( '$*' -eq $(FEW_PAIRS) || '$*' -ge 20000 ) ]] || { \
		echo 'error: PAIRS: give a number from 20000 on: with fewer, fixed costs hide the rest' >&2; exit 2; }
	$(BIN)/python -m data_prep.bench.synthetic $(@D) --pairs $* $(if $(TEXT),--text $(TEXT))

test: setup  ## Run all tests but the long ones
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

test-long: setup  ## Run the tests that take minutes each: whole sweeps, interruptions
	$(BIN)/python -m pytest -n logical --dist load -m long $(ARGS)

lint: setup  ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Beside the system's Python, whose torch knows the GPU: no .venv, and nothing is fetched.
GPU := outputs/gpu
gpu: export PYTHONPATH := $(if $(WHEELS),$(CURDIR)/$(GPU)/site:)$(CURDIR)
gpu:  ## Prove and measure all that needs a GPU, without a network (WHEELS=folder PARTS=a,b): docs/gpu.md
	$(if $(WHEELS),@rm -rf $(GPU)/site && $(or $(PYTHON),python3) -m pip install -q --no-index --no-deps \
		--no-compile --no-cache-dir --disable-pip-version-check --target $(GPU)/site $(WHEELS)/*.whl)
	@$(or $(PYTHON),python3) -m experiments.gpu --device $(DEVICE) $(if $(PARTS),--parts $(PARTS)) \
		$(if $(OUT),--bring $(call shell-word,$(OUT))) $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

lock: setup  ## Pin every package of requirements/requirements.in again, with hashes (needs uv)
	for v in 3.11 3.12; do \
		(cat requirements/requirements.in; echo torch==$(TORCH_VERSION)) | uv pip compile - -q \
		--python-version $$v --generate-hashes --no-header --no-annotate \
		$(addprefix --no-emit-package ,$(TORCH_ONLY)) -o requirements/py$${v/./}.txt; done

clean:  ## Remove the environment (outputs/ with your data and runs stays)
	rm -rf $(VENV)
