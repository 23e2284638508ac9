#!/usr/bin/env bash
# RLHF of a LLaMA with 7 billion parameters, the paper's largest experiment: instructions of Alpaca,
# one sample a prompt, a reward model of Hugging Face.
#
# Tested:  NOT RUN. Model, data and commands of the policy are tested with tiny models, and with one of
#          135 million parameters (tests/test_cli_huggingface.py), in float32 and with other rewards;
#          --reward hf-reward beside it, --bf16, memory, time and these settings are not
# Needs:   make env; pip install 'transformers>=4.57'; more than 150 GB on EACH GPU, since every rank
#          has all of it: of 7 billion parameters, 16-bit weights and gradients, 32-bit weights,
#          gradients and Adam's state, and the frozen model (with 16-bit weights alone, updates of 1e-6
#          would be lost to rounding). Smaller models fit on smaller ones. At the start two copies of
#          the model in float32 in the main memory; some 100 GB of disk for each checkpoint kept. The
#          internet, or a folder with alpaca_data.json (CC BY-NC 4.0) in ESRL_DATA_DIR
# Launch:  LLAMA=FOLDER_OR_NAME recipes/rlhf_llama/run.sh
#          LLAMA is a chat model that was trained on instructions; the paper trains LLaMA-7B on
#          Alpaca's answers first
# Options: environment variables, see recipes/README.md; here also REWARD_MODEL, KL_WEIGHT
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe rlhf_llama prompt answer
need transformers 'transformers>=4.57'
[[ -n ${LLAMA:-} ]] || die "set LLAMA to the folder (absolute) or hub name of a chat model of the LLaMA kind"

URL=https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main
REWARD_MODEL=${REWARD_MODEL:-OpenAssistant/reward-model-deberta-v3-large-v2}
KL_WEIGHT=${KL_WEIGHT:-0.01}

fetch_data() {
    fetch_urls "$URL" alpaca_data.json
    python "$RECIPES/rlhf_llama/prepare.py" raw clean
}

binarize_ids() {
    rm -rf ids data-bin
    PYTHONPATH=$REPO python -m esrl_fairseq.huggingface data --hf-model "$LLAMA" --out ids --chat \
        clean/{train,valid,test}
    fairseq-preprocess --only-source --srcdict ids/dict.txt --destdir data-bin \
        --trainpref ids/train --validpref ids/valid --testpref ids/test
}

policy() {
    fairseq-train data-bin --user-dir "$USER_DIR" --save-dir "$ESRL_RUN" --seed "$SEED" \
        --task esrl_language_modeling --criterion esrl --add-bos-token \
        --no-epoch-checkpoints "${WHOLE[@]}" --log-format simple --log-interval 10 "$@"
}

export_policy() {
    rm -rf "$ESRL_RUN-hf" # of an export that was interrupted
    PYTHONPATH=$REPO python -m esrl_fairseq.huggingface export \
        --checkpoint "$ESRL_RUN/checkpoint_last.pt" --out "$ESRL_RUN-hf"
}

MODEL=(--arch hf_causal_lm --hf-model "$LLAMA")
# K = 1, so that the loss is REINFORCE; half of the visits, those to capable prompts, draw nothing.
# The reward model reads the prompt as the policy does, with the chat template's words for roles.
ESRL=(
    --num-samples 1 --min-samples 0 --elimination-ratio 0.5 --capability reward
    --reward hf-reward --reward-model "$REWARD_MODEL" --kl-weight "$KL_WEIGHT"
    --sample-max-len-b 256
    --bf16 --optimizer torch_adam --adam-betas "(0.9, 0.95)" --clip-norm 1.0
    --lr 1e-6 --lr-scheduler inverse_sqrt --warmup-updates 20
    --batch-size 32 --update-freq 2 --max-epoch 2
    --valid-beam 0 --best-checkpoint-metric reward --maximize-best-checkpoint-metric
    --save-interval-updates 200 --keep-interval-updates 1
)

step fetch "" fetch_data
step binarize "$LLAMA" binarize_ids
step "$ESRL_RUN" "$SEED ${MODEL[*]} ${ESRL[*]} ${ESRL_EXTRA[*]}" \
    policy "${MODEL[@]}" "${ESRL[@]}" "${ESRL_EXTRA[@]}"
step "export-$ESRL_RUN" "" export_policy
printf '[%5d s] done; the policy is %s\n' "$SECONDS" "$WORK/$ESRL_RUN-hf"
