# shellcheck shell=bash
# What the recipes on WMT's news tasks share: corpora, preparation and settings.
# A recipe has sourced lib.sh and called `recipe`; then it sets its data and TEST_SET, and run_recipe.
gpus
JOBS=$(nproc 2>/dev/null || echo 1)
STATMT=https://www.statmt.org
STATMT_DATA=https://data.statmt.org

# corpus ARCHIVE PREFIX URL...: PREFIX.{de,en} of an archive → raw/unpacked/PREFIX.{de,en}
corpus() {
    download "raw/$1" "${@:3}"
    unpack "raw/$1" raw/unpacked "$2.de" "$2.en"
    CORPORA+=("raw/unpacked/$2")
}

# join_corpora: → raw/train.{SRC,TGT}
join_corpora() {
    pairs "${CORPORA[@]}" raw/train
    rm -rf raw/unpacked
}

# clean/: train as it is, without empty sides; valid and test are sacreBLEU's
clean_corpus() {
    local lang split
    mkdir -p clean
    pairs raw/train clean/train
    for lang in "$SRC" "$TGT"; do
        for split in valid test; do cp "raw/$split.$lang" "clean/$split.$lang"; done
    done
}

CLEAN_STEP=clean_corpus
CLEAN_DOES="drop pairs with an empty side; valid and test stay as they are"
# As fairseq's prepare-wmt14en2de.sh: punctuation normalised, no control characters, split at hyphens
# (so that BLEU on tokens is the one that splits compounds), pairs cleaned by their sub-words.
MOSES=(--normalize --dashes)
BPE_FILTER=(--max-words 250 --max-ratio 1.5)
SUMMARY=(--tokenised)
MODEL=(--arch transformer_wmt_en_de --share-all-embeddings "${PRECISION[@]}")
# Vaswani et al. 2017, base model: some 25,000 target tokens an update (here those of 8 GPUs with 4,096,
# padding counted), 100,000 updates. Learning rate of Ott et al. 2018 (arXiv 1806.00187).
MLE_UPDATES=${MLE_UPDATES:-100000}
batch --max-tokens 32768 "${TOKENS:-4096}"
COMMON=(
    --label-smoothing 0.1 --dropout 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 0.0 "${BATCH[@]}"
    --max-source-positions 256 --max-target-positions 256 --skip-invalid-size-inputs-valid-test
)
MLE=(
    "${COMMON[@]}" --lr 7e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07
    --max-update "$MLE_UPDATES" --max-epoch "${MLE_EPOCHS:-0}"
)
batch --batch-size 512 "${INPUTS:-128}"
ESRL_UPDATES=${ESRL_UPDATES:-2000}
ESRL=(
    --reward bleu --num-samples 8 --capability bleu
    --rescoring-dropout --dropout 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 1e-4 --lr-scheduler polynomial_decay --warmup-updates 100
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" "${BATCH[@]}"
    --max-source-positions 256 --max-target-positions 256 --skip-invalid-size-inputs-valid-test
    --save-interval-updates 200 --validate-interval-updates 200 --keep-interval-updates 1 --log-interval 10
)
# The control: the last learning rates of MLE, falling to zero.
CONTINUE=(
    "${COMMON[@]}" --lr 1e-4 --lr-scheduler polynomial_decay --warmup-updates 100
    --total-num-update "${CONTINUE_UPDATES:-20000}" --max-update "${CONTINUE_UPDATES:-20000}"
)
GENERATE=(--lenpen 0.6) # Vaswani et al. 2017 (their beam is 4)
