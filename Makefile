# `make demo` is the whole tour; every other target is a part of it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo demo-world test test-all test-train test-slurm lint bars clean

install: $(STAMP)

# Reinstalled only when what is asked for has changed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m launch.stream experiment=demo

demo-world: $(STAMP)
	$(BIN)/python -m launch.stream experiment=demo_world

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

# With what takes long: every launcher, signal and phase as real processes.
test-all: lint
	$(BIN)/python -m pytest -m "not train"

# Training over several processes, with DeepSpeed, which nothing else needs.
test-train: lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	$(BIN)/python -m pytest -m train tests/distill

# Real batch jobs on two SLURM nodes of this machine; as root, since it installs SLURM where it is missing.
test-slurm: $(STAMP)
	$(BIN)/python -m tests.slurm.run

bars: $(STAMP)
	$(BIN)/python -m benchmarks.bars

clean:
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache
