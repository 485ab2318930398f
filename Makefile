# make serve   installs what is needed into .venv and starts a server with local workers
# make test    installs what the tests need, real clients included, and runs all tests
# make check   the fast part: types, style, layers, unit tests
# make test-kubernetes  worker pools against a Kubernetes API server: set KUBECONFIG, or REXEC_KUBERNETES_SCRIPTS
# make nightly what takes too long for every change: 20 builds in which processes are killed

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# Tests wait more than they compute: a file to each of so many processes, for two cores. Add -n0 to ARGS for one at a time.
UNIT_TESTS := -n 3 --dist loadfile
INTEGRATION_TESTS := -n 2 --dist loadfile

.PHONY: serve test check unit integration test-kubernetes nightly clients venv format protos bench clean

serve: $(STAMP)
	@$(BIN)/rexec serve $(ARGS)

venv: $(STAMP)

$(STAMP): pyproject.toml scripts/make-venv.sh
	@PYTHON="$(PYTHON)" scripts/make-venv.sh $(VENV) .
	@touch $@

$(DEV_STAMP): $(STAMP)
	@PYTHON="$(PYTHON)" scripts/make-venv.sh $(VENV) '.[dev]'
	@touch $@

clients:
	@scripts/install-clients.sh

test: $(DEV_STAMP) clients check integration

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests $(UNIT_TESTS)

unit: $(DEV_STAMP)
	$(BIN)/pytest tests $(UNIT_TESTS) $(ARGS)

integration: $(DEV_STAMP) clients
	$(BIN)/pytest integration --ignore=integration/kubernetes $(INTEGRATION_TESTS) $(ARGS)

# What it needs it says: an API server is not something to start without being asked.
test-kubernetes: $(DEV_STAMP) clients
	@scripts/install-kubernetes.sh
	$(BIN)/pytest integration/kubernetes $(ARGS)

nightly: $(DEV_STAMP) clients
	REXEC_CHAOS_ROUNDS=20 $(BIN)/pytest integration/test_chaos.py $(ARGS)

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(DEV_STAMP)
	$(BIN)/python -m protos.generate

bench: $(DEV_STAMP) clients
	$(BIN)/python -m bench.bazel_ratio

clean:
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache
