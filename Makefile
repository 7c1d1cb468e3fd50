# From nothing but Python >= 3.11 and make: every target creates .venv on its first call and finds it ready on the next.
#   make demo    train on real digits, sample, restore, classify; writes out/demo/report.html
#   make test    the default tests          make test-all   the slow ones too
#   make lint    ruff and mypy --strict     make docs       the documentation, into site/
# `make PYTHON=/path/to/python` chooses the interpreter; `make TORCH='torch==2.13.0 --index-url URL'` another build of torch.

VENV  := .venv
BIN   := $(VENV)/bin
TORCH ?= torch==2.13.0
JOBS  ?= 2
PIP   := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-all lint docs venv clean
help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/fokker demo --out out/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow or not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

venv: $(VENV)/.installed-dev

clean:
	rm -rf site build dist .mypy_cache .pytest_cache .ruff_cache

# torch goes in first and alone: with it in place, nothing later pulls another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@set -e; \
	for p in $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14 python; do \
	    if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no Python >= 3.11 with the venv module was found; install one, or name it with 'make PYTHON=/path/to/python3.11'" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "creating $(VENV) with $$("$$found" --version)"; "$$found" -m venv --clear $(VENV); \
	fi
	@echo "installing $(TORCH)"
	@$(PIP) $(TORCH)
	@echo "installing fokker and what it needs"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools for tests, types and documentation"
	@$(PIP) -e '.[dev]'
	@touch $@
