# Multi-query and grouped-query attention in machine translation. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
WMT14_MODELS := wmt14-mha wmt14-gqa4 wmt14-gqa2 wmt14-mqa
.PHONY: help setup quickstart uptrain wmt14 $(WMT14_MODELS) wmt14-sweep wmt14-data wmt14-bench test test-long lint report lock clean

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
BENCH := outputs/wmt14-bench
VENV := .venv
BIN := $(VENV)/bin

# The first interpreter that runs and is 3.11 or 3.12.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo $$p; break; }; done)
INSTALLED := $(VENV)/.installed-$(TORCH)-$(TORCH_VERSION)-$(TRITON_VERSION)

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' \
		| awk -F'\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'
	@echo
	@echo '  ARGS="key=value ..." passes overrides on, e.g. make quickstart ARGS="seed=2"'
	@echo '  HARDWARE=$(HARDWARE) is what WMT14 runs on here (one of $(PRESETS)), PLACEMENT=decoder'
	@echo '  the GQA paper'"'"'s placement; DRY_RUN=1 prints the commands and needs no data'
	@echo '  VARIANTS=mqa,gqa2 METHODS=mean,first,random,svd,svd-product SEEDS=1,2,3 widen make uptrain'
	@echo '  TORCH=system uses the torch of the machine (a GPU machine that brings its own)'

setup: $(INSTALLED)  ## Create .venv and install exact pins (TORCH=default|system)

$(INSTALLED): requirements/py311.txt requirements/py312.txt
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11 or 3.12 found: install one, or give PYTHON=/path/to/python" >&2; exit 2; }
	@case "$(TORCH)" in default|system) ;; *) echo "error: TORCH=$(TORCH) is unknown: choose default or system" >&2; exit 2;; esac
	rm -rf $(VENV)
	$(PYTHON) -m venv $(if $(filter system,$(TORCH)),--system-site-packages) $(VENV)
	version=$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])'); \
	$(BIN)/python -m pip install -q --require-hashes --no-deps -r requirements/py$$version.txt
ifeq ($(TORCH),default)
	$(BIN)/python -m pip install -q torch==$(TORCH_VERSION) \
		'triton==$(TRITON_VERSION) ; sys_platform == "linux"'
endif
	@$(BIN)/python -c 'import torch, fairseq; print("installed: torch", torch.__version__, "fairseq", fairseq.__version__)' 2>/dev/null \
		|| { echo "error: torch or fairseq does not import: run $(BIN)/python -c 'import torch, fairseq' to see why" >&2; exit 2; }
	touch $@

quickstart: setup  ## Raw text to results table with MHA, GQA-2 and MQA: 7 to 14 minutes on 2 cores
	$(BIN)/python -m experiments.run -m experiment=quickstart attention=mha,gqa2,mqa $(ARGS)

# The multi-head model is the control: its conversion changes nothing, and it is trained on alike.
uptrain: setup  ## The quickstart's MHA model with fewer KV heads, trained on: 15 minutes on 2 cores
	$(BIN)/python -m experiments.run -m experiment=uptrain attention=mha,$(VARIANTS) \
		uptrain.method=$(METHODS) uptrain.alpha=0,0.05,0.1 $(if $(SEEDS),seed=$(SEEDS)) $(ARGS)

report: setup  ## Build results/report from results/ (runs, measurements, the papers' numbers)
	$(BIN)/python -m experiments.report --records results/runs \
		--measurements results/measurements --out results/report

# What all of WMT14 has in common; refuses what Hydra would explain at length.
WMT14 = $(if $(filter $(HARDWARE),$(PRESETS)),,echo "error: HARDWARE=$(HARDWARE) is unknown: choose one of $(PRESETS)" >&2; exit 2;) \
	$(if $(filter $(or $(PLACEMENT),all),all decoder),,echo "error: PLACEMENT=$(PLACEMENT) is unknown: choose all or decoder" >&2; exit 2;) \
	$(BIN)/python -m experiments.run -m experiment=wmt14 hardware=$(HARDWARE) \
	paths.report=outputs/report-wmt14 \
	$(if $(PLACEMENT),attention.placement=$(PLACEMENT)) $(if $(MIRROR),"data.mirror='$(MIRROR)'") \
	$(if $(filter-out 0,$(DRY_RUN)),dry_run=true)

$(WMT14_MODELS): wmt14-%: setup
	@$(WMT14) attention=$* $(ARGS)

wmt14-mqa:  ## Train, measure and report MQA on WMT14 (wmt14-mha, wmt14-gqa4, wmt14-gqa2: HARDWARE=gpu8)

wmt14: setup  ## All four models on WMT14, and the report
	@$(WMT14) attention=mha,gqa4,gqa2,mqa $(ARGS)

wmt14-sweep: setup  ## SEEDS=1,2,3 and KV_HEADS=1,2,4,8 on WMT14, and the report
	@$(WMT14) attention.num_kv_heads=$(KV_HEADS) seed=$(if $(SEEDS),$(SEEDS),$(ALL_SEEDS)) $(ARGS)

wmt14-data: setup  ## Fetch and prepare WMT14 English-German (MIRROR=folder or URL): docs/wmt14.md
	$(BIN)/python -m experiments.prepare data=wmt14_en_de $(if $(MIRROR),"data.mirror='$(MIRROR)'") $(ARGS)

wmt14-bench: $(BENCH)/mirror-$(PAIRS)/sources.json  ## Speed and memory of wmt14-data's steps (PAIRS=N)
	$(BIN)/python -m data_prep.bench $(BENCH)/mirror-$(PAIRS) --folder $(BENCH) $(ARGS)

$(BENCH)/mirror-$(PAIRS)/sources.json: | setup
	$(BIN)/python -m data_prep.bench.synthetic $(@D) --pairs $(PAIRS) $(if $(TEXT),--text $(TEXT))

test: setup  ## Run all tests but the long ones
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not long" $(ARGS)

test-long: setup  ## Run the tests that take minutes each: whole sweeps, interruptions
	$(BIN)/python -m pytest -n logical --dist load -m long $(ARGS)

lint: setup  ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup  ## Pin every package of requirements/requirements.in again, with hashes (needs uv)
	for v in 3.11 3.12; do \
		(cat requirements/requirements.in; echo torch==$(TORCH_VERSION)) | uv pip compile - -q \
		--python-version $$v --generate-hashes --no-header --no-annotate \
		$(addprefix --no-emit-package ,$(TORCH_ONLY)) -o requirements/py$${v/./}.txt; done

clean:  ## Remove the environment (outputs/ with your data and runs stays)
	rm -rf $(VENV)
