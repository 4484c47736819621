# make demo | test | check | doctor | tensorboard: each does its own set-up on a fresh machine.
# TORCH_INDEX: a package index to take torch from, e.g. PyTorch's CPU or CUDA index; empty for pip's own settings.
SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# One process per GPU; two on a machine without.
RANKS ?= $(shell n=$$(nvidia-smi -L 2>/dev/null | grep -c GPU); echo $$(( n > 0 ? n : 2 )))
DEMO_DIR ?= runs/demo
# Test files beside each other; those that measure time or fill the machine come after them, alone.
TEST_JOBS ?= 2
# make tensorboard: what to show and where; LOGIN=user@host of a login node to jump over.
RUNS ?= runs
PORT ?= 6006
LOGIN ?=
# As many threads as each rank's share of the cores: more only get in each other's way.
THREADS ?= $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) / $(RANKS) )); echo $$(( n > 0 ? n : 1 )))

.PHONY: demo test check doctor tensorboard format clean
demo: $(VENV)/.installed
	@if [ -e $(DEMO_DIR) ]; then rm -rf $(DEMO_DIR).old && mv $(DEMO_DIR) $(DEMO_DIR).old; fi
	OMP_NUM_THREADS=$(THREADS) $(BIN)/torchrun --standalone --nproc_per_node $(RANKS) \
	  homodistil_ds/train.py --deepspeed_config ds_configs/zero2.json --output_dir $(DEMO_DIR)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not alone"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x slurm/*.sh tests/slurm/*.sh
	$(BIN)/python -m pytest tests/test_imports.py

doctor: $(VENV)/.installed
	$(BIN)/python tools/doctor.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: $(VENV)/.installed
	@echo "From your own machine: ssh $(if $(LOGIN),-J $(LOGIN) )-L $(PORT):127.0.0.1:$(PORT) $$(id -un)@$$(hostname)"
	@echo "then open http://127.0.0.1:$(PORT); for a node behind a login node add LOGIN=user@login to this command."
	$(BIN)/tensorboard --logdir $(RUNS) --host 127.0.0.1 --port $(PORT)

# torch first: DeepSpeed then builds against it, and no newer one is drawn in.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf runs/demo runs/demo.old .pytest_cache .mypy_cache .ruff_cache
