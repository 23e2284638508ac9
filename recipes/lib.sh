# shellcheck shell=bash
# The steps that all recipes share; a recipe sets its variables, then calls them (see README.md).
#
# Every step runs through `step`, which keeps, in $WORK/steps:
#     NAME.settings   what the step was begun with; another call with other settings is refused
#     NAME.done       written after success only: a finished step is not repeated
# and its whole output in $WORK/logs/NAME.log.
set -euo pipefail
export LC_ALL=C.UTF-8 PYTHONUTF8=1

RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$RECIPES")
USER_DIR=$REPO/esrl_fairseq

die() {
    echo "error: $*" >&2
    exit 1
}

# recipe NAME SRC TGT [DATA]: the environment, the work directory and the options that every recipe
# has. DATA is the folder here with SHA256SUMS, where it is not NAME's own.
recipe() {
    RECIPE=$1 SRC=$2 TGT=$3 DATA=${4:-$1}
    if [[ -z ${VIRTUAL_ENV:-} && -x $REPO/.venv/bin/python ]]; then
        PATH=$REPO/.venv/bin:$PATH
    fi
    command -v fairseq-train >/dev/null ||
        die "fairseq-train was not found. Run 'make env', or activate the environment that has it."

    local name
    for name in ESRL_DATA_DIR MLE_CHECKPOINT; do # as seen from where the recipe was called
        [[ -z ${!name:-} || ${!name} == /* ]] || printf -v "$name" '%s/%s' "$PWD" "${!name}"
    done
    WORK=${ESRL_WORK_DIR:-$REPO/runs/$RECIPE}
    mkdir -p "$WORK/steps" "$WORK/logs"
    WORK=$(cd "$WORK" && pwd)
    cd "$WORK"

    SEED=${SEED:-1} # of ESRL and of continued MLE
    MLE_SEED=${MLE_SEED:-1}
    ESRL_RUN=${ESRL_RUN:-esrl-s$SEED} # its folder: runs of one work directory share the MLE model
    # Start from this model instead of training one; bpe.codes and dict.txt lie beside it.
    MLE_CHECKPOINT=${MLE_CHECKPOINT:-}
    MLE_CONTINUED=${MLE_CONTINUED:-0} # 1: also continue MLE for as long as ESRL trained
    # More options for fairseq-train, split at blanks: they follow the recipe's own and so win.
    read -r -a MLE_EXTRA <<<"${MLE_ARGS:-}"
    read -r -a ESRL_EXTRA <<<"${ESRL_ARGS:-}"
    STOP_AFTER=${ESRL_STOP_AFTER:-score} # mle: the model that ESRL starts from; esrl: what it becomes
    [[ $STOP_AFTER == mle || $STOP_AFTER == esrl || $STOP_AFTER == score ]] ||
        die "ESRL_STOP_AFTER is '$STOP_AFTER', but must be mle, esrl or score"
    export SACREBLEU_SEED=${SACREBLEU_SEED:-12345} # of the bootstrap

    STEP=
    trap on_exit EXIT
    echo "$RECIPE: working in $WORK"
}

on_exit() {
    local status=$?
    if [[ $status -ne 0 && -n $STEP ]]; then
        {
            echo "--- the last lines of $WORK/logs/$STEP.log"
            tail -n 15 "logs/$STEP.log"
            echo "error: step $STEP failed. The same command goes on from here."
        } >&2
    fi
}

# need MODULES PACKAGE...: stop now rather than after hours if a Python module is missing.
need() {
    python -c "import $1" 2>/dev/null ||
        die "recipe $RECIPE needs the Python modules $1: pip install ${*:2}"
}

# step NAME SETTINGS COMMAND...
step() {
    local name=$1 settings=$2 begun=$SECONDS
    shift 2
    if [[ -e steps/$name.settings && $(<"steps/$name.settings") != "$settings" ]]; then
        die "step $name in $WORK was begun with other settings:
$(diff <(tr ' ' '\n' <"steps/$name.settings") <(tr ' ' '\n' <<<"$settings") |
            sed -n 's/^< /    then: /p; s/^> /    now:  /p')
Choose another ESRL_WORK_DIR (for ESRL alone another ESRL_RUN), or delete that one."
    fi
    if [[ -e steps/$name.done ]]; then
        printf '[%5d s] %s: done before\n' "$SECONDS" "$name"
        return
    fi
    printf '[%5d s] %s\n' "$SECONDS" "$name"
    echo "$settings" >"steps/$name.settings"
    STEP=$name
    ("$@") 2>&1 | tee "logs/$name.log" | progress
    STEP=
    touch "steps/$name.done"
    printf '[%5d s] %s: done in %d s\n' "$SECONDS" "$name" $((SECONDS - begun))
}

# Of a step's output, what tells how far it is: lines of recipes ('> …'), of esrl_fairseq, log intervals,
# validations and warnings.
progress() {
    sed -u -n -E '/^(> |error: )|\| (INFO \| (train_inner|valid|esrl_fairseq[.a-z_]*) \||WARNING \|)/ {
        s/^[0-9-]+ ([0-9:]+) \| (INFO|WARNING) \| /\1 /; s/^/          /; s/^(.{400}).*/\1…/; p
    }'
}

# download URL FILE: nothing half-downloaded remains. Given up is what stands still, however long it takes.
download() {
    if ! curl --fail --silent --show-error --location --retry 3 --connect-timeout 30 \
        --speed-limit 1000 --speed-time 60 --output "$2.part" "$1"; then
        rm -f "$2.part"
        die "could not download $1
Download it by hand into a folder and set ESRL_DATA_DIR to that folder (recipes/README.md)."
    fi
    mv "$2.part" "$2"
    echo "> $(basename "$2")"
}

# fetch_urls BASE_URL FILE...: into raw/, from $ESRL_DATA_DIR where that is set (a FILE.gz there is
# unpacked); checked against the data's SHA256SUMS, if it has any.
fetch_urls() {
    local base=$1 file
    shift
    mkdir -p raw
    for file; do
        if [[ -n ${ESRL_DATA_DIR:-} && -e $ESRL_DATA_DIR/$file.gz ]]; then
            gzip -dc "$ESRL_DATA_DIR/$file.gz" >"raw/$file"
        elif [[ -n ${ESRL_DATA_DIR:-} ]]; then
            cp "$ESRL_DATA_DIR/$file" "raw/$file" || die "ESRL_DATA_DIR=$ESRL_DATA_DIR has no file $file"
            chmod u+w "raw/$file"
            echo "> $file"
        else
            download "$base/$file" "raw/$file"
        fi
    done
    [[ ! -e $RECIPES/$DATA/SHA256SUMS ]] || check_sums raw
}

# check_sums DIR: every file that the data's SHA256SUMS names.
check_sums() {
    (cd "$1" && sha256sum --quiet --check "$RECIPES/$DATA/SHA256SUMS") ||
        die "$WORK/$1 is not the data that this recipe was written for (recipes/$DATA/SHA256SUMS)"
    echo "> checksums are right"
}

# clean OPTION...: raw/{train,valid,test}.{SRC,TGT} → clean/, with further references (TGT1, TGT2 …)
clean() {
    python "$RECIPES/clean.py" --source "$SRC" --target "$TGT" "$@" raw clean
}

# bpe MERGES: clean/ → bpe/, tokenised with sacremoses, one set of codes for both languages.
bpe() {
    local file name
    mkdir -p tok bpe
    for file in clean/{train,valid,test}.*; do
        name=${file##*/}
        sacremoses -l "${TEXT_LANGUAGE:-${name##*.}}" -q tokenize <"$file" >"tok/$name"
    done
    if [[ -n $MLE_CHECKPOINT ]]; then
        cp "$(dirname "$MLE_CHECKPOINT")/bpe.codes" bpe/codes
    else
        cat "tok/train.$SRC" "tok/train.$TGT" | subword-nmt learn-bpe -s "$1" -o bpe/codes
    fi
    for file in tok/{train,valid,test}.*; do
        subword-nmt apply-bpe -c bpe/codes <"$file" >"bpe/${file##*/}"
    done
    echo "> $(wc -l <"bpe/train.$SRC") training pairs"
}

# bpe/ → data-bin/, with further references as --reward-references reads them
binarize() {
    local dict=() file name
    if [[ -n $MLE_CHECKPOINT ]]; then
        dict=(--srcdict "$(dirname "$MLE_CHECKPOINT")/dict.txt")
    fi
    rm -rf data-bin
    fairseq-preprocess --source-lang "$SRC" --target-lang "$TGT" --joined-dictionary "${dict[@]}" \
        --trainpref bpe/train --validpref bpe/valid --testpref bpe/test --destdir data-bin
    for file in bpe/{train,valid,test}."$TGT"[1-9]; do
        [[ -e $file ]] || continue # none
        name=${file##*/}
        cp "$file" "data-bin/${name%%.*}.$SRC-$TGT.${name##*.}"
    done
    echo "> $(wc -l <"data-bin/dict.$SRC.txt") dictionary entries"
}

# fairseq leaves out the last (longest) sentences of a data set whose size is not a multiple of
# this, 8 by default, and says nothing: 3 of the demo's 315 test verses.
WHOLE=(--required-batch-size-multiple 1)

# train DIR OPTION...: fairseq-train into DIR; a run that was interrupted goes on from
# DIR/checkpoint_last.pt. (--user-dir also for MLE: without it fairseq cannot read its own
# checkpoints on torch >= 2.6, see esrl_fairseq/compat.py.)
train() {
    local dir=$1
    shift
    fairseq-train data-bin --user-dir "$USER_DIR" --save-dir "$dir" \
        --source-lang "$SRC" --target-lang "$TGT" --no-epoch-checkpoints "${WHOLE[@]}" \
        --log-format simple --log-interval 50 "$@"
}

# mle OPTION...: → mle/checkpoint_best.pt
mle() {
    if [[ -n $MLE_CHECKPOINT ]]; then
        mkdir -p mle
        cp "$MLE_CHECKPOINT" mle/checkpoint_best.pt
        chmod u+w mle/checkpoint_best.pt
    else
        train mle --criterion label_smoothed_cross_entropy --seed "$MLE_SEED" "$@" "${MLE_EXTRA[@]}"
    fi
}

# decay OPTION...: MLE goes on to convergence → mle-decay/checkpoint_best.pt
decay() {
    train mle-decay --criterion label_smoothed_cross_entropy --seed "$MLE_SEED" \
        --finetune-from-model mle/checkpoint_best.pt "$@" "${MLE_EXTRA[@]}"
}

# esrl OPTION...: from the MLE model → $ESRL_RUN/checkpoint_best.pt, best by the reward on valid.
# --finetune-from-model, not --restore-file with --reset-…: it holds for the first launch only, so
# that the same command resumes an interrupted run instead of resetting it.
esrl() {
    train "$ESRL_RUN" --task esrl_translation --criterion esrl --seed "$SEED" \
        --finetune-from-model "$START/checkpoint_best.pt" \
        --best-checkpoint-metric reward --maximize-best-checkpoint-metric \
        "$@" "${ESRL_EXTRA[@]}"
}

# continue_mle OPTION...: the control, the MLE criterion for as long as ESRL trained. fairseq
# counts the time of the model that a run starts from and of all restarts; both runs start from
# one model, so that the same total is the same time.
continue_mle() {
    local hours
    hours=$(python "$RECIPES/training_hours.py" "$ESRL_RUN/checkpoint_last.pt")
    echo "> until $hours hours of training in all, as $ESRL_RUN"
    train "$ESRL_RUN-mle-continued" --criterion label_smoothed_cross_entropy --seed "$SEED" \
        --finetune-from-model "$START/checkpoint_best.pt" --stop-time-hours "$hours" "$@" "${MLE_EXTRA[@]}"
}

# generate RUN OPTION...: the test set, beam 5 and greedy → out/RUN.{beam5,greedy}.txt, detokenised
generate() {
    local run=$1 mode beam out
    shift
    mkdir -p out
    for mode in beam5 greedy; do
        out=out/$run.$mode
        beam=5
        [[ $mode == beam5 ]] || beam=1
        fairseq-generate data-bin --user-dir "$USER_DIR" --source-lang "$SRC" --target-lang "$TGT" \
            --path "$run/checkpoint_best.pt" --gen-subset test --beam "$beam" --max-tokens 8000 \
            "${WHOLE[@]}" --remove-bpe --log-format none "$@" >"$out.log"
        # H-<number>\t<score>\t<text>, in an order that batches chose
        grep '^H-' "$out.log" | sed 's/^H-//' | sort -n | cut -f 3 |
            sacremoses -l "${TEXT_LANGUAGE:-$TGT}" -q detokenize >"$out.txt"
        [[ $(wc -l <"$out.txt") == $(wc -l <"clean/test.$TGT") ]] ||
            die "$WORK/$out.txt has not as many lines as clean/test.$TGT"
        tail -n 1 "$out.log" | sed 's/^/> tokenised text: /'
    done
}

# score RUN...: sacreBLEU and chrF of detokenised text against the text as it was before any
# tokenisation; paired bootstrap of the others against the first.
score() {
    local ref=clean/test.$TGT mode run files
    for mode in beam5 greedy; do
        files=()
        for run; do
            sacrebleu "$ref" -i "out/$run.$mode.txt" -m bleu chrf -w 2 -f json >"out/$run.$mode.json"
            files+=("out/$run.$mode.txt")
        done
        sacrebleu "$ref" -i "${files[@]}" -m bleu chrf --paired-bs -w 2 -f text >"out/compare-$ESRL_RUN.$mode.txt"
    done
    python "$RECIPES/summary.py" --compare "out/compare-$ESRL_RUN" --out out "$@" >"summary-$ESRL_RUN.txt"
}

# score_rouge RUN...: ROUGE of detokenised text against all references as they were before
# tokenisation; paired bootstrap of the others against the first. $SEPARATOR, if set, stands between
# the sentences of a text.
score_rouge() {
    python "$RECIPES/rouge_summary.py" --references "clean/test.$TGT" --out out \
        --separator "${SEPARATOR:-}" --seed "$SACREBLEU_SEED" "$@" >"summary-$ESRL_RUN.txt"
}

# Everything, from the data to the summary. A recipe defines fetch_data and sets CLEAN,
# BPE_MERGES, MODEL (the architecture), MLE, ESRL and CONTINUE (options of fairseq-train), and where
# needed DECAY (MLE's second part), GENERATE (options of fairseq-generate), SCORE (score_rouge in the
# place of score) and TEXT_LANGUAGE (of both sides, where SRC and TGT do not name languages).
run_recipe() {
    local runs run start
    step fetch "" fetch_data
    step clean "${CLEAN[*]}" clean "${CLEAN[@]}"
    step bpe "$BPE_MERGES $MLE_CHECKPOINT" bpe "$BPE_MERGES"
    step binarize "$MLE_CHECKPOINT" binarize
    step mle "$MLE_SEED $MLE_CHECKPOINT ${MODEL[*]} ${MLE[*]} ${MLE_EXTRA[*]}" mle "${MODEL[@]}" "${MLE[@]}"
    START=mle
    if [[ -n ${DECAY[*]:-} ]]; then
        START=mle-decay
        step mle-decay "$MLE_SEED ${MODEL[*]} ${DECAY[*]} ${MLE_EXTRA[*]}" decay "${MODEL[@]}" "${DECAY[@]}"
    fi
    if [[ $STOP_AFTER == mle ]]; then
        printf '[%5d s] done; the model is %s\n' "$SECONDS" "$WORK/$START/checkpoint_best.pt"
        return
    fi
    runs=("$START" "$ESRL_RUN")
    start="from $(sha256sum <"$START"/checkpoint_best.pt | cut -c 1-12), seed $SEED, ${MODEL[*]}"
    step "$ESRL_RUN" "$start ${ESRL[*]} ${ESRL_EXTRA[*]}" esrl "${MODEL[@]}" "${ESRL[@]}"
    if [[ $STOP_AFTER == esrl ]]; then
        printf '[%5d s] done; the model is %s\n' "$SECONDS" "$WORK/$ESRL_RUN/checkpoint_last.pt"
        return
    fi
    if [[ $MLE_CONTINUED == 1 ]]; then
        run=$ESRL_RUN-mle-continued
        step "$run" "$start ${CONTINUE[*]} ${MLE_EXTRA[*]}" continue_mle "${MODEL[@]}" "${CONTINUE[@]}"
        runs+=("$run")
    fi
    for run in "${runs[@]}"; do
        step "generate-$run" "${GENERATE[*]:-}" generate "$run" "${GENERATE[@]}"
    done
    step "score-$ESRL_RUN-${#runs[@]}" "$SACREBLEU_SEED" "${SCORE:-score}" "${runs[@]}"
    cat "summary-$ESRL_RUN.txt"
    printf '[%5d s] done; the table is also in %s\n' "$SECONDS" "$WORK/summary-$ESRL_RUN.txt"
}
