# `make demo` is the whole tour; every other target is a part of it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Errors alone are told: warnings are of pip's own settings on this machine.
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Which build of torch, as `make install TORCH=cu130 TORCH_INDEX=URL`: a line of constraints.txt, and where URL/cu130 has
# such packages. With TORCH_INDEX alone: the newest that this machine's driver runs, or the one for processors. With
# neither: what the index that pip asks has.
BUILDS := $(shell sed -n 's/^\#TORCH=\([^ ]*\) .*/\1/p' constraints.txt)
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\)\.\([0-9]\).*/\1\2/p')
CUDAS  := $(patsubst cu%,%,$(filter cu%,$(BUILDS)))
BEST   := $(shell for cuda in $(CUDAS); do [ $$cuda -le "0$(DRIVER)" ] && echo cu$$cuda; done | tail -n 1)
TORCH  ?= $(if $(TORCH_INDEX),$(or $(BEST),cpu))
ifneq ($(TORCH),)
    TORCH_LINE := $(shell sed -n 's/^\#TORCH=$(TORCH) //p' constraints.txt)
    TORCH_HINT := echo 'error: TORCH=$(TORCH): not installed; set TORCH_INDEX to an address that has $(TORCH)/' >&2;
    ifeq ($(TORCH_LINE),)
        $(error TORCH=$(TORCH): constraints.txt has no such line; use one of $(BUILDS))
    endif
endif
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)/$(TORCH))

# What running needs, and what testing needs beside it; each is installed again only when what is asked for has changed.
RUN := $(VENV)/.run-$(TORCH)
DEV := $(VENV)/.dev
LIVE := $(VENV)/.live

.PHONY: install demo demo-world demo-video live test test-all test-train test-slurm lint bars clean

install: $(RUN)

$(RUN): pyproject.toml constraints.txt
	@echo 'installing into $(VENV)$(if $(TORCH), (TORCH=$(TORCH)))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH_FROM) $(TORCH_LINE) -e . || { $(TORCH_HINT) exit 2; }
	@rm -f $(VENV)/.run-* && touch $@

$(LIVE): $(RUN)
	@echo "installing what serving needs"
	@$(PIP) -e '.[serve]'
	@touch $@

$(DEV): $(RUN)
	@echo "installing what the tests need"
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(RUN)
	@$(BIN)/python -m launch.stream experiment=demo

demo-world: $(RUN)
	@$(BIN)/python -m launch.stream experiment=demo_world

# With a video of your own: make demo-video VIDEO=in.mp4
demo-video: $(RUN)
	@$(BIN)/python -m launch.stream experiment=demo_video $(if $(VIDEO),source.video=$(VIDEO))

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

# People talk to the avatar and walk through the world, in a browser: the address is printed.
live: $(LIVE)
	@$(BIN)/python -m launch.serve experiment=live

# With what takes long: every launcher, signal and phase as real processes.
test-all: lint
	$(BIN)/python -m pytest -m "not train"

# Training over several processes, with DeepSpeed, which nothing else needs.
test-train: lint
	@$(PIP) -e '.[dev,train]'
	$(BIN)/python -m pytest -m train tests/distill

# Real batch jobs on two SLURM nodes of this machine; as root, since it installs SLURM where it is missing.
test-slurm: $(DEV)
	$(BIN)/python -m tests.slurm.run

bars: $(DEV)
	$(BIN)/python -m benchmarks.bars

clean:
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache
