# What people type. Everything behind it is in scripts/ and in the `tinyfleet` command.

TINYFLEET_VENV ?= .venv
export TINYFLEET_VENV
BIN := $(TINYFLEET_VENV)/bin
# Debian keeps the broker in /usr/sbin, outside of a user's path.
export PATH := $(PATH):/usr/sbin:/sbin

DEMO ?=
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-long check setup clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-9s %s\n", $$1, $$2}'

setup: ## install everything that check and test need
	@scripts/setup dev

demo: ## 24 emulated microcontrollers learn together; the report goes to out/demo (DEMO="--seed 2")
	@scripts/setup demo
	@$(BIN)/tinyfleet demo $(DEMO)

test: ## the whole test suite, with the same examples each time (TESTS="tests/codegen -m 'not slow'")
	@scripts/setup dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

test-long: ## the same and what takes hours: long fuzzing, random examples, ten times as many (TESTS="tests/fuzz")
	@scripts/setup dev
	@$(BIN)/python -m pytest --long --timeout 7200 $(TESTS)

check: ## formatting, types, layers, C, documentation
	@scripts/setup dev
	@scripts/check

clean: ## remove what was built, keep the environment
	rm -rf out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
