# Every habit of the project. `make` alone lists them.

# The first Python of these that is new enough; `make PYTHON=… demo` names another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Prefect keeps its database and settings inside the project, and sends nothing home.
export PREFECT_HOME := $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# The sandbox and the ephemeral server are on loopback, whatever proxy the registry needs.
export NO_PROXY := 127.0.0.1,localhost
export no_proxy := 127.0.0.1,localhost
# A heatpipe of the user's own configuration must not leak into the demo or the tests.
unexport KIYOTAKA_API_KEY HEATPIPE_API_URL HEATPIPE_DATA HEATPIPE_KEY_HEADER HEATPIPE_WEIGHT_PER_MINUTE \
	HEATPIPE_BURST HEATPIPE_HISTORY_DAYS HEATPIPE_TIMEOUT_S HEATPIPE_PATIENCE_S HEATPIPE_CONCURRENCY HEATPIPE_SETTLE_S HEATPIPE_RETIRED \
	PREFECT_API_URL PREFECT_API_KEY PREFECT_PROFILE

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test test-lowest test-services test-ui lint format bench fuzz soak lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r t d; do \
		printf '  make %-13s %s\n' "$$t" "$$d"; done

setup: $(READY) ## make the virtual environment; a second run takes no time

demo: $(READY) ## backfill three coins from the embedded sandbox through Prefect, then look at the rows
	@$(BIN)/python -m flows.demo

ui: $(READY) ## serve Prefect's UI, the flows and the sandbox on loopback, until Ctrl-C
	@$(BIN)/python -m flows.ui

# In as many processes as there are cores, four at most; the tests of the flows share a server, and so a process.
SPREAD := -n auto --maxprocesses 4 --dist loadgroup
test: $(READY) ## run all tests; make test ARGS="-n 0 -x" runs them one by one
	@$(BIN)/python -m pytest $(SPREAD) $(ARGS)

# Whose code calls the libraries that have a lower bound; the flows' library, Prefect, is bound from both sides.
LOWEST := $(patsubst %,tests/test_%.py,cli client config decode frame heatmap inflate layout sql store verify)
test-lowest: $(READY) ## run the tests of what calls our libraries with the lowest versions that the bounds allow
	@$(BIN)/python -m venv --clear .venv-lowest
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements-lowest.lock
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@.venv-lowest/bin/python -m pytest -p no:cacheprovider $(SPREAD) $(LOWEST) $(ARGS)

test-services: $(READY) ## run the tests that need PostgreSQL and systemd
	@$(BIN)/python -m tests.services $(ARGS)

test-ui: $(READY) ## run the tests that drive Prefect's UI in Chromium
	@$(BIN)/python -c 'import playwright' 2>/dev/null || \
		$(BIN)/pip install -qqq --disable-pip-version-check $(call GROUP,ui) || { \
		echo 'make test-ui needs playwright, and pip cannot install it.'; exit 1; }
	@$(BIN)/python -m tests.ui $(ARGS)

lint: $(READY) ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY) ## put the code into its form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The bounds stand in pyproject.toml; pip reads groups from there only since 25.1.
GROUP = $$($(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]])' $(1))
bench: $(READY) ## measure every stage and the whole against peers and limits: make bench ARGS="whole budget"
	@$(BIN)/python -c 'import dlt, pandas' 2>/dev/null || \
		$(BIN)/pip install -qqq --disable-pip-version-check $(call GROUP,bench) || { \
		echo 'make bench needs dlt and pandas, the peers, and pip cannot install them.'; exit 1; }
	@$(BIN)/python -m tests.benchmarks $(ARGS)

fuzz: $(READY) ## hold the decoder against a plain reader, under a fuzzer: make fuzz SECONDS=60
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/pip install -qqq --disable-pip-version-check --only-binary :all: $(call GROUP,fuzz) || { \
		echo 'make fuzz needs atheris, and pip cannot install it: it has wheels for CPython 3.11 to 3.14 on Linux x86_64.'; \
		exit 1; }
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

soak: $(READY) ## kill it everywhere, then a week of chaos and kills; takes some minutes
	@$(BIN)/python -m tests.crash $(ARGS)

UV_LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --all-extras \
	--no-annotate --custom-compile-command 'make lock'
lock: $(READY) ## write requirements.lock and requirements-lowest.lock anew from pyproject.toml
	@$(BIN)/pip install --quiet uv
	@$(UV_LOCK) --group dev --output-file requirements.lock pyproject.toml
	@$(UV_LOCK) --group lowest --resolution lowest-direct --output-file requirements-lowest.lock pyproject.toml

clean: ## remove what setup, demo and test have made
	rm -rf $(VENV) .venv-lowest .prefect data/demo data/ui .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz

$(READY): requirements.lock pyproject.toml
	@if ! [ "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo 'heatpipe needs Python 3.11 or newer; none was found on the PATH, or PYTHON names an older one.'; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'This Python has no venv: install it (on Debian and Ubuntu: apt install python3-venv), then try again.'; \
		exit 1; }
	@echo 'Setting up $(VENV); this takes a minute or two, once.'
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
