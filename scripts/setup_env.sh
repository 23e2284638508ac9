#!/usr/bin/env bash
# Make or update the virtual environment of this repository: scripts/setup_env.sh [DIR]
# PYTHON and TORCH choose the interpreter and the torch requirement (see the Makefile).
# DIR belongs to this script: an install that was interrupted is begun again from an empty one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}
read -r -a torch <<<"${TORCH:-torch==2.13.0}"
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

if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
    fairseq='fairseq==0.12.2'
    # fairseq 0.12.2 needs omegaconf 2.0, whose metadata newer pips refuse.
    build=('pip<24.1' cython 'numpy<1.24' 'setuptools<81' wheel)
else
    fairseq='fairseq-fixed>=0.12.3'
    build=(cython numpy 'setuptools<81' wheel)
fi

# fairseq is compiled from source (about 3 minutes). An isolated build would first fetch a second,
# full CUDA torch only to compile against it: so what the build needs is installed here, torch
# first, and isolation is off. (setuptools 81 dropped pkg_resources, which old build files import.)
echo "env: torch (${torch[*]}) and what building fairseq needs"
pip install --quiet "${torch[@]}"
pip install --quiet "${build[@]}"
echo "env: $fairseq (compiled from source, about 3 minutes)"
pip install --quiet --no-build-isolation "$fairseq"
echo "env: esrl_fairseq with its development and demo tools"
pip install --quiet --no-build-isolation -e '.[dev,demo]'

# fairseq-fixed asks for torchaudio, which only its speech tasks import. The newest torchaudio may
# be older than torch; then its binary does not load, and whatever probes for it (transformers
# does) fails on import. Better none than a broken one.
explained='^$'
if pip show --quiet torchaudio 2>/dev/null && ! "$venv/bin/python" -c 'import torchaudio' 2>/dev/null; then
    pip uninstall --quiet --yes torchaudio
fi
if ! pip show --quiet torchaudio 2>/dev/null; then
    explained='fairseq-fixed .* requires torchaudio, which is not installed'
fi

if ! problems=$(pip check); then
    echo "env: pip check says:"
    echo "    ${problems//$'\n'/$'\n    '}"
    if grep -Eq "$explained" <<<"$problems"; then
        echo "    (torchaudio: expected. Its newest binary does not load beside this torch and would break"
        echo "    'import transformers'; only fairseq's speech tasks use it, so that it was removed.)"
    fi
    if grep -Evq "$explained" <<<"$problems"; then
        echo "env: the environment in $venv is inconsistent (the lines above without an explanation)" >&2
        exit 1
    fi
else
    echo "env: pip check: $problems"
fi
rm "$unfinished"
echo "env: ready in $venv"
