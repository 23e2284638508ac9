#!/usr/bin/env bash
# RLHF of a LLaMA with 7 billion parameters, the paper's largest experiment: instructions of Alpaca,
# one sample a prompt, a reward model of Hugging Face.
#
# Tested:  NOT RUN at full size; as a whole with a tiny model (tests/project/test_recipes_whole.py). Model, data
#          and commands of the policy are tested with tiny models, and with one of 135 million parameters
#          (tests/commands/test_cli_huggingface.py), in float32 and with other rewards;
#          --reward hf-reward beside it, --bf16, memory, time and these settings are not
# Needs:   make env; pip install 'transformers>=4.57'; more than 150 GB on EACH GPU, since every rank
#          has all of it: of 7 billion parameters, 16-bit weights and gradients, 32-bit weights,
#          gradients and Adam's state, and the frozen model (with 16-bit weights alone, updates of 1e-6
#          would be lost to rounding). Smaller models fit on smaller ones. At the start two copies of
#          the model in float32 in the main memory; some 100 GB of disk for each of three checkpoints. The
#          internet, or a folder with alpaca_data.json (CC BY-NC 4.0) in ESRL_DATA_DIR
# Launch:  LLAMA=FOLDER_OR_NAME recipes/rlhf_llama/run.sh
#          LLAMA is a chat model that was trained on instructions; the paper trains LLaMA-7B on
#          Alpaca's answers first
# Options: environment variables, see recipes/README.md; here also REWARD_MODEL, KL_WEIGHT, GPUS, PRECISION, INPUTS
#          and LAUNCH
# Reported: the paper's figures (arXiv 2308.02223) are in its tables, which were not at hand.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe rlhf_llama prompt answer
need transformers 'transformers>=4.57'
[[ -n ${LLAMA:-} ]] || lacks "set LLAMA to the folder or hub name of a chat model of the LLaMA kind"

for name in LLAMA REWARD_MODEL; do # a folder here, or a name of the hub
    if [[ -d ${!name:-} ]]; then absolute "$name"; fi
done
LLAMA=${LLAMA:-LLAMA}
# shellcheck disable=SC2178 # gpus makes an array of it
PRECISION=${PRECISION:-bf16}
gpus

URL=https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main
REWARD_MODEL=${REWARD_MODEL:-OpenAssistant/reward-model-deberta-v3-large-v2}
KL_WEIGHT=${KL_WEIGHT:-0.01}

fetch_data() {
    fetch_urls "$URL" alpaca_data.json
    python "$RECIPES/rlhf_llama/prepare.py" raw clean || forget $? raw/alpaca_data.json
}

binarize_ids() {
    rm -rf ids data-bin
    PYTHONPATH=$REPO python -m esrl_fairseq.huggingface data --hf-model "$LLAMA" --out ids --chat \
        clean/{train,valid,test}
    fairseq-preprocess --only-source --srcdict ids/dict.txt --destdir data-bin \
        --trainpref ids/train --validpref ids/valid --testpref ids/test
}

policy() {
    fairseq_train data-bin "$ESRL_RUN" --seed "$SEED" \
        --task esrl_language_modeling --criterion esrl --add-bos-token \
        --no-epoch-checkpoints --log-interval 10 "$@"
}

# → out/ESRL_RUN.txt: what the policy answers to the prompts of the test set, greedily, behind the prompt
answer() {
    mkdir -p out
    fairseq-generate data-bin --user-dir "$USER_DIR" --task esrl_language_modeling --add-bos-token \
        --path "$ESRL_RUN/checkpoint_best.pt" --gen-subset test --beam 1 --max-len-a 0 --max-len-b 512 \
        --bpe hf_tokenizer --hf-tokenizer "$LLAMA" --max-sentences "${INPUTS:-32}" \
        "${WHOLE[@]}" --log-format none >"out/$ESRL_RUN.log"
    grep '^D-' "out/$ESRL_RUN.log" | sed 's/^D-//' | sort -n | cut -f 3 >"out/$ESRL_RUN.txt"
    echo "> $(wc -l <"out/$ESRL_RUN.txt") answers"
}

# → summary-ESRL_RUN.txt: the reward on the validation set, before and after, time and memory
summarise() {
    {
        grep -o 'validation reward: .*' "logs/$ESRL_RUN.log" | tail -n 1
        python "$RECIPES/costs.py" --logs logs "$ESRL_RUN"
    } >"summary-$ESRL_RUN.txt"
}

export_policy() {
    rm -rf "$ESRL_RUN-hf" # of an export that was interrupted
    PYTHONPATH=$REPO python -m esrl_fairseq.huggingface export \
        --checkpoint "$ESRL_RUN/checkpoint_best.pt" --out "$ESRL_RUN-hf"
}

MODEL=(--arch hf_causal_lm --hf-model "$LLAMA")
# K = 1, so that the loss is REINFORCE; half of the visits, those to capable prompts, draw nothing.
# The reward model reads the prompt as the policy does, with the chat template's words for roles.
batch --batch-size 64 "${INPUTS:-32}"
ESRL=(
    --num-samples 1 --min-samples 0 --elimination-ratio 0.5 --capability reward
    --reward hf-reward --reward-model "$REWARD_MODEL" --kl-weight "$KL_WEIGHT"
    --sample-max-len-b 256
    "${PRECISION[@]}" --optimizer torch_adam --adam-betas "(0.9, 0.95)" --clip-norm 1.0
    --lr 1e-6 --lr-scheduler inverse_sqrt --warmup-updates 20
    "${BATCH[@]}" --max-epoch "${ESRL_EPOCHS:-2}"
    --valid-beam 0 --best-checkpoint-metric reward --maximize-best-checkpoint-metric
    --save-interval-updates 200 --keep-interval-updates 1
)

trains policy
llama_steps() {
    about "Alpaca's instructions as prompts" '' "raw clean" 60
    step fetch "" fetch_data
    about "prompts in the model's chat template and words, then fairseq's binary form" clean/ "ids data-bin" 60
    step binarize "$LLAMA" binarize_ids
    about "RLHF: the policy against the reward model" "data-bin/ $LLAMA $REWARD_MODEL" "$ESRL_RUN" 300000 'a day on 8 GPUs of 192 GB'
    step "$ESRL_RUN" "$SEED ${MODEL[*]} ${ESRL[*]} ${ESRL_EXTRA[*]}" \
        policy "${MODEL[@]}" "${ESRL[@]}" "${ESRL_EXTRA[@]}"
    about "the policy as a Hugging Face folder" "$ESRL_RUN/" "$ESRL_RUN-hf" 14000
    step "export-$ESRL_RUN" "" export_policy
    about "its answers to the test prompts" "data-bin/ $ESRL_RUN/" "out/$ESRL_RUN.*" 2
    step "answer-$ESRL_RUN" "" answer
    about "reward before and after, time and memory" "logs/$ESRL_RUN.log $ESRL_RUN/" "summary-$ESRL_RUN.txt"
    step "summary-$ESRL_RUN" "" summarise
    running || return 0
    cat "summary-$ESRL_RUN.txt"
    finish "The policy is $WORK/$ESRL_RUN-hf, its answers to the test prompts $WORK/out/$ESRL_RUN.txt," \
        "and the summary $WORK/summary-$ESRL_RUN.txt." \
        "Next: ESRL_RUN=reinforce ESRL_ARGS='--objective reinforce --capability none' in front of the same command: without dynamic sampling."
}

run_steps llama_steps
