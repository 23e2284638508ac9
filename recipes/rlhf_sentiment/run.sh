#!/usr/bin/env bash
# RLHF in small: a language model of film reviews learns to write what a reward model of sentiment likes,
# with the KL to the start model bounded; ESRL (by β, by default, and learning from the
# samples that matter), REINFORCE and PPO for the same CPU time, on one thread.
#
# Tested:  as a whole, in parts, beside other jobs: docs/results.md
# Needs:   make env; the internet (nltk_data, 0.5 MB), or a folder with sentence_polarity.zip in
#          ESRL_DATA_DIR. The data are under CC BY 4.0: Pang and Lee 2005.
# Launch:  recipes/rlhf_sentiment/run.sh
# Options: environment variables, see recipes/README.md; here also REWARD_EPOCHS, SEEDS (of the
#          policies), RL_MINUTES (of each policy) and KL_WEIGHT
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe rlhf_sentiment prompt continuation

URL=https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora
RL_MINUTES=${RL_MINUTES:-4}
split SEEDS "${SEEDS:-1 2 3}"
for seed in "${SEEDS[@]}"; do whole 0 seed; done
KL_WEIGHT=${KL_WEIGHT:-0.03}
LENGTH=30 # most tokens of a continuation

fetch_data() {
    fetch_urls "$URL" sentence_polarity.zip
    python "$RECIPES/rlhf_sentiment/prepare.py" raw clean
}

# One set of sub-words for policy and reward models, so that the latter need no text of their own.
subwords() {
    local file
    mkdir -p bpe/reward bpe/judge
    subword-nmt learn-bpe -s "$1" <clean/train.text >bpe/codes
    for file in clean/*.{text,prompts} clean/{reward,judge}/*.{prompt,continuation}; do
        subword-nmt apply-bpe -c bpe/codes <"$file" >"bpe/${file#clean/}"
    done
}

binarize_all() {
    local split name
    for name in text prompts; do
        mkdir -p "bpe/$name"
        for split in train valid test; do cp "bpe/$split.$name" "bpe/$name/$split"; done
    done
    rm -rf data-text data-prompts data-reward data-judge
    fairseq-preprocess --only-source --destdir data-text \
        --trainpref bpe/text/train --validpref bpe/text/valid --testpref bpe/text/test
    fairseq-preprocess --only-source --destdir data-prompts --srcdict data-text/dict.txt \
        --trainpref bpe/prompts/train --validpref bpe/prompts/valid --testpref bpe/prompts/test
    for name in reward judge; do
        fairseq-preprocess --source-lang prompt --target-lang continuation --destdir "data-$name" \
            --srcdict data-text/dict.txt --tgtdict data-text/dict.txt \
            --trainpref "bpe/$name/train" --validpref "bpe/$name/valid" --testpref "bpe/$name/test"
        cp "clean/$name"/*.ratings "data-$name"
    done
    echo "> $(wc -l <data-text/dict.txt) dictionary entries"
}

language_model() {
    fairseq_train data-text lm --no-epoch-checkpoints --log-interval 50 --task language_modeling --sample-break-mode eos --criterion cross_entropy \
        --seed "$MLE_SEED" "$@"
}

# reward_model NAME SEED OPTION...
reward_model() {
    local name=$1 seed=$2
    shift 2
    fairseq_train "data-$name" "$name" --no-epoch-checkpoints --log-interval 50 --source-lang prompt --target-lang continuation \
        --task esrl_reward_model --criterion esrl_preference --subword-codes bpe/codes --seed "$seed" \
        --best-checkpoint-metric correlation --maximize-best-checkpoint-metric "$@"
}

# policy DIR SEED OPTION...: RL_MINUTES of CPU time on one thread; the model of that moment is the
# result. Nothing is validated meanwhile: it would cost methods with cheap updates more.
policy() {
    local dir=$1 seed=$2
    shift 2
    rm -rf "$dir"
    mkdir "$dir"
    OMP_NUM_THREADS=1 python "$REPO/benchmarks/study/train.py" --report "$dir/train.json" \
        --seconds "$(awk "BEGIN { print 60 * $RL_MINUTES }")" --updates 1000000 --checkpoints 1 data-prompts \
        --user-dir "$USER_DIR" --save-dir "$dir" "${WHOLE[@]}" --log-format simple --num-workers 0 --cpu \
        --task esrl_language_modeling --criterion esrl --seed "$seed" \
        --disable-validation --no-save-optimizer-state \
        --finetune-from-model lm/checkpoint_best.pt \
        --reward model --reward-model reward/checkpoint_best.pt --reward-device cpu \
        --kl-weight "$KL_WEIGHT" --sample-max-len-b "$LENGTH" "$@"
    mv "$dir"/checkpoint_*.pt "$dir/policy.pt"
}

evaluate() {
    PYTHONPATH=$REPO python "$RECIPES/rlhf_sentiment/evaluate.py" data-prompts "$@" --length "$LENGTH" \
        --reward reward/checkpoint_best.pt --judge judge/checkpoint_best.pt --judged clean/reward \
        --kl-weight "$KL_WEIGHT" --compare esrl esrl-auto esrl-selection
}

BPE_MERGES=${BPE_MERGES:-3000}
MODEL=(
    --arch transformer_lm --share-decoder-input-output-embed --tokens-per-sample 128
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-input-dim 128 --decoder-output-dim 128
    --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
)
MLE=(
    --dropout 0.3 --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --weight-decay 0.01
    --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 200
    --max-tokens 4096 --max-epoch "${MLE_EPOCHS:-15}"
)
REWARD=(
    --arch transformer --share-all-embeddings --dropout 0.3
    --encoder-layers 1 --encoder-embed-dim 64 --encoder-ffn-embed-dim 128 --encoder-attention-heads 2
    --decoder-layers 1 --decoder-embed-dim 64 --decoder-ffn-embed-dim 64 --decoder-attention-heads 2
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --weight-decay 0.01
    --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates 100 --max-tokens 4096
    --max-epoch "${REWARD_EPOCHS:-12}"
)
RL=(
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
    --lr 3e-4 --lr-scheduler fixed --warmup-updates 10 --dropout 0
    --num-samples 4 --batch-size 64 --log-interval 10
)
ESRL=(--objective fused --capability reward --elimination-ratio 0.3 --min-samples 0)
# shellcheck disable=SC2034 # these are chosen by name below
ESRL_AUTO=(--objective fused --capability reward) # --elimination-ratio auto
# shellcheck disable=SC2034
ESRL_SELECTION=(--objective fused --capability reward --num-samples 6 --rescored-share 0.2)
# shellcheck disable=SC2034
REINFORCE=(--objective reinforce --capability none)
# shellcheck disable=SC2034
PPO=(--objective ppo --capability none)

trains language_model reward_model
rlhf_steps() {
    local runs=(lm/checkpoint_best.pt) method options models name seed
    about "sentences with their polarity: texts, prompts, two sets of ratings" '' "raw clean" 10
    step fetch "" fetch_data
    about "learn and apply sub-words" clean/ bpe 5
    step subwords "$BPE_MERGES" subwords "$BPE_MERGES"
    about "write fairseq's binary form" bpe/ "data-text data-prompts data-reward data-judge" 8
    step binarize "" binarize_all
    about "the language model" data-text/ lm 25
    step lm "$MLE_SEED ${MODEL[*]} ${MLE[*]} ${MLE_EXTRA[*]}" language_model "${MODEL[@]}" "${MLE[@]}" "${MLE_EXTRA[@]}"
    about "the reward model" data-reward/ reward 15
    step reward "${REWARD[*]}" reward_model reward 1 "${REWARD[@]}"
    about "the reward model that no policy sees" data-judge/ judge 15
    step judge "${REWARD[*]}" reward_model judge 2 "${REWARD[@]}"
    for method in esrl esrl-auto esrl-selection reinforce ppo; do
        options=${method^^}
        # shellcheck disable=SC2178
        local -n own=${options//-/_}
        models=()
        for seed in "${SEEDS[@]}"; do
            name=$method-s$seed
            about "a policy by $method for $RL_MINUTES minutes of CPU time" "data-prompts/ lm/ reward/" "$name" 8
            step "$name" "$RL_MINUTES $KL_WEIGHT $LENGTH ${MODEL[*]} ${RL[*]} ${own[*]} ${ESRL_EXTRA[*]}" \
                policy "$name" "$seed" "${MODEL[@]}" "${RL[@]}" "${own[@]}" "${ESRL_EXTRA[@]}"
            models+=("$name")
        done
        runs+=("$method=$(IFS=, && echo "${models[*]}")")
    done
    name=evaluate-$(IFS=- && echo "${SEEDS[*]}")
    about "samples behind other prompts: reward, judge, KL, fluency" "all policies" ''
    step "$name" "${runs[*]}" evaluate "${runs[@]}"
    running || return 0
    grep '^> ' "logs/$name.log" | sed 's/^> //'
    finish "The policies are $WORK/METHOD-sSEED/policy.pt; what they write and the table are in $WORK/logs/$name.log." \
        "Next: RL_MINUTES=15 ESRL_WORK_DIR=FOLDER in front of the same command: longer, in another folder."
}

run_steps rlhf_steps
