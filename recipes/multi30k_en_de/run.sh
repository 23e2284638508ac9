#!/usr/bin/env bash
# English–German on Multi30k, test_2016_flickr: the data and settings of multi30k_de_en.
#
# Tested:  not run to the end yet; multi30k_de_en, which does the same work, was
# Needs:   make env; the internet, or a folder with the six .gz files in ESRL_DATA_DIR.
#          The data's own licence holds: https://github.com/multi30k/dataset
# Launch:  recipes/multi30k_en_de/run.sh
# Options: environment variables, see recipes/README.md
# shellcheck source-path=SCRIPTDIR source=../multi30k/multi30k.sh
source "$(dirname "${BASH_SOURCE[0]}")/../multi30k/multi30k.sh" en de
