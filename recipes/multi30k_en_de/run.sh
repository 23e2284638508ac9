#!/usr/bin/env bash
# English–German on Multi30k, test_2016_flickr: the data and settings of multi30k_de_en.
#
# Tested:  MLE to its end (stopped and resumed once; 10 of 13 epochs and the second part took 90 minutes
#          on one busy core); what follows is multi30k_de_en's, which was run as a whole
# Needs:   make env; the internet, or a folder with the six .gz files in ESRL_DATA_DIR.
#          The data's own licence holds: https://github.com/multi30k/dataset
# Launch:  recipes/multi30k_en_de/run.sh
# Options: environment variables, see recipes/README.md
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../multi30k/multi30k.sh
source "$(dirname "${BASH_SOURCE[0]}")/../multi30k/multi30k.sh" en de
