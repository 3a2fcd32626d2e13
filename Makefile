# Two commands do everything: `make demo` and `make test`. Both install into .venv first; the demo the package alone.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# Threads that spin at a barrier take the cores of whatever else runs.
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test test-gpu test-slow test-lowest lint bench docs clean

.venv/.base: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e .
	touch $@

.venv/.installed: .venv/.base
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e ".[dev]"
	touch $@

demo: .venv/.base
	$(BIN)/eomt demo --output runs/demo $(DEMO)

# Tiny models: two processes of one thread each are faster than one of two.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Skipped without CUDA.
test-gpu: .venv/.installed
	$(BIN)/python -m pytest -m gpu tests/gpu

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

# The suite with the lowest versions that pyproject.toml admits.
test-lowest: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --seed .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.installed
	$(BIN)/python -m benchmarks

# The pages of docs/ as a site, in build/site.
docs: .venv/.installed
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-lowest build runs *.egg-info
