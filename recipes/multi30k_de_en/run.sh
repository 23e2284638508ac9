#!/usr/bin/env bash
# German–English on Multi30k, test_2016_flickr: the set of the README's results.
#
# Tested:  2 CPU cores, 4 GB of memory free, Python 3.11, torch 2.13; MLE's second part 25 to 37 minutes on
#          one core, ESRL 17 to 19. The first part of MLE (about 25 minutes) was not timed here
# Needs:   make env; the internet, or a folder with the six .gz files in ESRL_DATA_DIR.
#          The data's own licence holds: https://github.com/multi30k/dataset
# Launch:  recipes/multi30k_de_en/run.sh
#          SEED=2 MLE_CONTINUED=1 recipes/multi30k_de_en/run.sh
# Options: environment variables, see recipes/README.md
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../multi30k/multi30k.sh
source "$(dirname "${BASH_SOURCE[0]}")/../multi30k/multi30k.sh" de en
