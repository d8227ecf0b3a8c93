# The few commands a developer needs. Each sets up .venv by itself; PYTHON chooses the interpreter for it.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= noisysgd-demo
# Processes that run tests side by side; "logical" is one for each core.
WORKERS ?= logical

.PHONY: help demo test lint format bench bench-libraries notebooks api clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: .venv/ready ## predict, simulate, train, measure and compare; writes OUT/report.html
	$(BIN)/noisysgd demo --out $(OUT)

test: .venv/ready ## run the whole test suite, in WORKERS processes
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "not alone" -n $(WORKERS)

lint: .venv/ready ## check style and types, as continuous integration does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready ## put code into the form that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

api: .venv/ready ## write down the public names and signatures anew, after an intended change
	$(BIN)/python tests/house/test_public_api.py

bench: .venv/ready ## measure the speed of every part
	$(BIN)/python benchmarks/bench_theory.py
	$(BIN)/python benchmarks/bench_steps_to_target.py
	$(BIN)/python benchmarks/bench_simulators.py
	$(BIN)/python benchmarks/bench_minibatch.py
	$(BIN)/python benchmarks/bench_measurement.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_threads.py
	$(BIN)/python benchmarks/bench_sweep.py
	$(BIN)/python benchmarks/bench_store.py

bench-libraries: ## measure the simulator beside other libraries, in an environment of its own
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/libraries.txt .
	.venv-bench/bin/python benchmarks/bench_libraries.py

notebooks: .venv/ready ## run every notebook top to bottom and keep what it drew
	$(BIN)/python notebooks/render.py

clean: ## remove environments, builds and caches
	rm -rf .venv .venv-wheel .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Rebuilt when what it installs changes. The stamp comes last: a half-made environment is made again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "noisysgd needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[validation,notebooks,test]'
	touch $@
