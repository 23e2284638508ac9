# make demo    pre-train, fine-tune with ESRL and evaluate a small model on real text
# make test    lint, types, shell scripts and tests
# make test-slow    the tests that take minutes: many faults, many updates, many ranks
# make test-extras    install each extra as the documents say, and try it (some minutes, 4 GB)
# make dist    wheel and sdist of the last commit, checked, in dist/
# make test-versions    the quick tests on each Python and torch of docs/versions.md, from the wheel
# make constraints    the versions in the environment, as those that are tested
# The first two make their own environment in .venv first, with the versions of constraints.txt. To
# choose another Python, torch or folder, or the newest versions:
#     make env PYTHON=python3.11 VENV=.venv-new TORCH='torch==2.13.0' CONSTRAINTS=
# and with further extras of setup.py:
#     make env VENV=.venv-comet EXTRAS=comet
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
# Words after the requirement go to pip too, e.g. the --index-url of a CPU-only torch.
TORCH  ?= torch==2.13.0
# e.g. EXTRAS=hf,bertscore
EXTRAS ?=
# Versions that were tested together (docs/versions.md).
CONSTRAINTS ?= constraints.txt
# e.g. VERSIONS='3.11:2.13.0 3.12:2.13.0', Python and torch; by default all that the script names
VERSIONS ?=
# e.g. PYTEST_ARGS='-m "not slow"'
PYTEST_ARGS ?=

BASE  := $(VENV)/.esrl-env
STAMP := $(BASE)$(EXTRAS:%=-%)
ACTIVATE := . '$(VENV)/bin/activate' &&

# Those without a first line for the system are parts of others, with which they share variables.
SHELL_SCRIPTS = $(shell find .ci benchmarks docs recipes scripts tests \
	-name '*.sh' -o -name '*.sbatch' -o -path .ci/run)

.PHONY: env demo test test-slow test-extras test-versions lint dist constraints clean

env: $(STAMP)

# Written last, so that an interrupted install is made again; older than setup.py: updated.
$(STAMP): setup.py pyproject.toml MANIFEST.in constraints.txt scripts/setup_env.sh
	PYTHON='$(PYTHON)' TORCH='$(TORCH)' EXTRAS='$(EXTRAS)' CONSTRAINTS='$(CONSTRAINTS)' \
		scripts/setup_env.sh '$(VENV)'
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
	$(ACTIVATE) shellcheck -x $(shell grep -l '^#!' $(SHELL_SCRIPTS))
	$(ACTIVATE) shellcheck -x -e SC2034,SC2154 $(shell grep -L '^#!' $(SHELL_SCRIPTS))

test: lint
	$(ACTIVATE) OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# One after the other: several of them use all cores.
test-slow: env
	$(ACTIVATE) OMP_NUM_THREADS=1 python -m pytest -m long $(PYTEST_ARGS)

test-extras:
	scripts/test_extras.sh

test-versions: dist
	python3 scripts/version_matrix.py $(VERSIONS)

dist:
	PYTHON='$(PYTHON)' scripts/dist.sh

# After all tests have passed, in the environment in which they did.
constraints: env
	$(ACTIVATE) python scripts/constraints.py >constraints.new && mv constraints.new constraints.txt
	touch '$(BASE)' '$(STAMP)'

# Keeps the environment; runs/ holds trained models, so that it is not removed either.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
