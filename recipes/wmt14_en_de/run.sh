#!/usr/bin/env bash
# English–German of WMT'14 (news), as Vaswani et al. 2017: newstest2013 is the valid, newstest2014 the test set.
#
# Tested:  as a whole with stand-in data and tiny models (tests/project/test_recipes_whole.py); NOT RUN at
#          full size
# Needs:   make env; GPUs with 16 GB (estimated), 30 GB of disk; the internet, or a folder with the
#          archives (named as --dry-run shows them) in ESRL_DATA_DIR. WMT's data may be used freely for research;
#          for other uses ask the owners of each set: https://www.statmt.org/wmt14. Of Europarl its makers know
#          no restrictions: https://www.statmt.org/europarl
# Launch:  recipes/wmt14_en_de/run.sh
#          COMPARE=1 recipes/wmt14_en_de/run.sh
# Options: environment variables, see recipes/README.md; here also GPUS, PRECISION, LAUNCH, TOKENS, INPUTS,
#          MLE_UPDATES, and BIG=1: the big model
#
# Data:    Europarl v7, Common Crawl, News Commentary v9: about 4.5 million pairs; joint BPE of 40,000 merges
# Model:   transformer_wmt_en_de (base), settings of Vaswani et al. 2017 and Ott et al. 2018 (wmt/wmt.sh); the
#          last 5 epochs averaged (Vaswani et al. average 5 models of a run)
# Reported, BLEU on tokens with compounds split, MLE: 27.3 base, 28.4 big (Vaswani et al. 2017, arXiv 1706.03762);
#          29.3 big, large batches (Ott et al. 2018, arXiv 1806.00187). The paper's own (arXiv 2308.02223) are in
#          its tables, which were not at hand.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
AVERAGE=${AVERAGE:-5}
recipe wmt14_en_de en de
# shellcheck source-path=SCRIPTDIR source=../wmt/wmt.sh
source "$RECIPES/wmt/wmt.sh"

DISK=([fetch]=4200 [clean]=1400 [bpe]=5000 [binarize]=1500 [mle]=6000 [average]=800 [esrl]=2500)
TIMES=([fetch]='half an hour at 1 MB/s' [bpe]='2 hours on 16 cores' [mle]='a day on 8 A100' [esrl]='3 hours on 8 A100')

fetch_data() {
    CORPORA=()
    sacrebleu_set wmt13 "$STATMT/wmt13/test.tgz"
    sacrebleu_set "$TEST_SET" "$STATMT/wmt14/test-full.tgz"
    from_set wmt13 valid
    from_set "$TEST_SET" test
    corpus training-parallel-europarl-v7.tgz training/europarl-v7.de-en "$STATMT"/wmt13/training-parallel-europarl-v7.tgz
    corpus training-parallel-commoncrawl.tgz commoncrawl.de-en "$STATMT"/wmt13/training-parallel-commoncrawl.tgz
    corpus training-parallel-nc-v9.tgz training/news-commentary-v9.de-en "$STATMT"/wmt14/training-parallel-nc-v9.tgz
    join_corpora
}

TEST_SET=wmt14/full
BPE_MERGES=${BPE_MERGES:-40000}
BIG=${BIG:-0}
one_of BIG 0 1
if [[ $BIG == 1 ]]; then # Ott et al. 2018: fairseq's examples/scaling_nmt
    MODEL=(--arch transformer_vaswani_wmt_en_de_big --share-all-embeddings "${PRECISION[@]}")
    MLE+=(--lr 5e-4 --dropout 0.3)
    ESRL+=(--dropout 0.3)
    CONTINUE+=(--dropout 0.3)
    DISK[mle]=18000 DISK[average]=900 DISK[esrl]=7700 TIMES[mle]='some days on 8 A100'
fi

run_recipe
