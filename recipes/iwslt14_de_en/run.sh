#!/usr/bin/env bash
# German–English of IWSLT'14 (TED talks), prepared as fairseq's prepare-iwslt14.sh does it; lower-cased.
#
# Tested:  as a whole with stand-in data and tiny models (tests/project/test_recipes_whole.py); NOT RUN at
#          full size
# Needs:   make env; a GPU with 8 GB (estimated), 6 GB of disk; the internet, or a folder with de-en.tgz
#          in ESRL_DATA_DIR. The talks are TED's, under CC BY-NC-ND: https://wit3.fbk.eu
# Launch:  recipes/iwslt14_de_en/run.sh
#          COMPARE=1 recipes/iwslt14_de_en/run.sh
# Options: environment variables, see recipes/README.md; here also GPUS, PRECISION, LAUNCH, TOKENS, INPUTS
#
# Data:    train without each 23rd pair, valid these (with Moses' own tokenizer 160,239 and 7,283), test 6,750:
#          dev2010, dev2012, tst2010, tst2011, tst2012. Joint BPE of 10,000 merges, a dictionary for each side.
# Model:   transformer_iwslt_de_en, settings of fairseq's examples/translation/README.md; the last 5
#          epochs averaged (AVERAGE)
# Reported, tokenised and lower-cased BLEU of MLE with this preparation and model: 34.54 (fairseq's example, as
#          https://github.com/YongfeiYan/lessdl reports it; fairseq states none). The paper's own (arXiv 2308.02223)
#          are in its tables, which were not at hand.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
AVERAGE=${AVERAGE:-5}
recipe iwslt14_de_en de en
gpus
JOBS=$(nproc 2>/dev/null || echo 1)

URLS=(
    https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz
    https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz
)
DISK=([fetch]=110 [clean]=80 [bpe]=90 [binarize]=30 [mle]=3400 [average]=160 [esrl]=1500)
TIMES=([mle]='2 hours on one A100' [esrl]='1 hour on one A100')

fetch_data() {
    download raw/de-en.tgz "${URLS[@]}"
    unpack raw/de-en.tgz raw/unpacked 'de-en/train.tags.de-en.*' 'de-en/IWSLT14.TED*.de-en.*.xml'
    python "$RECIPES/iwslt14_de_en/extract.py" raw
    rm -rf raw/unpacked
}

# Moses tokenises, then pairs are cleaned by their tokens and lower-cased.
clean_tokens() {
    local lang
    mkdir -p tok clean
    for lang in de en; do
        moses "raw/train.$lang" "tok/all.$lang" "$lang"
        moses "raw/test.$lang" "tok/cased.$lang" "$lang"
        python "$RECIPES/lower.py" <"raw/test.$lang" >"clean/test.$lang"
        python "$RECIPES/lower.py" <"tok/cased.$lang" >"tok/test.$lang"
    done
    pairs "$@" --lower --every 23 --held tok/valid tok/all tok/train
    rm tok/all.* tok/cased.*
}

CLEAN_STEP=clean_tokens TOKENISE=:
CLEAN_DOES="tokenise; drop long and unequal pairs; each 23rd one is the valid set; lower case"
CLEAN=(--max-words 175 --max-ratio 1.5)
BPE_MERGES=${BPE_MERGES:-10000} JOINED=0
SACREBLEU_OPTIONS=(--lowercase) # the text is, and the signature says so
SUMMARY=(--tokenised)
MODEL=(--arch transformer_iwslt_de_en --share-decoder-input-output-embed "${PRECISION[@]}")
batch --max-tokens 4096 "${TOKENS:-4096}"
MLE=(
    --label-smoothing 0.1 --dropout 0.3 --weight-decay 0.0001
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 0.0
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000
    "${BATCH[@]}" --max-epoch "${MLE_EPOCHS:-50}"
)
batch --batch-size 256 "${INPUTS:-256}"
ESRL_UPDATES=${ESRL_UPDATES:-1500}
ESRL=(
    --reward bleu --num-samples 8 --capability bleu
    --rescoring-dropout --dropout 0.3
    --optimizer adam --adam-betas "(0.9, 0.98)"
    --lr 1e-4 --lr-scheduler polynomial_decay --warmup-updates 50
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" "${BATCH[@]}"
    --save-interval-updates 150 --validate-interval-updates 150 --keep-interval-updates 1 --log-interval 10
)
# The control: the last learning rates of MLE, falling to zero.
CONTINUE=(
    "${MLE[@]}" --max-epoch 0 --lr 2e-4 --lr-scheduler polynomial_decay --warmup-updates 50
    --total-num-update "${CONTINUE_UPDATES:-10000}" --max-update "${CONTINUE_UPDATES:-10000}"
)

run_recipe
