# shellcheck shell=bash
# What the recipes on Multi30k share: data and settings. They differ in the direction only. A recipe has
# sourced lib.sh.
recipe "multi30k_${1}_$2" "$1" "$2" multi30k

# shellcheck source-path=SCRIPTDIR source=data.sh
source "$RECIPES/multi30k/data.sh"

DISK=([fetch]=6 [clean]=4 [bpe]=10 [binarize]=5 [mle]=80 [decay]=80 [esrl]=160)
TIMES=([mle]='25 minutes of a core' [decay]='25 to 37 minutes of a core' [esrl]='17 to 19 minutes of a core')
CLEAN=()
BPE_MERGES=${BPE_MERGES:-6000}
MODEL=(
    --arch transformer --share-all-embeddings --dropout 0.15
    --encoder-layers 3 --encoder-embed-dim 160 --encoder-ffn-embed-dim 640 --encoder-attention-heads 4
    --decoder-layers 3 --decoder-embed-dim 160 --decoder-ffn-embed-dim 640 --decoder-attention-heads 4
)
MLE=(
    --label-smoothing 0.1
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 400
    --max-tokens 3000 --max-epoch "${MLE_EPOCHS:-13}"
)
# Then to convergence, the learning rate falling to zero: without it, more of the same training
# gains about as much as ESRL does.
DECAY_UPDATES=${DECAY_UPDATES:-1400}
DECAY=(
    "${MLE[@]}" --dropout 0.2 --max-epoch 0
    --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates 50
    --total-num-update "$DECAY_UPDATES" --max-update "$DECAY_UPDATES"
)
ESRL_UPDATES=${ESRL_UPDATES:-200}
ESRL=(
    --reward bleu --num-samples 8 --capability bleu
    # A converged model knows its training set by heart; without dropout ESRL overfits in 50 updates.
    --rescoring-dropout --dropout 0.2
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 2e-4 --lr-scheduler polynomial_decay --warmup-updates 20
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" --batch-size 64
    --save-interval-updates 25 --keep-interval-updates 1 --log-interval 10
)
# The control: such a decay once more, in about the time that ESRL takes.
CONTINUE=("${DECAY[@]}" --total-num-update 500 --max-update 500)

run_recipe
