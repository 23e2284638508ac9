#!/usr/bin/env bash
# SciTLDR-A: one-sentence summaries (TLDRs) of papers' abstracts; ROUGE, with several references.
#
# Tested:  as a whole, one seed; with a constant learning rate and three seeds by
#          benchmarks/study/summarization.toml
# Needs:   make env; the internet, or a folder with {train,dev,test}.jsonl (or .jsonl.gz) in ESRL_DATA_DIR.
#          The data are under Apache-2.0: https://github.com/allenai/scitldr
# Launch:  recipes/scitldr/run.sh
#          for seed in 1 2 3; do SEED=$seed recipes/scitldr/run.sh; done
# Options: environment variables, see recipes/README.md
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe scitldr abstract tldr
need "rouge_score, rapidfuzz" rouge-score rapidfuzz

URL=https://raw.githubusercontent.com/allenai/scitldr/5ccad9c00a60ad75c9e04abf7f27d0f53f983b20/SciTLDR-Data/SciTLDR-A

fetch_data() {
    fetch_urls "$URL" {train,dev,test}.jsonl
    python "$RECIPES/scitldr/extract.py" raw
}

DISK=([fetch]=10 [clean]=3 [bpe]=8 [binarize]=4 [mle]=40 [decay]=40 [esrl]=80)
TIMES=([mle]='an hour on two thirds of a core' [esrl]='22 minutes of a core')
TEXT_LANGUAGE=en
# ROUGE knows no case, and 1,992 papers are few: lower case leaves fewer words to learn. Limits of
# translation do not hold for summaries.
CLEAN=(--lower --max-words 1000 --max-ratio 1000)
# Few and short sub-words, one set for both sides: each is seen often enough to be learnt, and a word
# that is copied has the same embedding in the abstract, in the summary and in the output layer.
BPE_MERGES=${BPE_MERGES:-4000}
TRUNCATE=(--truncate-source --max-source-positions 256)
MODEL=(
    --arch transformer --share-all-embeddings "${TRUNCATE[@]}"
    --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
)
MLE=(
    --label-smoothing 0.1 --dropout 0.3
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 400
    --max-tokens 4096 --max-epoch "${MLE_EPOCHS:-16}"
)
# Then to convergence, the learning rate falling to zero, as in multi30k. The likelihood of the validation
# set is at its best long before the summaries are, so that this part is chosen by greedy output.
DECAY_UPDATES=${DECAY_UPDATES:-1000}
DECAY=(
    "${MLE[@]}" --max-epoch 0 --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates 50
    --total-num-update "$DECAY_UPDATES" --max-update "$DECAY_UPDATES"
    --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 0, "max_len_b": 60}' --eval-bleu-remove-bpe
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
)
ESRL_UPDATES=${ESRL_UPDATES:-300}
ESRL=(
    --reward rouge --reward-detokenizer moses
    --reward-references valid # papers of the training set have one summary
    --num-samples 8 --capability bleu
    --sample-max-len-a 0 --sample-max-len-b 60
    --rescoring-dropout --dropout 0.3
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 2e-4 --lr-scheduler polynomial_decay --warmup-updates 20
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" --batch-size 32
    --save-interval-updates 50 --keep-interval-updates 1 --log-interval 10
)
# The control: such a decay once more. benchmarks/study/summarization.toml is fairer: equal time, and
# all models chosen by ROUGE on the validation set.
CONTINUE=("${DECAY[@]}")
GENERATE=("${TRUNCATE[@]}" --max-len-a 0 --max-len-b 60 --no-repeat-ngram-size 3)
SCORE=score_rouge

run_recipe
