# `make demo` and `make test` do all the set-up on a fresh machine: Python >= 3.11, git and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-slow lint check wheel bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "syncflow needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version); run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (about 6 GB, some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	@touch $@

demo: setup
	$(BIN)/syncflow demo $(DEMO_ARGS)

# Two workers, a file each: most tests use one core. What a test starts (ranks, Ray) it starts for itself.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What CI runs first.
check: lint test

wheel: setup
	$(BIN)/python -m build --wheel --outdir dist .

bench: setup
	for job in benchmarks/*.py; do $(BIN)/python $$job || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
