#!/usr/bin/env bash
# CNN/DailyMail 3.0.0 (not anonymised): highlights of news articles; ROUGE-1, -2, -L and -Lsum.
#
# Tested:  as a whole with stand-in data and tiny models (tests/project/test_recipes_whole.py); NOT RUN at
#          full size
# Needs:   make env; pip install pyarrow; a GPU with 24 GB (estimated), 20 GB of disk; the internet, or a folder with the five
#          .parquet files in ESRL_DATA_DIR. No login: https://huggingface.co/datasets/abisee/cnn_dailymail. The
#          articles are the newspapers'; for which licence that page stands was not checked
# Launch:  recipes/cnn_dm/run.sh
# Options: environment variables, see recipes/README.md; here also GPUS, PRECISION, LAUNCH, TOKENS, INPUTS
#
# Reported, ROUGE-1/-2/-L: 44.16/21.28/40.90 (BART large, Lewis et al. 2020, arXiv 1910.13461), which is
#          pre-trained; 39.53/17.28/36.38 (pointer-generator with coverage, See et al. 2017, arXiv 1704.04368) and
#          39.84/16.25/36.73 (DynamicConv, Wu et al. 2019, arXiv 1901.10430), which are not, as here. The paper's
#          own (arXiv 2308.02223) are in its tables, which were not at hand.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe cnn_dm article highlights
gpus
need "rouge_score, rapidfuzz, pyarrow" rouge-score rapidfuzz pyarrow

# A commit of the data set's repository. Checksums of its files are not known here: what is got first is
# written down, and another file refused later; extract.py checks the number of documents.
URL=https://huggingface.co/datasets/abisee/cnn_dailymail/resolve/96df5e686bee6baa90b8bee7c28b81fa3fa6223d/3.0.0
SEPARATOR=¶ # between a summary's sentences, for ROUGE-Lsum; rouge-score does not take it for a word

fetch_data() {
    fetch_urls "$URL" train-0000{0,1,2}-of-00003.parquet {validation,test}-00000-of-00001.parquet
    python "$RECIPES/cnn_dm/extract.py" --separator "$SEPARATOR" --max-words 400 raw || forget $? raw/*.parquet
}

DISK=([fetch]=1500 [clean]=900 [bpe]=2000 [binarize]=600 [mle]=1600 [decay]=1600 [esrl]=2400)
TIMES=([mle]='a day on one A100' [decay]='3 hours on one A100' [esrl]='3 hours on one A100')
TEXT_LANGUAGE=en JOBS=$(nproc 2>/dev/null || echo 1)
CLEAN=(--lower --max-words 1000 --max-ratio 1000) # as See et al. 2017; ROUGE knows no case
BPE_MERGES=${BPE_MERGES:-32000}
TRUNCATE=(--truncate-source --max-source-positions 512)
MODEL=(--arch transformer --share-all-embeddings --dropout 0.1 "${TRUNCATE[@]}" "${PRECISION[@]}")
batch --max-tokens 32768 "${TOKENS:-16384}"
MLE=(
    --label-smoothing 0.1
    --optimizer torch_adam --adam-betas "(0.9, 0.98)"
    --lr 7e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000
    "${BATCH[@]}" --max-epoch "${MLE_EPOCHS:-20}"
)
# Then to convergence, the learning rate falling to zero, as in multi30k: some two epochs.
DECAY_UPDATES=${DECAY_UPDATES:-10000}
DECAY=(
    "${MLE[@]}" --max-epoch 0 --lr 3e-4 --lr-scheduler polynomial_decay --warmup-updates 200
    --total-num-update "$DECAY_UPDATES" --max-update "$DECAY_UPDATES"
)
# These lie in the first epoch, in which all inputs get all samples; the second begins after 4,487 updates.
ESRL_UPDATES=${ESRL_UPDATES:-2000}
batch --batch-size 64 "${INPUTS:-64}"
ESRL=(
    --reward rouge --reward-detokenizer moses --num-samples 8 --capability bleu
    --sample-max-len-a 0 --sample-max-len-b 140
    --rescoring-dropout
    --optimizer torch_adam --adam-betas "(0.9, 0.98)"
    --lr 1e-4 --lr-scheduler polynomial_decay --warmup-updates 100
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" "${BATCH[@]}"
    --save-interval-updates 200 --keep-interval-updates 1 --log-interval 10
)
# The control: such a decay once more, in about the time that ESRL takes.
CONTINUE=("${DECAY[@]}")
# Lengths, penalty and blocked trigrams of Lewis et al. 2020 (BART), whose beam is 4 and not 5.
GENERATE=(
    "${TRUNCATE[@]}" --lenpen 2.0 --min-len 55 --max-len-a 0 --max-len-b 140 --no-repeat-ngram-size 3
)
SCORE=score_rouge

run_recipe
