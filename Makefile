# make demo    see it work: installs everything into .venv, then a simulated arm obeys a sentence
# make test    the checks and tests, as CI runs them
# make setup   the installing half of `make demo`
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=
export PYTHON VENV

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
INTERFACE_SOURCES := $(wildcard msg/* srv/* action/* cmake/*) CMakeLists.txt package.xml setup.py

.PHONY: demo test setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

demo: setup
	@$(BIN)/vla demo $(DEMO_ARGS)

setup: $(STAMPS)/interfaces

test: $(STAMPS)/interfaces $(STAMPS)/test
	@VENV=$(VENV) bash scripts/run_tests.sh $(TEST_ARGS)

# Each stamp is touched only after its step has succeeded.
$(STAMPS)/system: scripts/check_system.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed: sudo apt-get install -y python3"; exit 1; }
	@$(PYTHON) scripts/check_system.py
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/venv: constraints.txt pyproject.toml | $(STAMPS)/system
	@bash scripts/setup.sh venv
	@touch $@

$(STAMPS)/interfaces: $(INTERFACE_SOURCES) pyproject.toml | $(STAMPS)/venv
	@bash scripts/setup.sh interfaces
	@touch $@

$(STAMPS)/test: constraints.txt pyproject.toml | $(STAMPS)/venv
	@bash scripts/setup.sh test
	@touch $@

clean:
	rm -rf $(VENV) build install log dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
