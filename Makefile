# Vigil's commands. `make` lists them; each one first builds .venv.
# Needs: Python 3.11 (with its venv module), make, git.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# aws-sam-cli and ministack pin different versions of botocore, so each one has its own virtual environment.
SAM_VENV := $(VENV)/sam
SAM := $(SAM_VENV)/bin/sam
# ChromaDB, for the tests of one example: a separate server, which Vigil does not import.
CHROMA_VENV := $(VENV)/chroma
LAYER := layers/common/python

# `sam build` needs a python3.11 with pip on the PATH, and the virtual environment has one.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export SAM_CLI_TELEMETRY := 0
export UV_CUSTOM_COMPILE_COMMAND := make lock
# No command may reach an AWS account by accident. The local cloud and moto accept any credentials.
export AWS_DEFAULT_REGION ?= us-east-1

PYTEST := $(BIN)/python -m pytest
# One worker for each core; tests of one group share a worker (see tests/conftest.py).
SPREAD := -n auto --dist loadgroup --no-loadscope-reorder
# Each worker starts a stack of its own.
STACKS := -n 2 --dist loadfile --no-loadscope-reorder
# The sizes of the simulations (see tests/model/seeds.py). Without them a test run has a dozen of each kind.
SIMULATE := VIGIL_WORLDS=300 VIGIL_RUNS=300 VIGIL_HISTORIES=1000
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
	--no-annotate $(if $(UPGRADE),--upgrade)

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))

##@ Start here

.PHONY: demo
demo: venv ## Start a local cloud and show clients that wait for jobs
	@$(BIN)/vigil demo

.PHONY: test
test: venv ## Run the fast tests: all without a stack but the longest, a few simulations, about one stack test per capability
	@$(PYTEST) $(SPREAD) -m "smoke or not (docker or e2e or fault or thorough)"

##@ Setup

.PHONY: venv
venv: $(VENV)/.ready $(SAM_VENV)/.ready $(CHROMA_VENV)/.ready ## Build .venv from the locked versions (does nothing if they are unchanged)

$(BIN)/python:
	@for python in "$${PYTHON:-python3.11}" python3.11 python3 python; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
			"$$python" -m venv $(VENV) && exit; \
			rm -rf $(VENV); \
			echo "$$python has no working venv module. On Debian and Ubuntu, install python3.11-venv." >&2; exit 1; \
		fi; \
	done; \
	echo "Vigil needs Python 3.11, the runtime of its Lambda functions; the PATH has none." >&2; exit 1

$(UV): | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements/dev.txt uv

$(VENV)/.ready: requirements/dev.txt pyproject.toml | $(UV)
	@echo "Installing into $(VENV) ..."
	@$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(SAM_VENV)/.ready: requirements/sam.txt | $(UV)
	@echo "Installing aws-sam-cli into $(SAM_VENV) ..."
	@test -x $(SAM_VENV)/bin/python || $(UV) venv --quiet --python $(BIN)/python $(SAM_VENV)
	@$(UV) pip sync --quiet --python $(SAM_VENV)/bin/python requirements/sam.txt
	@touch $@

$(CHROMA_VENV)/.ready: requirements/chroma.txt | $(UV)
	@echo "Installing chromadb into $(CHROMA_VENV) ..."
	@test -x $(CHROMA_VENV)/bin/python || $(UV) venv --quiet --python $(BIN)/python $(CHROMA_VENV)
	@$(UV) pip install --quiet --python $(CHROMA_VENV)/bin/python --no-deps --requirement requirements/chroma.txt
	@touch $@

.PHONY: lock
lock: | $(UV) ## Lock the dependencies after a change of a list; UPGRADE=1 takes the newest versions
	@$(COMPILE) pyproject.toml --extra local --group dev $(LAYER)/requirements.in --output-file requirements/dev.txt
	@$(COMPILE) --group sam --output-file requirements/sam.txt
	@$(COMPILE) $(LAYER)/requirements.in --constraint requirements/dev.txt --output-file $(LAYER)/requirements.txt

##@ The local cloud

.PHONY: up
up: venv ## Start the local cloud in the background and deploy to it
	@$(BIN)/vigil local up --detach

.PHONY: down
down: venv ## Stop the local cloud and keep its state
	@$(BIN)/vigil local down

##@ Tests

.PHONY: unit
unit: venv ## Run the tests without a stack: unit, integration, contract, a few simulations
	@$(PYTEST) $(SPREAD) -m "not (docker or e2e or fault or thorough)"

.PHONY: e2e
e2e: venv ## Run all tests of the local cloud
	@$(PYTEST) $(STACKS) -m "e2e and not (docker or slow or alone)"
	@$(PYTEST) -m "alone and not slow" tests/e2e

.PHONY: simulate
simulate: venv ## Run all simulations: 300 runs, 1,000 histories, planted faults
	@$(SIMULATE) $(PYTEST) $(SPREAD) tests/model

.PHONY: test-all
test-all: test test-rest ## Run every test that needs neither Docker nor AWS, except `test-slow`

.PHONY: test-rest
test-rest: venv ## Run what `test-all` adds to `test`
	@$(SIMULATE) VIGIL_THOROUGH=1 $(PYTEST) $(SPREAD) tests/model tests/contract/test_schemathesis.py
	@VIGIL_THOROUGH=1 $(PYTEST) $(SPREAD) -m thorough
	@$(PYTEST) $(STACKS) -m "e2e and not (docker or slow or alone or smoke)"
	@$(PYTEST) -m "alone and not slow" tests/e2e

.PHONY: test-slow
test-slow: venv ## Run the longest tests: 2,000 jobs of 20 workers, runs of 10,000 jobs, 3,000 histories
	@$(PYTEST) -m slow --log-cli-level=WARNING
	@VIGIL_HISTORIES=3000 $(PYTEST) $(SPREAD) -m "not fault" tests/model/test_histories.py

.PHONY: sam-local
sam-local: docker venv ## Run the functions in `sam local` containers (needs Docker)
	@$(PYTEST) -m docker tests/docker

.PHONY: docker
docker:
	@docker info >/dev/null 2>&1 || { echo "\`make sam-local\` needs a running Docker engine, and" \
		"\`docker info\` finds none. \`make test-all\` runs every other test without Docker." >&2; exit 1; }

.PHONY: bench
bench: venv ## Measure the cost and the speed of jobs and waits
	@$(BIN)/python -m benchmarks

##@ Checks

.PHONY: check
check: lint types imports validate openapi-check schema-check ## Run all checks except the tests

.PHONY: pr
pr: check test ## Run the checks and the fast tests; CI also runs `test-rest` and, with Docker, `sam-local`

.PHONY: lint
lint: venv ## Check the rules and the format with ruff
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

.PHONY: format
format: venv ## Fix and format the code with ruff
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: types
types: venv ## Check the types with mypy (strict)
	@$(BIN)/mypy

.PHONY: imports
imports: venv ## Check the dependency rule
	@$(BIN)/lint-imports --no-logo

.PHONY: validate
validate: venv ## Validate the template (`sam validate --lint`) and the files of .github
	@$(SAM) validate --lint --template-file template.yaml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(wildcard .github/ISSUE_TEMPLATE/*_*.yml)
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

.PHONY: openapi
openapi: venv ## Write docs/openapi.json from the code
	@$(BIN)/python -m vigil_core.api > docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

.PHONY: openapi-check
openapi-check: venv ## Compare docs/openapi.json with the code
	@$(BIN)/python -m vigil_core.api | diff -u docs/openapi.json - \
		|| { echo "docs/openapi.json has drifted from the code: run make openapi." >&2; exit 1; }

.PHONY: schema
schema: venv ## Write docs/workflow.schema.json from the code
	@$(BIN)/python -m vigil_core.api.workflows.json_schema > docs/workflow.schema.json.new
	@mv docs/workflow.schema.json.new docs/workflow.schema.json

.PHONY: schema-check
schema-check: venv ## Compare docs/workflow.schema.json with the code
	@$(BIN)/python -m vigil_core.api.workflows.json_schema | diff -u docs/workflow.schema.json - \
		|| { echo "docs/workflow.schema.json has drifted from the code: run make schema." >&2; exit 1; }

##@ Cleanup

.PHONY: clean
clean: ## Stop the local cloud and remove everything that git ignores, with .venv
	@if [ -x $(BIN)/vigil ]; then $(BIN)/vigil local down; fi
	@rm -rf .aws-sam .local $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
