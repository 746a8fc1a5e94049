# Two commands are all that a newcomer needs: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
S3 := .cache/bin/versitygw
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup train check format docs test test-unit test-distributed test-ray test-storage test-simulation simulate test-oracle oracle bench soak clean \
  cluster-up cluster-down test-cluster
.DEFAULT_GOAL := help

help: ## Say what there is to make
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv with everything pinned in constraints.txt

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv installs several times faster; pip does where uv cannot be had. Both check every hash.
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' constraints.txt > $(VENV)/uv.txt
	@uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] && $(BIN)/python -m pip install -q --no-deps --require-hashes -r $(VENV)/uv.txt; then uv=$(BIN)/uv; fi; \
	if [ -n "$$uv" ]; then \
	  "$$uv" pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r constraints.txt && \
	  "$$uv" pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  $(BIN)/python -m pip install -q --require-hashes -r constraints.txt && \
	  $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .; \
	fi
	@# Importing torch and Ray from source takes twice as long, also where Python is told not to write what it compiled.
	@$(BIN)/python -m compileall -q launcher
	@touch $@

train: $(READY) ## Train ResNet-18 on the handwritten digits: the main job, on this machine
	$(BIN)/launch train +model=resnet

check: $(READY) ## Format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format and mend what can be mended without a person
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## Write what configs/ and docs/configuration.md say of the keys anew, from the schema
	$(BIN)/python -m launcher.config.describe

test: test-unit test-simulation test-distributed test-storage test-ray ## All levels that need no cluster, but for the oracle

test-unit: $(READY) ## Nothing real: seconds
	$(PYTEST) tests/unit

test-simulation: $(READY) ## The generation protocol in 10,000 schedules of changes and faults
	$(PYTEST) tests/simulation

N ?= 10000
SEED ?= 0
simulate: $(READY) ## Play N such schedules, from SEED on
	$(BIN)/python -m tests.simulation -n $(N) --seed $(SEED) --coverage

test-oracle: $(READY) ## Jobs of every kind beside plain PyTorch loops, whatever happens to their workers
	$(PYTEST) tests/oracle

MINUTES ?= 60
oracle: $(READY) ## Play such jobs for MINUTES, from SEED on
	$(BIN)/python -m tests.oracle --minutes $(MINUTES) --seed $(SEED)

test-distributed: $(READY) ## Several processes, torch.distributed over Gloo
	$(PYTEST) tests/distributed tests/tracking

test-storage: $(READY) $(S3) ## A local folder and a real S3 server
	$(PYTEST) tests/storage

test-ray: $(READY) $(S3) ## A real local Ray, whole jobs
	$(PYTEST) tests/ray

test-cluster: $(READY) ## Jobs on a real Kubernetes with the KubeRay operator: cluster-up's, or LAUNCHER_KUBECONFIG's
	$(PYTEST) tests/cluster

cluster-up: $(READY) ## A Kubernetes of two nodes on this machine (root; the first time its parts are built, a quarter of an hour)
	@$(BIN)/python -m tests.cluster.binaries
	@$(BIN)/python -m tests.cluster up

cluster-down: $(READY) ## End it and leave nothing behind
	@$(BIN)/python -m tests.cluster down

$(S3): tests/storage/versitygw/go.mod tests/storage/versitygw/go.sum | $(READY)
	@$(BIN)/python -m tests.support.s3 build

constraints.txt: pyproject.toml
	@if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --all-extras --no-header --no-annotate -o $@ pyproject.toml; \
	else touch $@; fi

bench: $(READY) ## Measure against the peers (an hour or more)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.resize
	$(BIN)/python -m benchmarks.membership_scale

soak: $(READY) ## A hundred random changes and faults of one job (half an hour at the most)
	$(BIN)/python -m benchmarks.soak

clean: ## Remove what was built
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
