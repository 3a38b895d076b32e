PYTHON ?= python3
BIN := .venv/bin
# One process for each core, each on one thread; a file's tests stay together for its fixtures.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest \
	--numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-rest test-all lint clean

demo: .venv/installed
	$(BIN)/patchguard demo

test: lint
	$(PYTEST) -m 'not slow and not peers'

test-rest: .venv/peers
	$(PYTEST) -m 'slow or peers'

test-all: test
	$(MAKE) test-rest

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) makes no virtual environment: install its venv (Debian: python3-venv)"; exit 1; }
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet -e '.[test,lint]'
	touch $@

# Two names: pip up to 25.2 applies the first to the packages it builds, later ones the second.
.venv/peers: .venv/tested constraints.txt
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/pip install --quiet -e '.[test,peers]'
	touch $@

clean:
	rm -rf .venv build
