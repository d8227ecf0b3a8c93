# The few commands a developer needs. Each sets up .venv by itself; PYTHON chooses the interpreter for it.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= noisysgd-demo

.PHONY: demo test lint bench bench-libraries notebooks clean

demo: .venv/ready
	$(BIN)/noisysgd demo --out $(OUT)

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python benchmarks/bench_theory.py
	$(BIN)/python benchmarks/bench_steps_to_target.py
	$(BIN)/python benchmarks/bench_simulators.py
	$(BIN)/python benchmarks/bench_minibatch.py
	$(BIN)/python benchmarks/bench_measurement.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_sweep.py

# The simulator beside other libraries, in an environment of its own.
bench-libraries:
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/libraries.txt .
	.venv-bench/bin/python benchmarks/bench_libraries.py

# Runs every notebook top to bottom and keeps what it drew.
notebooks: .venv/ready
	$(BIN)/python notebooks/render.py

clean:
	rm -rf .venv .venv-wheel .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Rebuilt when what it installs changes. The stamp comes last: a half-made environment is made again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noisysgd needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[validation,notebooks,test]'
	touch $@
