# Everything runs from .venv, which is made from the lock file on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv parts demo image test test-node test-kernel lint format bench lock generate manifests \
	cache-key clean

help:  ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(VENV)/.ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "migcompat needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=…" >&2; exit 1; }
	@echo "Making $(VENV) from requirements-dev.lock …"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "Python's venv module is missing (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

venv: $(VENV)/.ready

parts: venv  ## builds and installs what all tests need once, into the cache (root on Debian)
	@$(BIN)/python -m tests.tools.parts

demo: venv  ## the main job once, on a real control plane, step by step
	@$(BIN)/python -m tests.scenario.demo

image: venv  ## the image from the Dockerfile, without a container engine (root on Debian)
	@$(BIN)/python -m tests.image.build

test: venv  ## all tests, against the real parts (built once into the cache)
	$(BIN)/python -m pytest

test-node: venv  ## real kubelets, containerd and the image (root on Debian; installs what it needs)
	@$(BIN)/python -m tests.node

test-kernel: venv  ## the agent in a booted kernel with mdevs and VFs (root on Debian; QEMU without KVM)
	@$(BIN)/python -m tests.kernel

lint: venv  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv  ## let ruff format and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv  ## figures, as ratios against baselines of the same run
	@$(BIN)/python -m tests.bench.run

lock: venv  ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		pyproject.toml --extra nvml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		pyproject.toml --extra nvml --group dev -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraints requirements-dev.lock --group build -o requirements-build.lock

generate: venv  ## the gRPC code from the .proto files
	$(BIN)/python -m tests.tools.generate_protos

manifests: venv  ## deploy/manifests.yaml from the chart
	$(BIN)/python -m tests.tools.render_manifests

cache-key: venv  ## what a CI system names its copy of the cache after
	@$(BIN)/python -m tests.tools.cache_key

clean:  ## what was built here (the cache of built binaries stays)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
