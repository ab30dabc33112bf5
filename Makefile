# Two commands: `make demo` and `make test`. Each makes its own environment when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --no-deps --require-hashes
LOCK := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --default-index https://pypi.org/simple --generate-hashes --no-annotate --no-emit-package torch -c constraints.txt pyproject.toml

.PHONY: demo test test-page test-postgres test-deploy lint lock bench methods evidence clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train two replicas alone and together through the whole stack, and compare them"
	@echo "make test   run all tests"
	@echo "make test-page  the web page in a real browser, which it installs; make test runs these too from then on"
	@echo "make test-postgres  the tests of the service on a real PostgreSQL server instead of SQLite"
	@echo "make test-deploy  the alerts, in Prometheus' own tool, which it fetches; make test runs these too from then on"
	@echo "make lint   format check, lint, types, import contracts"
	@echo "make lock   write requirements/ anew, from constraints.txt"
	@echo "make methods  train every method once on real data, see whether it keeps what it promises, measure its cost"
	@echo "make evidence  train every study of docs/evidence as far as its results are missing; hours"
	@echo "make bench  measure what training and the exchange cost"

# torch is the one that no lock has: its build (CPU, CUDA) is yours, pinned by version; install your torch first, or see
# the Dockerfile.
$(RUNS): pyproject.toml constraints.txt requirements/run.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(LOCKED) -r requirements/run.lock
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --no-build-isolation -e .
	touch $(RUNS)

# What tests need beyond that: every extra, and the tools.
$(READY): $(RUNS) requirements/dev.lock
	$(LOCKED) -r requirements/dev.lock
	touch $(READY)

demo: $(RUNS)
	$(BIN)/codistill demo

# Side by side what needs no more than a process; then, two at a time, what starts Ray, a service or a browser and waits
# for them a good part of its time.
test: $(READY)
	$(BIN)/python -m pytest -m "not apart" -n auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest -m apart -n 2 --no-loadscope-reorder

# Debian's browser: the one that Playwright would fetch comes from outside the package registries.
test-page: $(READY)
	command -v chromium > /dev/null || apt-get install -y chromium
	$(LOCKED) -r requirements/page.lock
	$(BIN)/python -m pytest tests/page

# The tests of the service once more, with every store in a PostgreSQL server that they start.
test-postgres: $(READY)
	CODISTILL_TEST_STORE=postgresql $(BIN)/python -m pytest tests/unit/jobs -n auto --maxprocesses 4 --dist worksteal
	CODISTILL_TEST_STORE=postgresql $(BIN)/python -m pytest tests/service tests/page

# Debian's package has the tool and a server: the tool alone is taken out of it.
test-deploy: $(READY)
	command -v promtool > /dev/null || test -x $(BIN)/promtool || { cd $(VENV) && apt-get download prometheus \
	  && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=2 ./usr/bin/promtool && rm prometheus_*.deb; }
	$(BIN)/python -m pytest tests/deploy

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# The hash of every file of every release that constraints.txt names, as PyPI has them.
lock: $(RUNS)
	$(PIP) -c constraints.txt uv
	$(LOCK) --extra cluster --extra postgres --extra digits --extra plots -o requirements/run.lock
	$(LOCK) --extra dev -o requirements/dev.lock
	$(LOCK) --extra browser -o requirements/page.lock

evidence: $(READY)
	for data in fashion-mnist flights gcide; do $(BIN)/codistill data import $$data || exit 1; done
	$(BIN)/python -m tests.benchmarks.evidence

methods: $(READY)
	$(BIN)/python -m tests.benchmarks.methods

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info
