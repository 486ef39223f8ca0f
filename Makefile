# The index of what one can do here: `make help`.
# Every target sets itself up from tested versions first. PYTHON is any Python 3.11 to 3.13; if its environment has a
# CUDA build of PyTorch, that build is used as it is.

PYTHON ?= python3
VENV ?= .venv
SWEEP ?= quickstart
SCALE ?=
CLUSTER ?= local
PROFILE ?= default
RUNS ?= runs
FIGURES ?= figures
STYLE ?= neurips
PUBLISHED ?=
PEER ?=
ARGS ?=

# A misspelt variable is refused, not ignored.
valued := PYTHON VENV SWEEP CLUSTER PROFILE RUNS FIGURES STYLE
known := $(valued) SCALE PUBLISHED PEER ARGS
given := $(foreach v,$(.VARIABLES),$(if $(filter command line,$(origin $v)),$v))
unknown := $(strip $(filter-out $(known),$(given)))
empty := $(strip $(foreach v,$(valued),$(if $($v),,$v)))
$(if $(unknown),$(error $(unknown): no such variable; expected $(known)))
$(if $(empty),$(error $(empty): expected a value))

python := $(VENV)/bin/python
ready := $(VENV)/.ready
# The sweep that was named, as RUNS has it: by its file's name, and the scale where that is not the file's own; all of
# them if none was.
file = $(if $(filter %.yaml %.yml,$(SWEEP)),$(SWEEP),ablations/$(SWEEP).yaml)
own = $(if $(shell grep -s '^scale: *lite' $(file)),lite,full)
name = $(patsubst %.yml,%,$(patsubst %.yaml,%,$(notdir $(SWEEP))))
chosen = $(if $(filter command line,$(origin SWEEP)),$(name)$(if $(filter-out $(own),$(SCALE)),-$(SCALE)))
drawn = runs=$(RUNS) out=$(FIGURES) style=$(STYLE) $(addprefix sweep=,$(chosen)) $(addprefix published=,$(PUBLISHED))

.DEFAULT_GOAL := help
.PHONY: help setup myosuite sweep status figures report watch test test-slow lint bench fidelity gpu storm clean-runs

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo "make sweep SWEEP=fsq_levels SCALE=lite       one ablation, small, on this machine"
	@echo "make sweep SWEEP=main CLUSTER=slurm PROFILE=mine"
	@echo "make figures SWEEP=fsq_levels SCALE=lite STYLE=icml"

setup: $(ready) ## make the environment in $(VENV)

# What pip says is kept for a failure: after a success it is that labmaze is missing, as it should be.
$(ready): requirements.txt
	@command -v $(firstword $(PYTHON)) > /dev/null || { echo "error: PYTHON=$(PYTHON): no such program" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    || { echo "error: PYTHON=$(PYTHON): expected Python 3.11 to 3.13: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	@found=$$($(PYTHON) -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)) if torch.version.cuda else "")' 2>/dev/null); \
	if [ -n "$$found" ]; then \
	    echo "using the CUDA build of PyTorch in $$found"; \
	    echo "$$found" > "$$($(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cuda_torch.pth"; \
	else \
	    echo "installing PyTorch; PyPI's wheel for Linux has CUDA, and several GB: that may take a while"; \
	    $(python) -m pip install --quiet --disable-pip-version-check torch==2.13.0 2> $(VENV)/pip.log \
	        || { cat $(VENV)/pip.log >&2; exit 1; }; \
	fi
	@touch $@

myosuite: $(VENV)-myosuite/.ready ## make a Python of its own for MyoSuite, in $(VENV)-myosuite

$(VENV)-myosuite/.ready: requirements-myosuite.txt $(ready)
	$(PYTHON) -m venv $(VENV)-myosuite
	$(VENV)-myosuite/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

sweep: $(ready) ## run a sweep of ablations/ (SWEEP, SCALE=lite|full, CLUSTER=local|slurm, PROFILE, RUNS)
	@case "$(CLUSTER)$(if $(filter command line,$(origin PROFILE)),+profile)" in \
	slurm|slurm+profile) $(python) -m slurm submit $(SWEEP) --profile $(PROFILE) runs=$(RUNS) $(if $(SCALE),scale=$(SCALE)) $(ARGS);; \
	local) $(python) -m slurm run $(SWEEP) runs=$(RUNS) $(if $(SCALE),scale=$(SCALE)) $(ARGS);; \
	local+profile) echo "error: PROFILE=$(PROFILE): is for CLUSTER=slurm" >&2; exit 2;; \
	*) echo "error: CLUSTER=$(CLUSTER): expected local or slurm" >&2; exit 2;; \
	esac

status: $(ready) ## what is done, running, queued, failed or lost
	@$(python) -m slurm status $(chosen) runs=$(RUNS) $(ARGS)

figures: $(ready) ## draw every figure from the files in RUNS (SWEEP, STYLE=neurips|icml|slides, PUBLISHED)
	@$(python) -m analysis figures $(drawn) $(ARGS)

report: $(ready) ## the same as one HTML page
	@$(python) -m analysis report $(drawn) $(ARGS)

watch: $(ready) ## a live page, on this machine alone, while a sweep runs
	@$(python) -m analysis watch $(drawn) $(ARGS)

test: $(ready) ## lint, types and the test suite (some 12 minutes on 2 cores)
	@$(python) -m ruff check .
	@$(python) -m ruff format --check --quiet .
	@$(python) -m mypy
	@$(python) -m pytest $(ARGS)

test-slow: $(ready) ## the slower evidence
	@$(python) -m pytest -m slow $(ARGS)

lint: $(ready)
	@$(python) -m ruff check .
	@$(python) -m ruff format --check --quiet .
	@$(python) -m mypy

bench: $(ready) ## updates/s of every agent on this machine (PEER=AGENT:/path/to/its/official/checkout compares)
	@$(python) -m benchmarks.speed $(if $(PEER),peer=$(PEER)) $(ARGS)

fidelity: $(ready) ## the same updates by official code, and the distance (PEER=AGENT:/path/to/its/official/checkout)
	@$(python) -m benchmarks.fidelity $(if $(PEER),peer=$(PEER)) $(ARGS)

gpu: $(ready) ## everything to know of a GPU, in 25 minutes; rows in bench/gpu (ARGS="minutes=25 peers=iqrl:/path")
	@$(python) -m benchmarks.gpu $(ARGS)

storm: $(ready) ## a sweep on a real Slurm cluster on this machine under 30 injected faults
	@$(python) -m benchmarks.storm $(ARGS)

clean-runs: $(ready) ## delete RUNS, after asking
	@$(python) -m slurm clean runs=$(RUNS)
