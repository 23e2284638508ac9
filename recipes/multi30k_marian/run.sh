#!/usr/bin/env bash
# German–English on Multi30k by a Marian model of the Hugging Face library: made from a configuration file,
# trained and fine-tuned by this package, and translated by transformers and CTranslate2 with the same output.
#
# Tested:  2 CPU cores, Python 3.11, torch 2.13, transformers 5.24, CTranslate2 4.8.5; docs/results.md has its table
# Needs:   make env EXTRAS=hf,deploy; the internet, or a folder with the six .gz files in ESRL_DATA_DIR.
#          The data's own licence holds: https://github.com/multi30k/dataset
# Launch:  recipes/multi30k_marian/run.sh
#          SEED=2 recipes/multi30k_marian/run.sh
# Options: environment variables, see recipes/README.md; here also MARIAN_CONFIG (another configuration file) and
#          VOCABULARY (pieces of both sides)
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
MLE_CONTINUED=${MLE_CONTINUED:-1}
absolute MARIAN_CONFIG
recipe multi30k_marian de en multi30k
need transformers,sentencepiece,ctranslate2 "'transformers>=4.57'" sentencepiece "'ctranslate2>=4.8'"
# shellcheck source-path=SCRIPTDIR source=../multi30k/data.sh
source "$RECIPES/multi30k/data.sh"

HERE=$RECIPES/multi30k_marian
MARIAN_CONFIG=${MARIAN_CONFIG:-$HERE/config.json}
[[ -f $MARIAN_CONFIG ]] || die "MARIAN_CONFIG is '$MARIAN_CONFIG', but there is no such file"
whole 1 VOCABULARY LONGEST
VOCABULARY=${VOCABULARY:-4000}
LONGEST=${LONGEST:-200} # words of an output
HF_MODEL=$WORK/model

# → model/, an untrained one
make_model() {
    rm -rf model
    if [[ -n $MLE_CHECKPOINT ]]; then
        cp -r "$(dirname "$MLE_CHECKPOINT")/model" model
    else
        python "$HERE/make_model.py" --config "$MARIAN_CONFIG" --vocabulary "$VOCABULARY" --seed "$MLE_SEED" \
            --source "$SRC" --target "$TGT" --out model "clean/train.$SRC" "clean/train.$TGT"
    fi
}

words_steps() {
    about "learn $VOCABULARY pieces of words, and make an untrained Marian model with them" clean/ model 20
    step model "$VOCABULARY, seed $MLE_SEED, $(fingerprint "$MARIAN_CONFIG") $MLE_CHECKPOINT" make_model
    about "the tokenizer's words, then fairseq's binary form" "clean/ model/" "ids data-bin" 10
    step binarize "" hf_data
}

# export RUN: → RUN-hf for transformers, RUN-ct2 for CTranslate2
export_run() {
    hf_export "$1"
    ct2-transformers-converter --force --model "$1-hf" --output_dir "$1-ct2"
}

# translate RUN: the test set by both → out/{transformers,ctranslate2}/RUN.{beam5,greedy}.txt
translate() {
    local options=(--model "$1-hf" --longest "$LONGEST")
    python "$RECIPES/translate.py" "${options[@]}" "clean/test.$SRC" "out/transformers/$1"
    python "$RECIPES/translate.py" "${options[@]}" --ctranslate2 "$1-ct2" "clean/test.$SRC" "out/ctranslate2/$1"
}

deploy_steps() {
    local run
    for run in "${RUNS[@]}"; do
        about "the model as a Hugging Face folder, and that as one of CTranslate2" "$run/ model/" "$run-hf $run-ct2" 30
        step "export-$run" "" export_run "$run"
        about "translate the test set from these folders, beam 5 and greedy" "$run-hf/ $run-ct2/ clean/test.$SRC" \
            "out/transformers/$run.* out/ctranslate2/$run.*" 1
        step "translate-$run" "$LONGEST" translate "$run"
    done
}

# score_programs RUN...: → summary-ESRL_RUN.txt, as all recipes', then the same of the other programs
score_programs() {
    score "$@"
    python "$HERE/programs.py" --reference "clean/test.$TGT" --differences "out/differences-$ESRL_RUN.txt" \
        --program fairseq-generate out --program transformers out/transformers --program CTranslate2 out/ctranslate2 \
        "$@" >>"summary-$ESRL_RUN.txt"
}

DISK=([fetch]=6 [clean]=4 [mle]=80 [esrl]=160)
TIMES=([mle]='20 to 40 minutes of a core' [esrl]='5 minutes of a core')
WORDS_STEPS=words_steps DEPLOY_STEPS=deploy_steps SCORE=score_programs
GENERATE=(--min-len 0 --max-len-a 0 --max-len-b "$LONGEST") # as the other programs
MODEL=(--arch hf_seq2seq --hf-model "$HF_MODEL")
# The learning rate falls to zero. What more MLE would gain is in the table, too.
MLE_UPDATES=${MLE_UPDATES:-2000}
MLE=(
    --label-smoothing 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 3e-3 --lr-scheduler polynomial_decay --warmup-updates 250
    --max-tokens 3000 --total-num-update "$MLE_UPDATES" --max-update "$MLE_UPDATES"
)
ESRL_UPDATES=${ESRL_UPDATES:-150}
ESRL=(
    --reward bleu --num-samples 8 --capability bleu --rescoring-dropout
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 2e-4 --lr-scheduler polynomial_decay --warmup-updates 20
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" --batch-size 64
    --save-interval-updates 50 --keep-interval-updates 1 --log-interval 10
)
# The control: learning rates falling to zero once more, in about the time that ESRL takes.
CONTINUE=(
    "${MLE[@]}" --lr 1e-3 --warmup-updates 50
    --total-num-update "${CONTINUE_UPDATES:-500}" --max-update "${CONTINUE_UPDATES:-500}"
)

run_recipe
