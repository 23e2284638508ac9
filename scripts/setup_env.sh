#!/usr/bin/env bash
# Make or update the virtual environment of this repository: scripts/setup_env.sh [DIR]
# PYTHON and TORCH choose the interpreter and the torch requirement, EXTRAS names further extras of
# setup.py (see the Makefile). CONSTRAINTS is the file of tested versions; empty: the newest ones that
# fit. WHEEL installs that file instead of the checkout.
# DIR belongs to this script: an install that was interrupted is begun again from an empty one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
read -r -a torch <<<"${TORCH:-torch==2.13.0}"
extras=dev,demo${EXTRAS:+,$EXTRAS}
# py3langid asks for numpy 2, the library of COMET for an older one.
[[ ,$extras, == *,comet,* ]] || extras+=,language
package=(-e ".[$extras]")
[[ -z ${WHEEL:-} ]] || package=("${WHEEL}[$extras]")
constraints=${CONSTRAINTS-constraints.txt}
if [[ ,$extras, =~ ,(comet|peers), ]]; then
    constraints= # their libraries want other versions of what it names
fi
tested=(${constraints:+-c "$constraints"})
unfinished=$venv/.esrl-unfinished

if [[ -e $unfinished ]]; then
    echo "env: an earlier install into $venv was interrupted; starting from an empty one"
    "$python" -m venv --clear "$venv"
elif [[ ! -x $venv/bin/python ]]; then
    "$python" -m venv "$venv"
fi
touch "$unfinished"
# Not the activated environment's pip: this works before and without activation.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "env: $("$venv/bin/python" --version) is too old, 3.11 is needed: choose it by PYTHON=" >&2
    exit 1
fi

# fairseq is compiled from source (about 3 minutes). An isolated build would first fetch a second,
# full CUDA torch only to compile against it: so what the build needs is installed here, torch
# first, and isolation is off. (setuptools 81 dropped pkg_resources, which old build files import.)
echo "env: torch (${torch[*]}) and what building fairseq needs"
pip install --quiet "${torch[@]}"
pip install --quiet "${tested[@]}" cython numpy 'setuptools<81' wheel
# Nothing below may exchange the chosen torch: a newer torchaudio would.
chosen=torch==$("$venv/bin/python" -c 'from importlib.metadata import version as v; print(v("torch"))')
echo "env: fairseq-fixed (compiled from source, about 3 minutes)"
pip install --quiet --no-build-isolation "${tested[@]}" 'fairseq-fixed>=0.12.3' "$chosen"
echo "env: esrl_fairseq with its extras $extras"
pip install --quiet --no-build-isolation "${tested[@]}" "${package[@]}" "$chosen"

# fairseq-fixed asks for torchaudio, which only its speech tasks import. On Linux the index's torchaudio
# is linked with CUDA, and loads beside a torch with CUDA alone; whatever probes for it (transformers
# does) fails where it does not. There an empty distribution of its name takes its place: what asks
# for it is content, what probes for it finds none, and later pip installs leave it alone.
stand_in() {
    local folder
    folder=$(mktemp -d)
    cat >"$folder/pyproject.toml" <<EOF
[project]
name = "torchaudio"
version = "$1"
description = "Empty: stands in for torchaudio, whose binary does not load beside this torch"
[tool.setuptools]
packages = []
EOF
    pip install --quiet --no-deps --no-build-isolation "$folder"
    rm -r "$folder"
}
audio=$(pip show torchaudio 2>/dev/null | sed -n 's/^Version: //p')
if [[ -n $audio && $audio != *+standin ]] && ! "$venv/bin/python" -c 'import torchaudio' 2>/dev/null; then
    stand_in "${audio%%+*}+standin"
    echo "env: torchaudio $audio does not load beside this torch: an empty stand-in takes its place"
    echo "    (only fairseq's speech tasks use it; pip install --force-reinstall torchaudio brings it back)"
fi

if ! problems=$(pip check); then
    echo "env: the environment in $venv is inconsistent, pip check says:" >&2
    echo "    ${problems//$'\n'/$'\n    '}" >&2
    exit 1
fi
echo "env: pip check: $problems"
rm "$unfinished"
echo "env: ready in $venv"
