PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/patchguard demo

test: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) makes no virtual environment: install its venv (Debian: python3-venv)"; exit 1; }
	$(BIN)/pip install --quiet -e .
	touch $@

# Two names: pip up to 25.2 applies the first to the packages it builds, later ones the second.
.venv/tested: .venv/installed constraints.txt
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/pip install --quiet -e '.[test,lint]'
	touch $@

clean:
	rm -rf .venv build
