# shellcheck shell=bash
# What all recipes share: a recipe sets its variables, then calls run_recipe (see README.md).
# steps.sh has the words of the command line, the plan and the steps' bookkeeping.
set -euo pipefail
export LC_ALL=C.UTF-8 PYTHONUTF8=1

RECIPES=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$RECIPES")
USER_DIR=$REPO/esrl_fairseq
# shellcheck source-path=SCRIPTDIR source=steps.sh
source "$RECIPES/steps.sh"
read_words "$@" # the recipe's own: `source` without words leaves them

# Estimates for the plan, by step (fetch, clean, bpe, binarize, mle, average, decay, esrl): MB, and words
declare -A DISK=() TIMES=()

# recipe NAME SRC TGT [DATA]: the environment, the work directory and the options that every recipe
# has. DATA is the folder here with SHA256SUMS, where it is not NAME's own.
recipe() {
    RECIPE=$1 SRC=$2 TGT=$3 DATA=${4:-$1}
    if [[ -z ${VIRTUAL_ENV:-} && -x $REPO/.venv/bin/python ]]; then
        # shellcheck disable=SC2031 # steps.sh changes it for itself in a subshell
        PATH=$REPO/.venv/bin:$PATH
    fi
    if ! command -v fairseq-train >/dev/null; then
        lacks "fairseq-train was not found. Run 'make env', or activate the environment that has it."
    fi

    mistyped
    check_numbers
    absolute ESRL_DATA_DIR MLE_CHECKPOINT
    WORK=${ESRL_WORK_DIR:-$REPO/runs/$RECIPE}
    [[ $WORK != '~'* ]] || die "ESRL_WORK_DIR is '$WORK', where the ~ stands for nothing: write \$HOME in its place"
    [[ $WORK == /* ]] || WORK=$PWD/$WORK
    work_folder

    SEED=${SEED:-1} # of ESRL and of continued MLE
    MLE_SEED=${MLE_SEED:-1}
    ESRL_RUN=${ESRL_RUN:-esrl-s$SEED} # its folder: runs of one work directory share the MLE model
    check_run_name
    # Start from this model instead of training one; bpe.codes and dict.txt lie beside it.
    MLE_CHECKPOINT=${MLE_CHECKPOINT:-}
    MLE_CONTINUED=${MLE_CONTINUED:-0} # 1: also continue MLE for as long as ESRL trained
    COMPARE=${COMPARE:-0}             # 1: that, and REINFORCE, MRT and PPO
    AVERAGE=${AVERAGE:-0} # MLE's last so many epochs' checkpoints are averaged; 0: its best one is taken
    one_of MLE_CONTINUED 0 1
    one_of COMPARE 0 1
    COMET=${COMET:-0}
    one_of COMET 0 1
    [[ $COMPARE == 0 ]] || MLE_CONTINUED=1
    # More options for fairseq-train: they follow the recipe's own and so win.
    split MLE_EXTRA "${MLE_ARGS:-}"
    split ESRL_EXTRA "${ESRL_ARGS:-}"
    split COMPARE_EXTRA "${COMPARE_ARGS:-}"
    split CONTINUE_EXTRA "${CONTINUE_ARGS:-}" # for the control, behind those of MLE
    split GENERATE_EXTRA "${GENERATE_ARGS:-}" # for fairseq-generate
    # Words in front of the training program, e.g. torchrun with its options
    split LAUNCHER "${LAUNCH:-}"
    [[ -z ${LAUNCHER[*]} ]] || command -v "${LAUNCHER[0]}" >/dev/null ||
        lacks "LAUNCH begins with '${LAUNCHER[0]}', but there is no such program"
    STOP_AFTER=${ESRL_STOP_AFTER:-score} # mle: the model that ESRL starts from; esrl: what it becomes
    [[ $STOP_AFTER == mle || $STOP_AFTER == esrl || $STOP_AFTER == score ]] ||
        die "ESRL_STOP_AFTER is '$STOP_AFTER', but must be mle, esrl or score"
    [[ $COMPARE == 0 || $STOP_AFTER == score ]] ||
        die "COMPARE=1 and ESRL_STOP_AFTER=$STOP_AFTER contradict each other: the comparison comes after; leave one out"
    [[ -z ${ESRL_DATA_DIR:-} || -z ${ESRL_MIRROR:-} ]] ||
        die "ESRL_DATA_DIR and ESRL_MIRROR are both set: the files come from one of them; leave the other out"
    [[ -z ${ESRL_MIRROR:-} || $ESRL_MIRROR == *://* ]] ||
        die "ESRL_MIRROR is '$ESRL_MIRROR', but must begin with https://, http:// or file://"
    export SACREBLEU_SEED=${SACREBLEU_SEED:-12345} # of the bootstrap
    export SACREBLEU=$WORK/sacrebleu               # its test sets, where the recipe puts them there

    [[ $PASS == plan ]] || echo "$RECIPE: working in $WORK"
}

# mistyped: a warning of variables that begin as those of recipes do, and that no recipe reads
mistyped() {
    local name known=' ARGS CHECKPOINT CONTINUED DATA_DIR EPOCHS MIRROR RUN SEED STALL_SECONDS STOP_AFTER UPDATES WORK_DIR '
    for name in "${!ESRL_@}" "${!MLE_@}"; do
        [[ ${!name@a} == *x* && $name != ESRL_TEST_* && $known != *" ${name#*_} "* ]] || continue
        warn "no recipe reads the variable $name, which is set (recipes/README.md lists those that are read)"
    done
}

# not_read FUNCTION: a warning of variables that other recipes read, or those with other steps than FUNCTION
not_read() {
    local name files names=(MLE_EPOCHS MLE_UPDATES DECAY_UPDATES ESRL_UPDATES ESRL_EPOCHS CONTINUE_UPDATES
        REWARD_EPOCHS REWARD_UPDATES BPE_MERGES TOKENS INPUTS BIG LONGEST VOCABULARY RL_MINUTES KL_WEIGHT)
    if [[ $1 != recipe_steps ]]; then
        [[ $STOP_AFTER == score ]] ||
            die "ESRL_STOP_AFTER is '$STOP_AFTER', which recipe $RECIPE does not know: take --until STEP in its place"
        names+=(MLE_CHECKPOINT MLE_ARGS CONTINUE_ARGS GENERATE_ARGS AVERAGE COMET)
    fi
    mapfile -t files < <(own_files "${BASH_SOURCE[-1]}")
    for name in "${names[@]}"; do
        [[ ${!name:-0} != 0 && ${!name@a} == *x* ]] || continue
        grep -qE "\\$\{?($name|${name%_ARGS}_EXTRA)\>" "${files[@]}" ||
            warn "recipe $RECIPE does not read the variable $name, which is set"
    done
}

# own_files FILE: it and those beside lib.sh's folder that it sources
own_files() {
    local other
    echo "$1"
    while read -r other; do
        own_files "$RECIPES/$other"
    done < <(sed -nE 's#^source .*/([a-z0-9_]+/[a-z0-9_]+\.sh)".*#\1#p' "$1")
}

# warn SENTENCE: at once, or at the end of the plan
warn() {
    if [[ $PASS == plan ]]; then NOTES+=("$*"); else echo "warning: $*" >&2; fi
}

# split ARRAY TEXT: at blanks and ends of lines
split() {
    read -r -d '' -a "$1" <<<"$2" || true
}

# absolute VARIABLE...: paths as seen from where the recipe was called
absolute() {
    local name
    for name; do
        [[ -z ${!name:-} || ${!name} == /* ]] || printf -v "$name" '%s/%s' "$PWD" "${!name}"
    done
}

# work_folder: WORK, which is of one recipe, can be written, and is the current folder of a run
work_folder() {
    local path=$WORK of=$WORK/steps/recipe
    while [[ ! -e $path ]]; do path=$(dirname "$path"); done
    [[ -d $path && -w $path && -x $path ]] ||
        die "the work folder $WORK cannot be made or written ($path): set ESRL_WORK_DIR to another"
    [[ ! -s $of || $(<"$of") == "$RECIPE" ]] ||
        die "the work folder $WORK is that of recipe $(<"$of"): set ESRL_WORK_DIR to another"
    compgen -G "$WORK/steps/*.settings" >/dev/null || of_others
    [[ $PASS == run ]] || return 0
    mkdir -p "$WORK/steps" "$WORK/logs" 2>/dev/null ||
        die "the work folder $WORK cannot be made or written: set ESRL_WORK_DIR to another"
    WORK=$(cd "$WORK" && pwd)
    cd "$WORK"
}

# of_others: refuses a folder that holds what steps would overwrite, and that no step has made
of_others() {
    local name
    for name in raw clean tok bpe ids data-bin mle; do
        [[ ! -e $WORK/$name ]] ||
            die "the work folder $WORK has a '$name' that no recipe made: set ESRL_WORK_DIR to a new or an empty folder"
    done
}

# whole LEAST VARIABLE...: each is unset, empty (the recipe's default) or a whole number from LEAST on
whole() {
    local name
    for name in "${@:2}"; do
        [[ -z ${!name:-} ]] || { [[ ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]] && ((${!name} >= $1)); } ||
            die "$name is '${!name}', but must be a whole number from $1 to 999999999"
    done
}

# number LEAST VARIABLE...: the same for numbers with decimals, LEAST being '0 or more' or 'more than 0'
number() {
    local name
    for name in "${@:2}"; do
        [[ -z ${!name:-} ]] || {
            [[ ${!name} =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]{1,2})?$ ]] && [[ $1 == 0* || ${!name%%[eE]*} =~ [1-9] ]]
        } || die "$name is '${!name}', but must be a number, $1"
    done
}

# check_numbers: of all recipes, before anything counts with them
check_numbers() {
    whole 0 SEED MLE_SEED SACREBLEU_SEED AVERAGE
    whole 1 MLE_EPOCHS MLE_UPDATES DECAY_UPDATES ESRL_UPDATES ESRL_EPOCHS CONTINUE_UPDATES \
        REWARD_EPOCHS REWARD_UPDATES BPE_MERGES GPUS TOKENS INPUTS
    number 'more than 0' ESRL_STALL_SECONDS RL_MINUTES
    number '0 or more' KL_WEIGHT
}

# check_run_name: ESRL_RUN is a folder of its own
check_run_name() {
    [[ $ESRL_RUN =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
        die "ESRL_RUN is '$ESRL_RUN', but is a folder's name: letters, digits and . _ -, no blank, no /"
    case $ESRL_RUN in
        fetch | clean | bpe | binarize | mle | mle-average | mle-decay | raw | tok | data-bin | ids | out | logs | \
            steps | replaced | sacrebleu)
            die "ESRL_RUN is '$ESRL_RUN', but that is a folder or step of the recipe: choose another name"
            ;;
    esac
}

# one_of VARIABLE VALUE...
one_of() {
    local value
    for value in "${@:2}"; do [[ ${!1} != "$value" ]] || return 0; done
    die "$1 is '${!1}', but must be one of: ${*:2}"
}

# lacks SENTENCE: what a run cannot do without; the plan only says it
lacks() {
    [[ $PASS == plan ]] || die "$*"
    NOTES+=("$*")
}

# need MODULES PACKAGE...: stop now rather than after hours if a Python module is missing.
need() {
    local missing
    missing=$(python -c 'import sys; from importlib.util import find_spec
print(*[name for name in sys.argv[1].replace(",", " ").split() if not find_spec(name)], sep=", ")' "$1")
    [[ -z $missing ]] || lacks "recipe $RECIPE needs the Python module $missing, which is not installed: pip install ${*:2}"
}

# ---- GPUs. Recipes that are made for them call `gpus`, then `batch`.

# gpus: GPUS (those that train together, on all machines; by default this machine's) and PRECISION
# (options: by default fp16 where there is a GPU)
gpus() {
    local here=0
    if command -v nvidia-smi >/dev/null; then
        here=$(python -c 'import torch; print(torch.cuda.device_count())')
    fi
    GPUS=${GPUS:-$((here > 0 ? here : 1))}
    if [[ -z ${LAUNCH:-} ]] && ((here > 0 && GPUS != here)); then
        die "GPUS is $GPUS, but training takes all of the $here GPUs that it sees: set CUDA_VISIBLE_DEVICES to those" \
            "that it may use, or LAUNCH where other machines have more"
    elif [[ -z ${LAUNCH:-} ]] && ((here == 0 && GPUS > 1)); then
        lacks "GPUS is $GPUS, but no GPU was found here, and LAUNCH, which starts trainings elsewhere, is not set"
    fi
    local kind=${PRECISION:-$([[ $here == 0 && -z ${LAUNCH:-} ]] && echo fp32 || echo fp16)}
    case $kind in
        fp16 | bf16) PRECISION=("--$kind") ;;
        fp32) PRECISION=() ;;
        *) die "PRECISION is '$kind', but must be fp16, bf16 or fp32" ;;
    esac
    PLAN_HEAD="$GPUS GPU(s), $kind"
    ((here > 0)) || NOTES+=("no GPU was found here; training on a CPU would take weeks")
}

# batch OPTION TOTAL MOST: into BATCH, OPTION for one GPU and --update-freq, so that an update has TOTAL
# (tokens or inputs) with any number of GPUs, and none of them more than MOST at a time
batch() {
    local option=$1 total=$2 most=$3 times
    ((total % GPUS == 0)) || die "GPUS is $GPUS, but must divide $total ($option of all together)"
    times=$(((total / GPUS + most - 1) / most))
    while ((total % (GPUS * times) != 0)); do ((++times)); done
    # shellcheck disable=SC2034 # recipes use it
    BATCH=("$option" $((total / GPUS / times)) --update-freq "$times")
}

# ---- Data

# planned WORD...: in the plan, say them (to where `sources` listens); LISTING=1: the names of files alone
planned() {
    [[ $PASS == plan ]] || return 1
    if [[ ${LISTING:-0} == 0 ]]; then
        words "$@" >&3
    elif [[ $1 == download ]]; then
        echo "${2##*/}" >&3
    fi
}

# check_data: ESRL_DATA_DIR has the files that fetch will want
check_data() {
    local file
    [[ -n ${ESRL_DATA_DIR:-} && (! -e $WORK/steps/fetch.done || $FROM == fetch) ]] || return 0
    [[ -d $ESRL_DATA_DIR ]] || die "ESRL_DATA_DIR is '$ESRL_DATA_DIR', but there is no such folder"
    while IFS= read -r file; do
        [[ -z $file || -f $ESRL_DATA_DIR/$file || -f $ESRL_DATA_DIR/$file.gz ]] ||
            die "ESRL_DATA_DIR=$ESRL_DATA_DIR has no file $file (nor $file.gz), which this recipe needs"
    done <<<"$(PASS=plan LISTING=1 sources fetch_data)"
}

# download FILE URL...: from ESRL_DATA_DIR, ESRL_MIRROR (an address of a folder) or the first URL that
# has it; checked against the data's SHA256SUMS and MD5SUMS, or to be the one of the first time.
download() {
    local from=${ESRL_DATA_DIR:-${ESRL_MIRROR:-}}
    [[ $PASS != plan || -z $from ]] || set -- "$1" "${from%/}/${1##*/}"
    ! planned download "$@" || return 0
    python "$RECIPES/fetch.py" ${ESRL_DATA_DIR:+--local "$ESRL_DATA_DIR"} ${ESRL_MIRROR:+--mirror "$ESRL_MIRROR"} \
        --sums "$RECIPES/$DATA/SHA256SUMS" "$RECIPES/$DATA/MD5SUMS" --record "$WORK/steps/fetched.sums" -- "$@"
}

# fetch_urls BASE_URL FILE...: into raw/ (see `download`)
fetch_urls() {
    local base=$1 file
    shift
    for file; do
        download "raw/$file" "$base/$file"
    done
    [[ ! -e $RECIPES/$DATA/SHA256SUMS ]] || check_sums raw
}

# check_sums DIR: every file that the data's SHA256SUMS names.
check_sums() {
    (cd "$1" && sha256sum --quiet --check "$RECIPES/$DATA/SHA256SUMS") ||
        die "$WORK/$1 is not the data that this recipe was written for (recipes/$DATA/SHA256SUMS)"
    echo "> checksums are right"
}

# unpack ARCHIVE DIR PATTERN...: files of an archive, none outside DIR
unpack() {
    ! planned unpack "$@" || return 0
    python "$RECIPES/unpack.py" "$@" || forget $? "$1"
}

# forget STATUS FILE...: of a program that failed, and that ends with 3 where files cannot be read: the next run
# fetches these anew
forget() {
    local status=$1 file record=$WORK/steps/fetched.sums
    shift
    ((status == 3)) || return "$status"
    for file; do
        rm -f "$file"
        [[ ! -e $record ]] || sed -i "/  ${file##*/}\$/d" "$record"
        echo "> the next run fetches ${file##*/} anew"
    done
    return "$status"
}

# sacrebleu_set NAME ARCHIVE URL...: one of sacreBLEU's test sets, where `sacrebleu -t NAME` looks for it
sacrebleu_set() {
    local folder=$SACREBLEU/$1/raw archive
    archive=${1//\//_}.${2##*/}
    download "raw/$archive" "${@:2}"
    rm -rf "$folder"
    unpack "raw/$archive" "$folder" '*.sgm'
    ln -s "$WORK/raw/$archive" "$folder/$archive"
}

# from_set NAME SPLIT: raw/SPLIT.{SRC,TGT}, as sacreBLEU reads the set
from_set() {
    sacrebleu -t "$1" -l "$SRC-$TGT" --echo src >"raw/$2.$SRC"
    sacrebleu -t "$1" -l "$SRC-$TGT" --echo ref >"raw/$2.$TGT"
    echo "> $2: $(wc -l <"raw/$2.$SRC") sentences of $1"
}

# pairs OPTION... IN... OUT: see pairs.py
pairs() {
    ! planned pairs "$@" || return 0
    python "$RECIPES/pairs.py" --source "$SRC" --target "$TGT" "$@"
}

# clean OPTION...: raw/{train,valid,test}.{SRC,TGT} → clean/, with further references (TGT1, TGT2 …)
clean() {
    python "$RECIPES/clean.py" --source "$SRC" --target "$TGT" "$@" raw clean
}

# moses IN OUT LANGUAGE: tokenised as Moses does it, on all cores; MOSES has the options of moses.py
moses() {
    python "$RECIPES/moses.py" --language "$3" --jobs "$JOBS" "${MOSES[@]}" <"$1" >"$2"
}

# tokenise: clean/ → tok/
tokenise() {
    local file name
    for file in clean/{train,valid,test}.*; do
        name=${file##*/}
        if [[ -n ${MOSES[*]:-} ]]; then
            moses "$file" "tok/$name" "${name##*.}"
        else
            sacremoses -l "${TEXT_LANGUAGE:-${name##*.}}" -q tokenize <"$file" >"tok/$name"
        fi
    done
}

# bpe MERGES: clean/ → bpe/, tokenised, one set of codes for both languages. TOKENISE=: where tok/ is
# there already. BPE_FILTER: options of pairs.py, for training pairs that are too long in sub-words.
bpe() {
    local file
    mkdir -p tok bpe
    "${TOKENISE:-tokenise}"
    if [[ -n $MLE_CHECKPOINT ]]; then
        cp "$(dirname "$MLE_CHECKPOINT")/bpe.codes" bpe/codes
    else
        # Not with -o: subword-nmt does not notice there that the disk is full.
        cat "tok/train.$SRC" "tok/train.$TGT" | subword-nmt learn-bpe -s "$1" >bpe/codes
    fi
    for file in tok/{train,valid,test}.*; do
        subword-nmt apply-bpe -c bpe/codes <"$file" >"bpe/${file##*/}"
        [[ $(wc -l <"$file") == $(wc -l <"bpe/${file##*/}") ]] ||
            die "$WORK/bpe/${file##*/} has not as many lines as tok/${file##*/}"
    done
    if [[ -n ${BPE_FILTER[*]:-} ]]; then
        pairs "${BPE_FILTER[@]}" bpe/train bpe/filtered
        mv "bpe/filtered.$SRC" "bpe/train.$SRC"
        mv "bpe/filtered.$TGT" "bpe/train.$TGT"
    fi
    echo "> $(wc -l <"bpe/train.$SRC") training pairs"
}

# bpe/ → data-bin/, with further references as --reward-references reads them. JOINED=0: a dictionary
# for each side.
binarize() {
    local dict=() file name beside
    ((JOINED == 0)) || dict=(--joined-dictionary)
    if [[ -n $MLE_CHECKPOINT ]]; then
        beside=$(dirname "$MLE_CHECKPOINT")
        if ((JOINED)); then
            dict+=(--srcdict "$beside/dict.txt")
        else
            dict+=(--srcdict "$beside/dict.$SRC.txt" --tgtdict "$beside/dict.$TGT.txt")
        fi
    fi
    rm -rf data-bin
    fairseq-preprocess --source-lang "$SRC" --target-lang "$TGT" "${dict[@]}" --workers "$JOBS" \
        --trainpref bpe/train --validpref bpe/valid --testpref bpe/test --destdir data-bin
    for file in bpe/{train,valid,test}."$TGT"[1-9]; do
        [[ -e $file ]] || continue # none
        name=${file##*/}
        cp "$file" "data-bin/${name%%.*}.$SRC-$TGT.${name##*.}"
    done
    echo "> $(wc -l <"data-bin/dict.$SRC.txt") dictionary entries"
}

# ---- Models of Hugging Face: HF_MODEL is the folder (absolute) or hub name of the one that a recipe trains

# package NAME WORD...: `python -m esrl_fairseq.NAME`
package() {
    PYTHONPATH=$REPO${PYTHONPATH:+:$PYTHONPATH} python -m "esrl_fairseq.$1" "${@:2}"
}

# hf COMMAND OPTION...
hf() {
    package huggingface "$@"
}

# hf_data OPTION...: clean/ → ids/ → data-bin/, in the words of HF_MODEL's tokenizer
hf_data() {
    rm -rf ids data-bin
    hf data --hf-model "$HF_MODEL" --out ids --source-lang "$SRC" --target-lang "$TGT" "$@" clean/{train,valid,test}.*
    local options=(--source-lang "$SRC" --target-lang "$TGT" --workers "$JOBS" --destdir data-bin)
    options+=(--srcdict "ids/dict.$SRC.txt")
    if [[ -e ids/train.$TGT ]]; then
        fairseq-preprocess "${options[@]}" --tgtdict "ids/dict.$TGT.txt" \
            --trainpref ids/train --validpref ids/valid --testpref ids/test
    else # of the training data there are sources alone
        fairseq-preprocess "${options[@]}" --only-source --trainpref ids/train
        fairseq-preprocess "${options[@]}" --tgtdict "ids/dict.$TGT.txt" --validpref ids/valid --testpref ids/test
    fi
    echo "> $(wc -l <"ids/train.$SRC") training sentences, $(wc -l <"ids/dict.$TGT.txt") words"
}

# hf_export RUN: → RUN-hf, a folder of the Hugging Face library
hf_export() {
    rm -rf "$1-hf" # of an export that was interrupted
    hf export --checkpoint "$1/checkpoint_best.pt" --out "$1-hf"
}

# fairseq leaves out the last (longest) sentences of a data set whose size is not a multiple of
# this, 8 by default, and says nothing: 3 of the demo's 315 test verses.
WHOLE=(--required-batch-size-multiple 1)
KEPT=(--no-epoch-checkpoints) # else: how many epochs' checkpoints are kept
JOBS=1                        # processes that prepare text
JOINED=1
METHODS=(reinforce mrt ppo)

# fairseq_train DATA DIR OPTION...: fairseq-train into DIR, with time and memory in DIR/cost.json; a run
# that was interrupted goes on from DIR/checkpoint_last.pt. (--user-dir also for MLE: without it
# fairseq cannot read its own checkpoints on torch >= 2.6, see esrl_fairseq/compat.py.)
fairseq_train() {
    local data=$1 dir=$2
    shift 2
    set -- "$data" --user-dir "$USER_DIR" --save-dir "$dir" "${WHOLE[@]}" --log-format simple "$@"
    if [[ $PASS == plan ]]; then
        words "${LAUNCHER[@]}" fairseq-train "$@"
    elif ((${#LAUNCHER[@]})); then
        "${LAUNCHER[@]}" "$RECIPES/train.py" --cost "$dir/cost.json" "$@"
    else
        python "$RECIPES/train.py" --cost "$dir/cost.json" "$@"
    fi
}

# train DIR OPTION...: on data-bin
train() {
    fairseq_train data-bin "$1" --source-lang "$SRC" --target-lang "$TGT" "${KEPT[@]}" --log-interval 50 "${@:2}"
}

# mle OPTION...: → mle/checkpoint_best.pt
mle() {
    ((AVERAGE == 0)) || KEPT=(--keep-last-epochs "$AVERAGE")
    train mle --criterion label_smoothed_cross_entropy --seed "$MLE_SEED" "$@" "${MLE_EXTRA[@]}"
}

# take_model FILE: → mle/checkpoint_best.pt
take_model() {
    mkdir -p mle
    cp "$1" mle/checkpoint_best.pt
    chmod u+w mle/checkpoint_best.pt
}

# average N: of mle/'s last N epochs → mle-average/checkpoint_best.pt
average() {
    python "$RECIPES/average.py" --last "$1" mle mle-average/checkpoint_best.pt
}

# decay OPTION...: MLE goes on to convergence → mle-decay/checkpoint_best.pt
decay() {
    train mle-decay --criterion label_smoothed_cross_entropy --seed "$MLE_SEED" \
        --finetune-from-model mle/checkpoint_best.pt "$@" "${MLE_EXTRA[@]}"
}

# esrl OPTION...: from the MLE model (START; none: from HF_MODEL) → $ESRL_RUN/checkpoint_best.pt, best by the reward on valid.
# --finetune-from-model, not --restore-file with --reset-…: it holds for the first launch only, so
# that the same command resumes an interrupted run instead of resetting it.
esrl() {
    local from=()
    [[ -z $START ]] || from=(--finetune-from-model "$START/checkpoint_best.pt")
    train "$ESRL_RUN" --task esrl_translation --criterion esrl --seed "$SEED" "${from[@]}" \
        --best-checkpoint-metric reward --maximize-best-checkpoint-metric \
        "$@" "${ESRL_EXTRA[@]}"
}

# method NAME OPTION...: another method in ESRL's place, from the same model, with as many updates. As
# published: REINFORCE and MRT keep the graph while they sample. PPO compares the probabilities of its
# passes with those of the first, and dropout would make them differ.
method() {
    local run=$ESRL_RUN-$1 options=() word own=(--objective "$1" --capability none)
    for word in "${@:2}"; do
        [[ $1 == ppo && $word == --rescoring-dropout ]] || options+=("$word")
    done
    if [[ $1 == ppo ]]; then own+=(--ppo-level token --ppo-passes 2); else own+=(--sampling standard); fi
    ESRL_RUN=$run esrl "${options[@]}" "${own[@]}" "${COMPARE_EXTRA[@]}"
}

# continue_mle OPTION...: the control, the MLE criterion for as long as ESRL trained. fairseq
# counts the time of the model that a run starts from and of all restarts; both runs start from
# one model, so that the same total is the same time.
continue_mle() {
    local hours=ESRL_HOURS
    if [[ $PASS == run ]]; then
        hours=$(python "$RECIPES/training_hours.py" "$ESRL_RUN/checkpoint_last.pt")
        echo "> until $hours hours of training in all, as $ESRL_RUN"
    fi
    train "$ESRL_RUN-mle-continued" --criterion label_smoothed_cross_entropy --seed "$SEED" \
        --finetune-from-model "$START/checkpoint_best.pt" --stop-time-hours "$hours" "$@" \
        "${MLE_EXTRA[@]}" "${CONTINUE_EXTRA[@]}"
}

# generate RUN OPTION...: the test set, beam 5 and greedy → out/RUN.{beam5,greedy}.txt, detokenised
generate() {
    local run=$1 mode beam out text=(--remove-bpe)
    shift
    [[ -z $HF_MODEL ]] || text=(--bpe hf_tokenizer --hf-tokenizer "$HF_MODEL")
    mkdir -p out
    for mode in beam5 greedy; do
        out=out/$run.$mode
        beam=5
        [[ $mode == beam5 ]] || beam=1
        fairseq-generate data-bin --user-dir "$USER_DIR" --source-lang "$SRC" --target-lang "$TGT" \
            --path "$run/checkpoint_best.pt" --gen-subset test --beam "$beam" --max-tokens 8000 \
            "${WHOLE[@]}" "${text[@]}" --log-format none "$@" >"$out.log"
        outputs "$out.log" >"$out.txt"
        [[ $(wc -l <"$out.txt") == $(wc -l <"clean/test.$TGT") ]] ||
            die "$WORK/$out.txt has not as many lines as clean/test.$TGT"
        [[ -n $HF_MODEL ]] || tail -n 1 "$out.log" | sed 's/^/> tokenised text: /'
    done
}

# outputs LOG: what fairseq-generate wrote, detokenised
outputs() {
    # H-<number>\t<score>\t<text>, in an order that batches chose; D- has the text of a tokenizer of Hugging Face
    if [[ -n $HF_MODEL ]]; then
        grep '^D-' "$1" | sed 's/^D-//' | sort -n | cut -f 3
    else
        grep '^H-' "$1" | sed 's/^H-//' | sort -n | cut -f 3 | sacremoses -l "${TEXT_LANGUAGE:-$TGT}" -q detokenize
    fi
}

# costs RUN...: time and memory of their trainings, from the first one on → out/costs-ESRL_RUN.json
costs() {
    python "$RECIPES/costs.py" --start "$1" --logs logs "$@" >"out/costs-$ESRL_RUN.json"
}

# score RUN...: sacreBLEU and chrF of detokenised text against the text as it was before any
# tokenisation (TEST_SET: against sacreBLEU's own set); paired bootstrap of the others against the
# first, and of ESRL against the others. SACREBLEU_OPTIONS: more of its options.
score() {
    local reference=("clean/test.$TGT") mode run files compared options=(-m bleu chrf -w 2 "${SACREBLEU_OPTIONS[@]}")
    if [[ -n ${TEST_SET:-} ]]; then
        reference=(-t "$TEST_SET" -l "$SRC-$TGT")
        SUMMARY+=(--test-set "$TEST_SET, $SRC-$TGT") # sacreBLEU's signature does not name it
    fi
    costs "$@"
    for mode in beam5 greedy; do
        files=() compared=("out/$ESRL_RUN.$mode.txt")
        for run; do
            sacrebleu "${reference[@]}" -i "out/$run.$mode.txt" "${options[@]}" -f json >"out/$run.$mode.json"
            files+=("out/$run.$mode.txt")
            [[ $run == "$1" || $run == "$ESRL_RUN" ]] || compared+=("out/$run.$mode.txt")
        done
        sacrebleu "${reference[@]}" -i "${files[@]}" "${options[@]}" --paired-bs -f text >"out/compare-$ESRL_RUN.$mode.txt"
        if ((${#compared[@]} > 1)); then
            sacrebleu "${reference[@]}" -i "${compared[@]}" "${options[@]}" --paired-bs -f text \
                >"out/compare-$ESRL_RUN.others.$mode.txt"
        fi
    done
    python "$RECIPES/summary.py" --compare "out/compare-$ESRL_RUN" --out out --of "$ESRL_RUN" \
        --costs "out/costs-$ESRL_RUN.json" "${SUMMARY[@]}" "$@" >"summary-$ESRL_RUN.txt"
}

# score_rouge RUN...: ROUGE of detokenised text against all references as they were before
# tokenisation; paired bootstrap of the others against the first, and of ESRL against the others.
# $SEPARATOR, if set, stands between the sentences of a text.
score_rouge() {
    costs "$@"
    python "$RECIPES/rouge_summary.py" --references "clean/test.$TGT" --out out --of "$ESRL_RUN" \
        --costs "out/costs-$ESRL_RUN.json" --separator "${SEPARATOR:-}" --seed "$SACREBLEU_SEED" "$@" \
        >"summary-$ESRL_RUN.txt"
}

# comet RUN...: COMET of the beam's output → out/RUN.comet.txt (COMET=1; an environment with unbabel-comet)
comet() {
    local run
    for run; do
        comet-score -s "clean/test.$SRC" -r "clean/test.$TGT" -t "out/$run.beam5.txt" \
            --model "$COMET_MODEL" --quiet --only_system >"out/$run.comet.txt"
        sed -n "s|.*score:|> $run: COMET|p" "out/$run.comet.txt"
    done
}

trains mle decay esrl method continue_mle
COMET_MODEL=${COMET_MODEL:-Unbabel/wmt22-comet-da}
HF_MODEL=''
MOSES=() SUMMARY=() SACREBLEU_OPTIONS=() GENERATE=() DECAY=() BPE_FILTER=() CLEAN=()

# fingerprint FILE: of a model, in the settings of what starts from it
fingerprint() {
    if [[ -e $1 ]]; then sha256sum <"$1" | cut -c 1-12; else echo "$1"; fi
}

# Everything, from the data to the summary. A recipe defines fetch_data and sets CLEAN,
# BPE_MERGES, MODEL (the architecture), MLE, ESRL and CONTINUE (options of fairseq-train), and where
# needed DECAY (MLE's second part), AVERAGE, GENERATE (options of fairseq-generate), SCORE (score_rouge in the
# place of score), FETCH (what the data depend on), CLEAN_STEP and TOKENISE (functions; CLEAN_DOES says what), WORDS_STEPS and
# DEPLOY_STEPS (functions of steps: clean/ → data-bin/; after the translations) and TEXT_LANGUAGE (of both sides, where SRC and TGT
# do not name languages).
run_recipe() {
    check_start
    [[ $COMET == 0 ]] || command -v comet-score >/dev/null ||
        lacks "COMET=1 needs comet-score: pip install 'unbabel-comet>=2.2.7' (an environment of its own)"
    run_steps recipe_steps
}

# check_start: MLE_CHECKPOINT and what lies beside it are there, as long as they are needed
check_start() {
    local file beside dicts=(dict.txt)
    [[ -n $MLE_CHECKPOINT ]] || return 0
    AVERAGE=0 # nothing is trained whose epochs could be averaged
    [[ ! -e $WORK/steps/mle.done || -n $FROM ]] || return 0
    beside=$(dirname "$MLE_CHECKPOINT")
    ((JOINED)) || dicts=("dict.$SRC.txt" "dict.$TGT.txt")
    local needs=(bpe.codes "${dicts[@]}")
    [[ -z ${HF_MODEL:-} ]] || needs=(model/config.json) # its words are in its folder
    for file in "$MLE_CHECKPOINT" "${needs[@]/#/$beside/}"; do
        [[ -f $file ]] || die "MLE_CHECKPOINT is '$MLE_CHECKPOINT', but there is no file $file" \
            "(the model needs ${needs[*]} beside it)"
    done
}

# stops_after WHAT MODEL: whether the recipe stops here, as ESRL_STOP_AFTER says
stops_after() {
    [[ $STOP_AFTER == "$1" ]] || return 1
    finish "The model is $WORK/$2." "Next: the same command without ESRL_STOP_AFTER goes on with what follows."
}

recipe_steps() {
    about 'get the data, one raw file for each split and language' '' 'raw' "${DISK[fetch]:-}" "${TIMES[fetch]:-}"
    step fetch "${FETCH:-}" fetch_data
    about "${CLEAN_DOES:-drop what is no good training pair}" raw/ "clean$([[ -z ${TOKENISE:-} ]] || echo ' tok')" "${DISK[clean]:-}" "${TIMES[clean]:-}"
    step clean "${CLEAN[*]}" "${CLEAN_STEP:-clean}" "${CLEAN[@]}"
    "${WORDS_STEPS:-bpe_steps}"
    start_steps
    ! stops_after mle "$START/checkpoint_best.pt" || return 0
    training_steps
    ! stops_after esrl "$ESRL_RUN/checkpoint_last.pt" || return 0
    table_steps
}

bpe_steps() {
    if [[ -n ${TOKENISE:-} ]]; then
        about "learn $BPE_MERGES merges of sub-words, apply them" tok/ bpe "${DISK[bpe]:-}" "${TIMES[bpe]:-}"
    else
        about "tokenise, learn $BPE_MERGES merges of sub-words, apply them" clean/ 'tok bpe' "${DISK[bpe]:-}" "${TIMES[bpe]:-}"
    fi
    step bpe "$BPE_MERGES $MLE_CHECKPOINT" bpe "$BPE_MERGES"
    about "write fairseq's binary form" bpe/ data-bin "${DISK[binarize]:-}" "${TIMES[binarize]:-}"
    step binarize "$MLE_CHECKPOINT" binarize
}

# The model that ESRL starts from: START
start_steps() {
    local settings="$MLE_SEED $MLE_CHECKPOINT ${MODEL[*]} ${MLE[*]} ${MLE_EXTRA[*]}"
    START=mle
    about "train by likelihood (MLE)" data-bin/ mle "${DISK[mle]:-}" "${TIMES[mle]:-}"
    if [[ -n $MLE_CHECKPOINT ]]; then
        about "take the model of MLE_CHECKPOINT" "$MLE_CHECKPOINT" mle "${DISK[mle]:-}"
        step mle "$settings" take_model "$MLE_CHECKPOINT"
    else
        ((AVERAGE == 0)) || settings+=" $AVERAGE"
        step mle "$settings" mle "${MODEL[@]}" "${MLE[@]}"
    fi
    if ((AVERAGE)); then
        START=mle-average
        about "average the models of MLE's last $AVERAGE epochs" mle/ mle-average "${DISK[average]:-}"
        step mle-average "$AVERAGE" average "$AVERAGE"
    fi
    if [[ -n ${DECAY[*]:-} ]]; then
        START=mle-decay
        about "MLE goes on, its learning rate falling to zero" "data-bin/ mle/" mle-decay "${DISK[decay]:-}" "${TIMES[decay]:-}"
        step mle-decay "$MLE_SEED ${MODEL[*]} ${DECAY[*]} ${MLE_EXTRA[*]}" decay "${MODEL[@]}" "${DECAY[@]}"
    fi
}

# ESRL, and what it is compared with: RUNS
training_steps() {
    local start run name
    start="from $(fingerprint "$WORK/$START/checkpoint_best.pt"), seed $SEED, ${MODEL[*]}"
    RUNS=("$START" "$ESRL_RUN")
    about "train with ESRL on the reward" "data-bin/ $START/" "$ESRL_RUN" "${DISK[esrl]:-}" "${TIMES[esrl]:-}"
    step "$ESRL_RUN" "$start ${ESRL[*]} ${ESRL_EXTRA[*]}" esrl "${MODEL[@]}" "${ESRL[@]}"
    [[ $STOP_AFTER == score ]] || return 0
    if [[ $MLE_CONTINUED == 1 ]]; then
        run=$ESRL_RUN-mle-continued
        about "the control: MLE for as long as ESRL trained" "data-bin/ $START/" "$run" "${DISK[esrl]:-}" "${TIMES[esrl]:-}"
        step "$run" "$start ${CONTINUE[*]} ${MLE_EXTRA[*]}${CONTINUE_EXTRA[*]:+ ${CONTINUE_EXTRA[*]}}" continue_mle "${MODEL[@]}" "${CONTINUE[@]}"
        RUNS+=("$run")
    fi
    [[ $COMPARE == 1 ]] || return 0
    for name in "${METHODS[@]}"; do
        run=$ESRL_RUN-$name
        about "${name^^} in ESRL's place, as many updates" "data-bin/ $START/" "$run" "${DISK[esrl]:-}"
        step "$run" "$start ${ESRL[*]} ${ESRL_EXTRA[*]} ${COMPARE_EXTRA[*]}" method "$name" "${MODEL[@]}" "${ESRL[@]}"
        RUNS+=("$run")
    done
}

table_steps() {
    local run options=("${GENERATE[@]}" "${GENERATE_EXTRA[@]}")
    for run in "${RUNS[@]}"; do
        about "translate the test set, beam 5 and greedy" "data-bin/ $run/" "out/$run.beam5.* out/$run.greedy.*" 10
        step "generate-$run" "${options[*]}" generate "$run" "${options[@]}"
    done
    "${DEPLOY_STEPS:-:}"
    if [[ $COMET != 0 ]]; then
        about "COMET of the translations" out/ "out/*.comet.txt" "" ""
        step "comet-$ESRL_RUN-${#RUNS[@]}" "$COMET_MODEL" comet "${RUNS[@]}"
    fi
    about "scores, paired bootstrap and the table" "out/ clean/test.$TGT" "summary-$ESRL_RUN.txt out/compare-$ESRL_RUN.*" 1
    step "score-$ESRL_RUN-${#RUNS[@]}" "$SACREBLEU_SEED" "${SCORE:-score}" "${RUNS[@]}"
    running || return 0
    cat "summary-$ESRL_RUN.txt"
    last_words
}

last_words() {
    local more="SEED=$((SEED + 1)) in front of the same command: another seed from the same start model"
    if [[ $MLE_CONTINUED == 0 ]]; then
        more="MLE_CONTINUED=1 in front of the same command: how much of the gain more MLE brings, too"
    elif [[ $COMPARE == 0 ]]; then
        more="COMPARE=1 in front of the same command: REINFORCE, MRT and PPO beside it"
    fi
    finish "The model is        $WORK/$ESRL_RUN/checkpoint_best.pt (it started from $START/checkpoint_best.pt)," \
        "its output for test $WORK/out/$ESRL_RUN.beam5.txt, and the table $WORK/summary-$ESRL_RUN.txt." \
        "Next: $more."
}
