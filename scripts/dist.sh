#!/usr/bin/env bash
# Wheel and sdist of the last commit, in dist/: built by `build` (the wheel from the sdist), checked by
# twine, in an environment of their own. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-dist
[[ -x $venv/bin/twine ]] || {
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check build twine
}
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
if [[ -e .git ]]; then
    [[ -z $(git status --porcelain) ]] || echo "dist: what is not committed is left out" >&2
    git archive HEAD | tar -x -C "$source"
else # an unpacked sdist
    tar -c --exclude="./.venv*" --exclude=./dist . | tar -x -C "$source"
fi
rm -rf dist
"$venv/bin/python" -m build --outdir dist "$source" >"$source/log" 2>&1 || {
    cat "$source/log" >&2
    exit 1
}
"$venv/bin/twine" check --strict dist/*
cp constraints.txt dist/ # goes with the wheel: docs/install.md
(cd dist && sha256sum -- *)
