# make demo    pre-train, fine-tune with ESRL and evaluate a small model on real text
# make test    lint, types and tests
# make test-slow    the tests that take minutes: many faults, many updates, many ranks
# make test-extras    install each extra as the documents say, and try it (some minutes, 4 GB)
# The first two make their own environment in .venv first. To choose another Python, torch or folder:
#     make env PYTHON=python3.12 VENV=.venv312 TORCH='torch==2.8.0'
# and with further extras of setup.py:
#     make env VENV=.venv-comet EXTRAS=comet
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
# Words after the requirement go to pip too, e.g. the --index-url of a CPU-only torch.
TORCH  ?= torch==2.13.0
# e.g. EXTRAS=hf,bertscore
EXTRAS ?=
# e.g. PYTEST_ARGS='-m "not slow"'
PYTEST_ARGS ?=

BASE  := $(VENV)/.esrl-env
STAMP := $(BASE)$(EXTRAS:%=-%)
ACTIVATE := . '$(VENV)/bin/activate' &&

.PHONY: env demo test test-slow test-extras lint clean

env: $(STAMP)

# Written last, so that an interrupted install is made again; older than setup.py: updated.
$(STAMP): setup.py pyproject.toml scripts/setup_env.sh
	PYTHON='$(PYTHON)' TORCH='$(TORCH)' EXTRAS='$(EXTRAS)' scripts/setup_env.sh '$(VENV)'
	touch '$(BASE)' '$@'

demo: env
	$(ACTIVATE) recipes/demo/run.sh

# The documents' site, in site/. Neither fairseq nor torch is needed: what the extra names is all.
.PHONY: docs clean-docs
.venv-docs/.made: setup.py
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -q "$$(sed -n 's/^    "docs": \["\(.*\)"\],$$/\1/p' setup.py)"
	touch '$@'

docs: .venv-docs/.made
	.venv-docs/bin/python scripts/site_pages.py build/pages
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo 'site/index.html is written. For its search too: python3 -m http.server -d site'

clean: clean-docs
clean-docs:
	rm -rf site

lint: env
	$(ACTIVATE) ruff check .
	$(ACTIVATE) mypy

test: lint
	$(ACTIVATE) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# One after the other: several of them use all cores.
test-slow: env
	$(ACTIVATE) OMP_NUM_THREADS=1 python -m pytest -m long $(PYTEST_ARGS)

test-extras:
	scripts/test_extras.sh

# Keeps the environment; runs/ holds trained models, so that it is not removed either.
clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
