#!/usr/bin/env bash
# NLLB-200 fine-tuned on sources alone: the reward is COMET-Kiwi's and LaBSE's opinion of source and translation,
# and 0 for a text in another language or of an odd length.
#
# Tested:  NOT RUN at full size; as a whole with a tiny model, stand-in data and another reward
#          (tests/project/test_recipes_whole.py). This reward, bf16, time and these settings are not
# Needs:   an environment of its own, since unbabel-comet wants older packages: see recipes/README.md. A GPU with 24 GB
#          (estimated; TRAIN=lora: 16 GB); 20 GB of disk; the internet, a login of the Hugging Face hub that has
#          accepted the licence of Unbabel/wmt22-cometkiwi-da, or local folders in NLLB and REWARD_OPTIONS; and in
#          ESRL_DATA_DIR, if not downloaded, flores200_dataset.tar.gz (CC BY-SA 4.0) and news-commentary-v16.en.gz.
#          NLLB's weights are CC BY-NC 4.0
# Launch:  recipes/nllb_qe/run.sh
#          TRAIN=lora TARGET=swh_Latn recipes/nllb_qe/run.sh
# Options: environment variables, see recipes/README.md; here also NLLB (folder or hub name), SOURCE and TARGET (NLLB's
#          codes), MONO (a file of sources, a sentence a line), SOURCES (how many to train on), TRAIN (all, freeze-embeddings, freeze-encoder, lora), LORA_RANK, LR,
#          KL_WEIGHT, REWARD, REWARD_OPTIONS, GPUS, PRECISION, INPUTS and LAUNCH
# Reported: GRPO of NLLB-200 600M and 1.3B on LaBSE and COMET-Kiwi, without references: up to +5.03 chrF++, 13 languages
#          (arXiv 2605.15976). Its abstract was at hand, not its text: model and reward are the paper's; weights of
#          the reward, data, learning rates and numbers of samples are this recipe's own, and not tuned
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
HF_MODEL=${NLLB:-facebook/nllb-200-distilled-600M}
absolute MONO
[[ ! -d $HF_MODEL || $HF_MODEL == /* ]] || HF_MODEL=$PWD/$HF_MODEL
recipe nllb_qe "${SOURCE:-eng_Latn}" "${TARGET:-fin_Latn}"
[[ $SRC != "$TGT" ]] || die "SOURCE and TARGET are both '$SRC', but a translation needs two languages"
[[ -z ${MONO:-} || -f $MONO ]] || die "MONO is '$MONO', but there is no such file"
whole 1 SOURCES LORA_RANK LONGEST
number 'more than 0' LR
REWARD=${REWARD:-'comet*language-gate*length-gate:0.5+sentence-embedding*language-gate*length-gate:0.5'}

# has NAME: whether REWARD is made of that reward, too
has() {
    [[ $REWARD =~ (^|[+*])$1([+*:]|$) ]]
}

need transformers "'transformers>=4.57'" sentencepiece
! has comet || need comet "'unbabel-comet>=2.2.7'"
! has sentence-embedding || need sentence_transformers sentence-transformers
! has language-gate || need py3langid py3langid
[[ $SRC == eng_Latn || -n ${MONO:-} ]] || lacks "SOURCE is $SRC: give its sentences, one a line, in the file MONO"
# shellcheck disable=SC2178 # gpus makes an array of it
PRECISION=${PRECISION:-bf16}
gpus
TRAIN=${TRAIN:-all}
one_of TRAIN all freeze-embeddings freeze-encoder lora
START='' # no model of fairseq's: that of HF_MODEL
NEWS=news-commentary-v16.en.gz

fetch_data() {
    local flores=flores200_dataset
    download "raw/$flores.tar.gz" "https://dl.fbaipublicfiles.com/nllb/$flores.tar.gz"
    unpack "raw/$flores.tar.gz" raw "$flores/dev/$SRC.dev" "$flores/dev/$TGT.dev" \
        "$flores/devtest/$SRC.devtest" "$flores/devtest/$TGT.devtest"
    local lang
    for lang in "$SRC" "$TGT"; do
        cp "raw/$flores/dev/$lang.dev" "raw/valid.$lang"
        cp "raw/$flores/devtest/$lang.devtest" "raw/test.$lang"
    done
    if [[ -n ${MONO:-} ]]; then
        cp "$MONO" "raw/mono.$SRC"
    else
        download "raw/$NEWS" "https://data.statmt.org/news-commentary/v16/training-monolingual/$NEWS"
        gzip -dc "raw/$NEWS" >"raw/mono.$SRC"
    fi
}

prepare() {
    python "$RECIPES/nllb_qe/prepare.py" --source "$SRC" --target "$TGT" "$@" raw clean
}

# translate RUN MODEL: the test set by transformers → out/RUN.{beam5,greedy}.txt
translate() {
    python "$RECIPES/translate.py" --model "$2" --longest "${LONGEST:-200}" \
        --source-lang "$SRC" --target-lang "$TGT" "clean/test.$SRC" "out/$1"
}

# summarise RUN...: → summary-ESRL_RUN.txt: chrF++ and BLEU against FLORES's references, then the reward of the same
# translations
summarise() {
    local mode outputs=("${@/#/out/}")
    score "$@"
    for mode in beam5 greedy; do
        printf '\nThe reward of the same translations, %s:\n' "$mode"
        package rewards "${JUDGE[@]}" --reward-post-process none \
            --sources "clean/test.$SRC" -- "${outputs[@]/%/.$mode.txt}"
    done >>"summary-$ESRL_RUN.txt"
}

DISK=([fetch]=300 [esrl]=15000)
TIMES=([fetch]='some minutes' [esrl]='some hours of one A100')
SACREBLEU_OPTIONS=(--chrf-word-order 2) # chrF++
JUDGE=(--reward "$REWARD")
REWARD_OPTIONS=${REWARD_OPTIONS:-}
for option in comet.model=Unbabel/wmt22-cometkiwi-da sentence-embedding.model=sentence-transformers/LaBSE \
    sentence-embedding.against=source "language-gate.language=$TGT"; do
    ! has "${option%%.*}" || [[ ,$REWARD_OPTIONS == *",${option%%=*}="* ]] || REWARD_OPTIONS+=,$option
done
[[ -z $REWARD_OPTIONS ]] || JUDGE+=(--reward-options "${REWARD_OPTIONS#,}")

WORDS=(--number "${SOURCES:-50000}" --words 4 60)
MODEL=(--arch hf_seq2seq --hf-model "$HF_MODEL")
PARTS=() # what of the model is not trained
case $TRAIN in
    lora) MODEL+=(--lora-rank "${LORA_RANK:-16}") LR=${LR:-1e-4} ;;
    freeze-*) PARTS=("--$TRAIN") ;;
esac
batch --batch-size 64 "${INPUTS:-16}"
ESRL_UPDATES=${ESRL_UPDATES:-1000}
ESRL=(
    "${JUDGE[@]}" --num-samples 8 --capability reward --kl-weight "${KL_WEIGHT:-0.01}" "${PARTS[@]}"
    --sample-max-len-a 2 --sample-max-len-b 20
    "${PRECISION[@]}" --optimizer torch_adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
    --lr "${LR:-1e-5}" --lr-scheduler polynomial_decay --warmup-updates 50
    --total-num-update "$ESRL_UPDATES" --max-update "$ESRL_UPDATES" "${BATCH[@]}"
    --save-interval-updates 100 --validate-interval-updates 100 --keep-interval-updates 1 --log-interval 10
)

trains esrl
nllb_steps() {
    about "FLORES-200 (dev, devtest) and sentences of the source language" '' raw "${DISK[fetch]}" "${TIMES[fetch]}"
    step fetch "$SRC $TGT ${MONO:-}" fetch_data
    about "sources to train on, valid and test set" raw/ clean 20
    step clean "${WORDS[*]}" prepare "${WORDS[@]}"
    about "the model's words, then fairseq's binary form" "clean/ $HF_MODEL" "ids data-bin" 40
    step binarize "$HF_MODEL" hf_data
    about "train on the reward, from sources alone" "data-bin/ $HF_MODEL" "$ESRL_RUN" "${DISK[esrl]}" "${TIMES[esrl]}"
    step "$ESRL_RUN" "$SEED ${MODEL[*]} ${ESRL[*]} ${ESRL_EXTRA[*]}" esrl "${MODEL[@]}" "${ESRL[@]}"
    about "the result as a Hugging Face folder" "$ESRL_RUN/ $HF_MODEL" "$ESRL_RUN-hf" 2500
    step "export-$ESRL_RUN" "" hf_export "$ESRL_RUN"
    about "translate the test set by the model as it was, beam 5 and greedy" "clean/test.$SRC $HF_MODEL" \
        "out/nllb.beam5.* out/nllb.greedy.*" 1
    step translate-nllb "" translate nllb "$HF_MODEL"
    about "translate it by the result" "clean/test.$SRC $ESRL_RUN-hf/" "out/$ESRL_RUN.beam5.* out/$ESRL_RUN.greedy.*" 1
    step "translate-$ESRL_RUN" "" translate "$ESRL_RUN" "$ESRL_RUN-hf"
    about "scores, paired bootstrap, rewards and the table" "out/ clean/" "summary-$ESRL_RUN.txt out/compare-$ESRL_RUN.*" 1
    step "score-$ESRL_RUN" "$SACREBLEU_SEED ${JUDGE[*]}" summarise nllb "$ESRL_RUN"
    running || return 0
    cat "summary-$ESRL_RUN.txt"
    finish "The model is $WORK/$ESRL_RUN-hf, its output for test $WORK/out/$ESRL_RUN.beam5.txt," \
        "and the table $WORK/summary-$ESRL_RUN.txt." \
        "Next: ESRL_RUN=grpo ESRL_ARGS='--objective rloo --reward-scaling input --length-normalization --elimination-ratio 0' in front of the same command: GRPO in its place."
}

run_steps nllb_steps
