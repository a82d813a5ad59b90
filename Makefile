# Everything runs in .venv with the versions of requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PROTOS := $(wildcard proto/nhop/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults test-deploy check proto check-proto lock audit bench release-check clean

help:  ## Shows this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Makes the environment in .venv

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "NHOP needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "making the environment in .venv: TensorFlow and all else, a minute or more"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## Runs a small study with a parameter server and two workers on this machine
	$(BIN)/nhop-coordinator examples/demo.yaml

# Real processes share the machine with others: a test that fails runs once more, and what it failed with is shown.
AGAIN = --reruns 1 --rerun-show-tracebacks

test: check  ## Sets up, checks and runs all tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(AGAIN)

test-faults: $(STAMP)  ## Long tests of what must be survived (some minutes)
	$(BIN)/python -m pytest -m faults -s

test-deploy: $(STAMP)  ## Whole deployments: units and rules on three hosts, EC2, Slurm, Kubernetes (some minutes)
	$(BIN)/python -m pytest -m deploy

check: $(STAMP) check-proto  ## Lint, types, import rules, generated code, the lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.supply check

PROTOC = $(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc

proto: $(STAMP)  ## Generates nhop/v1 from proto/
	$(PROTOC) --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

check-proto: $(STAMP)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(PROTOC) --python_out=$$out --grpc_python_out=$$out --mypy_out=quiet:$$out --mypy_grpc_out=quiet:$$out $(PROTOS) && \
	for f in $$out/nhop/v1/*; do cmp -s $$f nhop/v1/$$(basename $$f) || \
	{ echo "nhop/v1/$$(basename $$f) is not what proto/ generates: run 'make proto'"; exit 1; }; done

lock: $(STAMP)  ## Locks the newest versions that pyproject.toml allows
	$(BIN)/pip install --quiet --disable-pip-version-check pip-tools
	$(BIN)/pip-compile --quiet --upgrade --extra dev --all-build-deps --allow-unsafe --generate-hashes --strip-extras \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml

audit: $(STAMP)  ## Asks PyPI for advisories of all that is locked (needs PyPI)
	$(BIN)/python -m tools.supply audit

# In an environment of its own, with the locked packages but not the sources beside it.
release-check: $(STAMP)  ## Builds dist/, and tries the wheel in a clean environment (some minutes)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	cd dist && sha256sum * >SHA256SUMS && cat SHA256SUMS
	@env=$$(mktemp -d) && trap 'rm -rf "$$env"' EXIT && $(PYTHON) -m venv $$env && \
	$$env/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock && \
	$$env/bin/pip install --quiet --disable-pip-version-check --no-deps --no-index dist/*.whl && \
	$$env/bin/pip check && cd $$env && bin/nhop-coordinator --version && bin/nhop-agent --help >/dev/null && \
	bin/nhop-coordinator --dry-run >/dev/null && echo "the wheel works in a clean environment"

bench: $(STAMP)  ## Measures the figures of benchmarks/README.md (some minutes; wants a quiet machine)
	$(BIN)/python -m benchmarks

clean:  ## Removes the environment and caches (never runs/)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
