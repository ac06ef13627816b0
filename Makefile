# Two commands do everything: `make demo` and `make test`. Both create the environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: demo test check docs bench fuzz soak environment checks clean
.DEFAULT_GOAL := environment

environment: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install python3 (3.11 or newer)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11: pass PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: Python's venv module is missing: install python3-venv"; exit 1; }
	@echo "make: installing tuunel and what its tests need into $(VENV): about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: environment
	$(BIN)/tuunel demo

test: environment
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: environment docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, from site/index.html on: a warning, such as a link to a heading that is not there, is an error.
# -E forgets the last build: a warning about a page that has not changed since would else be silent.
docs: environment
	$(BIN)/sphinx-build -b html -E -W --keep-going -q docs site

# tuunel beside its peers (bench/README.md says how to get them); QUICK=1 ends within two minutes.
bench: environment
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

# Every parser that a stranger reaches, one harness after the other: RUNS inputs each, at most SECONDS (docs/spec/proofs.md, "Fuzzing").
RUNS ?= 1000000
SECONDS ?= 1800
fuzz: environment
	nice -n 19 $(BIN)/python -m tests.fuzz --runs $(RUNS) --seconds $(SECONDS) $(FUZZ_ARGS)

# Faults, load and abuse for longer than the tests have time for: about an hour, less with SOAK_ARGS="-k kills"; says what it measured
# (docs/explanation/reliability.md). SEED repeats a random run.
soak: environment
	nice -n 10 $(BIN)/python -m pytest -m soak -s -q -p no:cacheprovider $(SOAK_ARGS)

# Every verification switched off, one at a time: some test must fail (docs/spec/checks.md). Under ten minutes on two cores.
checks: environment
	$(BIN)/python -m tests.checks.every_check $(CHECKS)

# asks the theorem prover E about the handshake; says what to install when it is not here
.PHONY: formal
formal:
	$(PYTHON) docs/spec/formal/check.py $(FORMAL_ARGS)

clean:
	rm -rf $(VENV) site
