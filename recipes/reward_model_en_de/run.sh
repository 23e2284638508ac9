#!/usr/bin/env bash
# A reward model for English–German, from human judgements of machine translations.
#
# Trained on MLQE-PE (Wikipedia): direct assessments, and post-edits preferred to what they mend. Tested
# on expert MQM ratings of other systems on TED talks, and on MLQE-PE's own test set.
#
# Tested:  as a whole, from converted files in ESRL_DATA_DIR (13 minutes beside two other jobs on 2 cores);
#          the conversion of both repositories' own files apart
# Needs:   make env; the internet (github sheffieldnlp/mlqe-pe, CC0; google/wmt-mqm-human-evaluation,
#          Apache-2.0), or a folder with the converted files in ESRL_DATA_DIR
# Launch:  recipes/reward_model_en_de/run.sh
# Options: environment variables, see recipes/README.md; REWARD_ARGS: more options for fairseq-train
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe reward_model_en_de en de

MLQE=https://raw.githubusercontent.com/sheffieldnlp/mlqe-pe/2a670a1140416cf80507b5a829659383c878feb8/data
MQM=https://raw.githubusercontent.com/google/wmt-mqm-human-evaluation/7fadea281aff8db61cc72fc3d469a4dca78b82a6/ted/ende

# → raw/{mlqe-train,mlqe-dev,mlqe-test,mqm}.jsonl
fetch_data() {
    local split kind file
    mkdir -p raw/downloads
    if [[ -n ${ESRL_DATA_DIR:-} ]]; then
        for split in train dev test; do
            gzip -dc "$ESRL_DATA_DIR/mlqe_pe_ende/$split.jsonl.gz" >"raw/mlqe-$split.jsonl"
        done
        gzip -dc "$ESRL_DATA_DIR/mqm_ted_ende/scored.jsonl.gz" >raw/mqm.jsonl
    else
        for split in train dev test; do
            for kind in direct-assessments post-editing; do
                download "raw/downloads/$kind-$split.tar.gz" "$MLQE/$kind/$split/en-de-$split.tar.gz"
            done
        done
        for file in mqm_ted_ende.tsv mqm_ted_ende.avg_seg_scores.tsv; do
            download "raw/downloads/$file" "$MQM/$file"
        done
        python "$RECIPES/reward_model_en_de/convert.py" raw/downloads raw
    fi
    check_sums raw
}

# → clean/, judgements/: only texts go through sub-words
prepare() {
    python "$RECIPES/reward_model_en_de/prepare.py" raw clean
    mkdir -p judgements
    mv clean/*.ratings clean/*.preferences judgements/
}

binarize_judged() {
    binarize
    cp judgements/* data-bin/
}

train_reward_model() {
    train reward-model --task esrl_reward_model --criterion esrl_preference \
        --subword-codes bpe/codes --seed "$SEED" \
        --best-checkpoint-metric pair_accuracy --maximize-best-checkpoint-metric "$@"
}

evaluate() {
    PYTHONPATH=$REPO python "$RECIPES/reward_model_en_de/evaluate.py" raw reward-model/checkpoint_best.pt
}

BPE_MERGES=${BPE_MERGES:-4000}
REWARD_UPDATES=${REWARD_UPDATES:-1200}
split REWARD_EXTRA "${REWARD_ARGS:-}"
TRAIN=(
    --arch transformer --share-all-embeddings --dropout 0.2
    --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
    --decoder-layers 1 --decoder-embed-dim 128 --decoder-ffn-embed-dim 128
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --weight-decay 0.01
    --lr 5e-4 --lr-scheduler polynomial_decay --warmup-updates 200
    --total-num-update "$REWARD_UPDATES" --max-update "$REWARD_UPDATES" --max-tokens 4000
    --rating-weight 1 --preference-weight 1
)

trains train_reward_model
reward_steps() {
    about "judgements of both sets, converted" '' raw 40
    step fetch "" fetch_data
    about "texts here, ratings and preferences in judgements/" raw/ "clean judgements" 10
    step prepare "" prepare
    about "tokenise, learn and apply sub-words" clean/ "tok bpe" 20
    step bpe "$BPE_MERGES" bpe "$BPE_MERGES"
    about "write fairseq's binary form" "bpe/ judgements/" data-bin 10
    step binarize "" binarize_judged
    about "train the reward model" data-bin/ reward-model 60 '10 to 15 minutes of a core'
    step reward-model "$SEED ${TRAIN[*]} ${REWARD_EXTRA[*]}" train_reward_model "${TRAIN[@]}" "${REWARD_EXTRA[@]}"
    about "ask it about other systems and another domain" "raw/ reward-model/" ''
    step evaluate "" evaluate
    running || return 0
    grep '^> ' logs/evaluate.log | sed 's/^> //'
    finish "The reward model is $WORK/reward-model/checkpoint_best.pt, and what it was asked is in $WORK/logs/evaluate.log." \
        "Next: ESRL against it, ESRL_ARGS='--reward model --reward-model $WORK/reward-model/checkpoint_best.pt --capability reward' recipes/multi30k_en_de/run.sh"
}

run_steps reward_steps
