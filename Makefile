# make test: everything that CI does. make setup: the environment alone. make help: the rest.

SHELL := bash
PYTHON ?= python3
# More arguments for pytest: make test PYTEST_ARGS="-n 2 -x"
PYTEST_ARGS ?=
# Processes that run tests side by side. They wait half of the time, so two for each core.
TEST_PROCESSES ?= 4

BIN := .venv/bin
STAMP := .venv/.installed
TYPED := $(wildcard cqrs_celery sample_app tests benchmarks)

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-unit demo run chaos soak mutants conformance acceptance bench lock format clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## Make .venv with the locked versions

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup  ## Check style, types and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/python -m tests.prose

# Exit code 5 is pytest's for no tests: PYTEST_ARGS may choose none in one of the calls, not in both.
test: setup lint  ## Lint, then run every test: in several processes, then those that must run alone
	@$(BIN)/python -m benchmarks.summary --check || echo 'warning: the benchmarks are not of this code; see above' >&2
	@run() { echo "$(BIN)/pytest $$*"; $(BIN)/pytest "$$@"; }; \
	run --alone=leave-out -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS); first=$$?; \
	case $$first in 0|1|5) ;; *) exit $$first;; esac; \
	run --alone=only $(PYTEST_ARGS) -n 0; second=$$?; \
	case $$first,$$second in 0,0|0,5|5,0) exit 0;; 0,*|5,*) exit $$second;; *) exit $$first;; esac

test-unit: setup  ## Run the tests that need no server
	$(BIN)/pytest -m "not integration and not chaos and not docker" $(PYTEST_ARGS)

demo: setup  ## Show what the library does
	$(BIN)/python -m sample_app.demo

run: setup  ## Run the sample application
	$(BIN)/python -m sample_app.run

chaos: setup  ## Kill, freeze and cut off at random, and check what is promised
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.mutants
	$(BIN)/python -m tests.script_mutants
	$(BIN)/python -m tests.values

soak: setup  ## Let workers work for two hours, kill some: memory and keys must stay flat
	$(BIN)/python -m tests.soak

mutants: setup  ## Break messages and the queue's scripts on purpose: tests must notice; minutes
	$(BIN)/python -m tests.mutants
	$(BIN)/python -m tests.script_mutants

conformance: setup  ## Run Kombu's and Celery's own suites on stock Redis and on ours, side by side
	$(BIN)/python -m tests.conformance

acceptance: setup  ## Say which test shows which behaviour of the predecessor
	$(BIN)/python -m tests.acceptance

bench: setup  ## Measure everything, and write the documentation's numbers
	$(BIN)/python -m benchmarks.summary

# Versions for Linux and macOS and every Python from 3.11, from pyproject.toml, with the hashes of
# all their files. The image's lock has the sample's part of the same versions.
lock:  ## Choose the newest versions anew, into requirements.lock and requirements-image.lock
	@set -e; home="$$(mktemp -d)"; trap 'rm -rf "$$home"' EXIT; \
	$(PYTHON) -m venv "$$home"; "$$home/bin/python" -m pip install -q --disable-pip-version-check uv; \
	compile() { "$$home/bin/uv" pip compile -q --universal --upgrade --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links --group build "$$@" pyproject.toml -o "$$home/lock"; }; \
	compile --python-version 3.11 --extra embedded --extra sample --extra test; \
	{ echo "# The versions that CI tests. Made by: make lock"; cat "$$home/lock"; } > requirements.lock; \
	compile --python-version 3.13 --extra sample --extra postgresql -c requirements.lock; \
	{ echo "# What the image installs. Made by: make lock"; cat "$$home/lock"; } > requirements-image.lock

format: setup  ## Format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist site
	find cqrs_celery tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
