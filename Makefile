# Two commands are enough on a fresh machine: make demo, make test. Needs Python >= 3.11 and make.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
# Compiled at once, as pip does: containers often forbid Python to keep bytecode (PYTHONDONTWRITEBYTECODE),
# and then every start of mvmae compiles torch again, which takes three of five seconds.
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -b constraints.txt
# Python may keep bytecode, also of asserts that pytest rewrote: else each process spends 20 seconds on it.
# Work is stolen from the end, so that most files run in one process, which prepares their runs once.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q

.PHONY: setup demo check test test-all bench bench-gpu docs format constraints clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mvmae needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(INSTALL) -e '.[logging,bench,timm,hf,onnx,explore]' --group dev --group parity
	@touch $@

demo: setup  ## pre-train on the built-in photographs, judge, draw: about three minutes on two cores
	$(BIN)/python examples/demo.py

check: setup  ## format, lint, import direction, types, spelling, lengths, language
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	$(BIN)/pyrefly check
	$(BIN)/codespell
	$(BIN)/python -m checks.lengths
	$(BIN)/python -m checks.english

test: setup  ## everything but the slow tests, with coverage
	$(BIN)/python -m compileall -q src  # the tests' child processes write no bytecode
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=90

test-all: setup  ## the slow tests too
	$(PYTEST)

screenshots: setup  ## the pictures of README and docs, from runs/showcase
	$(BIN)/python examples/screenshots.py runs/showcase

bench: setup  ## a training step and the input against the plain way
	$(BIN)/python -m benchmarks step --quick
	$(BIN)/python -m benchmarks input --quick

bench-gpu: setup  ## the GPU tests, then every benchmark on this GPU, into benchmarks/results
	$(BIN)/pytest -q -m gpu
	for size in small base large; do \
		$(BIN)/python -m benchmarks step --device cuda --model.encoder vit_$$size --batch-size 256 \
			--out benchmarks/results/step-vit-$$size-224-gpu.json || exit 1; \
	done
	$(BIN)/python -m benchmarks scale --device cuda --batch-size 64 --out benchmarks/results/scale-gpu.json
	$(BIN)/python -m benchmarks input --out benchmarks/results/input-gpu.json

docs: .venv/ready-docs  ## the site, into site/
	$(BIN)/mkdocs build --strict --quiet

.venv/ready-docs: .venv/ready
	$(INSTALL) --group docs
	@touch $@

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: setup  ## the newest versions that fit together, for every supported Python
	echo "# Exact versions of everything that make setup installs. Renew: make constraints" > constraints.txt
	echo hatchling | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--group dev --group parity --group docs --no-header --no-annotate --no-emit-index-url \
		pyproject.toml - >> constraints.txt

clean:
	rm -rf .venv site
