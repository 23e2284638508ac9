#!/usr/bin/env bash
# German–English of WMT'18 (news): newstest2017 is the valid, newstest2018 the test set.
#
# Tested:  as a whole with stand-in data and tiny models (tests/project/test_recipes_whole.py); NOT RUN at
#          full size
# Needs:   make env; GPUs with 16 GB (estimated), 80 GB of disk (with PARACRAWL=0 30 GB); memory of 6 GB for
#          ParaCrawl's filter; the internet, or a folder with the archives (named as --dry-run shows them) in
#          ESRL_DATA_DIR. WMT's data may be used freely for research; for other uses ask the owners of each set:
#          https://www.statmt.org/wmt18. Of ParaCrawl the packaging is CC0, the texts are their authors'
# Launch:  recipes/wmt18_de_en/run.sh
#          PARACRAWL=0 COMPARE=1 recipes/wmt18_de_en/run.sh
# Options: environment variables, see recipes/README.md; here also GPUS, PRECISION, LAUNCH, TOKENS, INPUTS,
#          MLE_UPDATES and PARACRAWL
#
# Data:    Europarl v7, Common Crawl, News Commentary v13, Rapid 2016, and ParaCrawl 1 filtered by lengths (at
#          most 100 words, ratio 1.5), letters and repetition; joint BPE of 40,000 merges
# Model:   transformer_wmt_en_de, as wmt14_en_de
# Reported: no scores of this model on newstest2018 are known here; the paper's (arXiv 2308.02223) are in its
#          tables, which were not at hand.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=../wmt18/wmt18.sh
source "$RECIPES/wmt18/wmt18.sh" de en
