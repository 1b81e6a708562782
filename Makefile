# `make demo` and `make test` work on a fresh checkout: they make their own virtual environment in .venv.
# PYTHON picks the interpreter, TORCH the pinned torch. Where the index has only the large CUDA build of it:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test TORCH=torch==2.13.0+cpu

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-slow check fmt lint types bench wheel-test sanitize kernel-test neon-test clean

demo: $(READY)
	$(BIN)/scanrl demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 1800

check: lint types test

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/pyright

# Every measurement of docs/performance.md, and the page: under an hour. `scanrl bench speed` is the minute's version.
bench: $(READY)
	$(BIN)/python -m pip install --quiet '$(TORCH)' --editable '.[bench]'
	$(BIN)/python results/speed.py run
	$(BIN)/python results/speed.py page

# What a user gets: the wheel, installed elsewhere, without the source tree; and once more without a compiler.
wheel-test: $(READY)
	$(BIN)/python tools/wheel_test.py --torch '$(TORCH)'

# The kernel tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(READY)
	$(BIN)/python tools/sanitize.py

# The C kernels without Python: this machine's instruction sets, and NEON, through an emulator where there is no ARM.
kernel-test:
	$(PYTHON) tools/kernel_test.py

neon-test:
	$(PYTHON) tools/kernel_test.py --arm

# Editable, with the C extension compiled in place where there is a compiler. torch comes first, pinned: left to itself
# pip would take the newest build with gigabytes of CUDA.
$(READY): pyproject.toml setup.py $(wildcard scanrl/kernels/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) scanrl/kernels/*.so
