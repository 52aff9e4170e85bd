# Everything is installed into $(VENV); nothing is needed but Python 3.8 or newer and make.
PYTHON ?= python3
VENV ?= .venv
RUN = PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python

.PHONY: help demo test test-stdlib coverage lint bench clean

help:
	@echo "make demo      run the demonstration: aiohttp inside Trio"
	@echo "make test      run the tests"
	@echo "make coverage  run the tests and demand full coverage of the core"
	@echo "make test-stdlib  asyncio's own tests, with its loops as guests (ARGS=--help)"
	@echo "make lint      ruff and mypy"
	@echo "make bench     measure speed against plain asyncio and the peers"
	@echo "make clean     remove the environment"

demo: $(VENV)/.demo
	@$(VENV)/bin/python -m aioguest demo

test: $(VENV)/.test
	$(RUN) -m pytest $(ARGS)

coverage: $(VENV)/.test
	$(RUN) -m coverage erase
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/.coverage \
		$(RUN) -m coverage run -m pytest $(ARGS)
	$(RUN) -m coverage combine -q
	$(RUN) -m coverage report --fail-under=100

test-stdlib: $(VENV)/.test
	$(RUN) tests/stdlib/run.py $(ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.test
	$(VENV)/bin/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras, so that `make demo` need not install the tests' tools.
$(VENV)/.%: $(VENV)/bin/pip pyproject.toml
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
