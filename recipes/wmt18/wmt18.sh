# shellcheck shell=bash
# What the recipes on WMT'18 share: data and settings. They differ in the direction only. A recipe has
# sourced lib.sh. Both read newstest2017 as valid and newstest2018 as test set, of their own direction.
AVERAGE=${AVERAGE:-5}
recipe "wmt18_${1}_$2" "$1" "$2" wmt18
# shellcheck source-path=SCRIPTDIR source=../wmt/wmt.sh
source "$RECIPES/wmt/wmt.sh"

# ParaCrawl's share: pairs of at most 100 words and a ratio of at most 1.5, at least half of the characters
# of each side letters, the sides not equal, each pair once (no language identification)
PARACRAWL=${PARACRAWL:-1} # 0: without it
one_of PARACRAWL 0 1
PARACRAWL_FILTER=(--max-words 100 --max-ratio 1.5 --letters 0.5 --translated --distinct)
PARACRAWL_NAME=paracrawl-release1.en-de.zipporah0-dedup-clean
if [[ $PARACRAWL == 1 ]]; then
    FETCH_TIME='an hour at 1 MB/s, and the filter'
    DISK=([fetch]=22000 [clean]=9000 [bpe]=30000 [binarize]=9000 [mle]=6000 [average]=800 [esrl]=2500)
else
    FETCH_TIME='half an hour at 1 MB/s'
    DISK=([fetch]=5000 [clean]=1600 [bpe]=5800 [binarize]=1700 [mle]=6000 [average]=800 [esrl]=2500)
fi
# shellcheck disable=SC2034
TIMES=([fetch]="$FETCH_TIME" [bpe]='12 hours on 16 cores, 2 without ParaCrawl' [mle]='a day on 8 A100' [esrl]='3 hours on 8 A100')

fetch_data() {
    CORPORA=()
    sacrebleu_set wmt17 "$STATMT_DATA/wmt17/translation-task/test.tgz"
    sacrebleu_set "$TEST_SET" "$STATMT_DATA/wmt18/translation-task/test.tgz"
    from_set wmt17 valid
    from_set "$TEST_SET" test
    corpus training-parallel-europarl-v7.tgz training/europarl-v7.de-en "$STATMT"/wmt13/training-parallel-europarl-v7.tgz
    corpus training-parallel-commoncrawl.tgz commoncrawl.de-en "$STATMT"/wmt13/training-parallel-commoncrawl.tgz
    corpus training-parallel-nc-v13.tgz training-parallel-nc-v13/news-commentary-v13.de-en \
        "$STATMT_DATA"/wmt18/translation-task/training-parallel-nc-v13.tgz
    corpus rapid2016.tgz rapid2016.de-en "$STATMT_DATA"/wmt18/translation-task/rapid2016.tgz
    [[ $PARACRAWL == 0 ]] || paracrawl
    join_corpora
}

paracrawl() {
    local last
    corpus "$PARACRAWL_NAME.tgz" "$PARACRAWL_NAME" \
        "https://s3.amazonaws.com/web-language-models/paracrawl/release1/$PARACRAWL_NAME.tgz" \
        "https://web-language-models.s3.amazonaws.com/paracrawl/release1/$PARACRAWL_NAME.tgz"
    last=$((${#CORPORA[@]} - 1))
    pairs "${PARACRAWL_FILTER[@]}" "${CORPORA[last]}" raw/unpacked/filtered
    CORPORA[last]=raw/unpacked/filtered
}

# shellcheck disable=SC2034
TEST_SET=wmt18 BPE_MERGES=${BPE_MERGES:-40000} FETCH=PARACRAWL=$PARACRAWL

run_recipe
