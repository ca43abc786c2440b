# A fresh machine needs Python 3.10 or newer with venv, git and make; everything else goes into .venv.
PYTHON ?= python3
MODEL ?= kimi-k2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := tests/clients/node_modules

.PHONY: onboard mcp test lint types tests coverage clients format clean

onboard: $(VENV)/.installed
	$(BIN)/fib onboard $(MODEL) $(ARGS)

# stdout is the protocol: run it as `make -s mcp`
mcp: $(VENV)/.installed
	@exec $(BIN)/fib mcp $(ARGS)

test: lint types tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev clients
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

coverage: $(VENV)/.installed-dev clients
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered

clients:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(CLIENTS)/.installed; \
	else echo "npm is not installed: the tests with MCP Inspector, the conformance suite, Perfetto, TypeScript and axe will be skipped" >&2; fi

$(CLIENTS)/.installed: tests/clients/package.json tests/clients/package-lock.json
	npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund
	@touch $@

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; pass PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu run: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable . >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .coverage
