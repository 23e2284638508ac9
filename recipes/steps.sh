# shellcheck shell=bash
# The words of a recipe's command line, its plan and its steps; lib.sh has what the steps do.
#
# Every step runs through `step`, which keeps, in $WORK/steps:
#     NAME.settings   what the step was begun with; another call with other settings is refused
#     NAME.done       written after success only: a finished step is not repeated
# and its whole output in $WORK/logs/NAME.log.
#
# A recipe's steps are a function that `run_steps` calls up to three times: PASS is `names` (every
# step says its name), `plan` (what it would do) and `run`. Between two steps nothing may be written.

die() {
    echo "error: $*" >&2
    exit 1
}

PASS=run UNTIL='' FROM=''
STEPS=()    # all names, in order
NOTES=()    # what the plan says at its end
PLANNED=()  # functions that only print their command in the plan (see `trains`)
REACHED=0   # 1: the step of --from has been reached
FINISHED=0  # 1: the step of --until is over
REPLACED='' # where --from moved what was there
NUMBER=0 TOTAL_MB=0

# The head of the recipe's file, then what holds for all.
usage() {
    sed -n '2,/^[^#]/ { /^#/!d; /shellcheck/d; s/^# \{0,1\}//; p; }' "${BASH_SOURCE[-1]}"
    cat <<'END'

Words:
  --dry-run      the plan: each step with its command, what it reads and writes, disk and state; writes nothing
  --until STEP   stop when STEP is over
  --from STEP    do STEP and all that follow once more; what they had made is moved to replaced/
  --help         this text

All else is set by variables in front of the command, such as ESRL_WORK_DIR (where everything is written),
ESRL_DATA_DIR (a folder with the raw files), SEED, MLE_ARGS and ESRL_ARGS (more options for fairseq-train):
recipes/README.md lists them.
END
}

# read_words WORD...: those of the command line
read_words() {
    while (($#)); do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run) PASS=plan ;;
            --until=* | --from=*) # as two words
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            --until | --from)
                [[ -n ${2:-} && $2 != -* ]] || die "$1 needs the name of a step, which --dry-run shows"
                if [[ ($1 == --until && -n $UNTIL) || ($1 == --from && -n $FROM) ]]; then
                    die "$1 is given twice"
                fi
                [[ $1 == --until ]] && UNTIL=$2 || FROM=$2
                shift
                ;;
            *) die "'$1' is no word of a recipe; it takes --dry-run, --until STEP, --from STEP and --help," \
                "and all else is set by variables (--help)" ;;
        esac
        shift
    done
}

# run_steps FUNCTION: the steps that FUNCTION has, as the words say
run_steps() {
    local names word
    [[ $1 == recipe_steps || $MLE_CONTINUED == 0 ]] ||
        die "MLE_CONTINUED and COMPARE are for recipes that train ESRL from a model of likelihood; leave them out"
    not_read "$1"
    names=$(PASS=names "$@")
    mapfile -t STEPS <<<"$names"
    word=$(sort <<<"$names" | uniq -d | head -n 1)
    [[ -z $word ]] || die "ESRL_RUN is '$ESRL_RUN', which gives two steps the name '$word': choose another"
    for word in "$UNTIL" "$FROM"; do
        [[ -z $word ]] || position "$word" >/dev/null ||
            die "there is no step '$word'; the steps are ${STEPS[*]} ($ESRL_RUN is that of ESRL)"
    done
    if [[ -n $UNTIL && -n $FROM ]] && (($(position "$UNTIL") < $(position "$FROM"))); then
        die "--until $UNTIL comes before --from $FROM"
    fi
    [[ -z $FROM ]] || check_from
    check_data
    [[ $PASS == plan ]] || take_lock
    [[ -e $WORK/steps/${STEPS[0]}.settings ]] || check_options "$@"
    if [[ $PASS == plan ]]; then
        print_plan "$@"
        return
    fi
    echo "$RECIPE" 2>/dev/null >steps/recipe || die "$WORK cannot be written ($(free_mb "$WORK") MB are free)"
    say_space "$@"
    STEP=
    trap on_exit EXIT
    "$@"
}

# position NAME: of a step; fails where there is none
position() {
    local i
    for i in "${!STEPS[@]}"; do
        [[ ${STEPS[i]} != "$1" ]] || { echo "$i" && return 0; }
    done
    return 1
}

# check_from: what comes before --from is done
check_from() {
    local name
    for name in "${STEPS[@]}"; do
        [[ $name != "$FROM" ]] || return 0
        [[ -e $WORK/steps/$name.done ]] ||
            die "--from $FROM: step $name, which comes before, is not done; leave --from out"
    done
}

# check_options FUNCTION: those that users gave are fairseq's; told now rather than after hours
check_options() {
    local told status=0
    [[ -n ${MLE_EXTRA[*]}${ESRL_EXTRA[*]}${COMPARE_EXTRA[*]}${CONTINUE_EXTRA[*]}${GENERATE_EXTRA[*]}${REWARD_EXTRA[*]:-} ]] || return 0
    echo "The options that were given are checked (this loads fairseq) ..."
    told=$(in_plan "$@" | python "$RECIPES/options.py" "$USER_DIR" 2>/dev/null) || status=$?
    ((status != 3)) || die "$told (look at MLE_ARGS, ESRL_ARGS, COMPARE_ARGS, CONTINUE_ARGS, GENERATE_ARGS, REWARD_ARGS)"
}

# The lock is that of an open file, which the processes of a run inherit: it is free when the last ends.
take_lock() {
    exec 9>>"$WORK/steps/lock"
    python -c 'import fcntl, sys, time
for left in range(30, -1, -1):  # what was killed just now may need a moment to be gone
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        if not left:
            sys.exit(1)
        time.sleep(0.1)
    except OSError as error:
        print(f"warning: this folder cannot be locked, and a second run is not noticed: {error}", file=sys.stderr)
        break' ||
        die "another run works in $WORK, or a process that it left is not over: wait for its end," \
            "or choose another ESRL_WORK_DIR"
}

on_exit() {
    local status=$? log=$WORK/logs/$STEP.log free
    [[ $status -ne 0 && -n $STEP ]] || return 0
    free=$(free_mb "$WORK")
    {
        if ((free == 0)) || grep -q -i -s 'no space left on device' "$log"; then
            echo "error: the disk of $WORK is full ($free MB are free): make room first"
        elif [[ -e $log ]]; then
            echo "--- the last lines of $log"
            tail -n 15 "$log"
        fi
        echo "error: step $STEP failed. The same command${FROM:+ without --from} goes on from here."
    } >&2
}

# size MB: in words
size() {
    if (($1 < 10000)); then echo "$1 MB"; else echo "$((($1 + 500) / 1000)) GB"; fi
}

# in_plan FUNCTION: its steps are counted, not made
in_plan() {
    local PASS=plan
    "$@"
}

# say_space FUNCTION: before the first step of all, a warning if the disk will not do by the plan's estimates
say_space() {
    local needed free
    [[ ! -e steps/${STEPS[0]}.settings ]] || return 0
    needed=$(in_plan "$@" >/dev/null; echo "$TOTAL_MB")
    free=$(free_mb "$WORK")
    ((needed <= free)) ||
        echo "warning: this needs about $(size "$needed") of disk (estimated), and $(size "$free") are free" >&2
}

# about DOES READS WRITES [MB] [TIME]: of the next step: a sentence; files and folders, separated by
# blanks; disk and time, both estimates
about() {
    DOES=$1 READS=$2 WRITES=$3 MB=${4:-} TAKES=${5:-}
}

# step NAME SETTINGS COMMAND...
step() {
    local name=$1 settings=$2 begun=$SECONDS
    shift 2
    case $PASS in
        names)
            echo "$name"
            return
            ;;
        plan)
            plan_step "$name" "$settings" "$@"
            return
            ;;
    esac
    ((FINISHED == 0)) || return 0
    [[ -z $FROM ]] || begin_from "$name"
    if [[ $(state_of "$name" "$settings") == other ]]; then
        die "step $name in $WORK was begun with other settings:
$(diff <(tr ' ' '\n' <"steps/$name.settings") <(tr ' ' '\n' <<<"$settings") |
            sed -n 's/^< /    then: /p; s/^> /    now:  /p')
Choose another ESRL_WORK_DIR (for ESRL alone another ESRL_RUN), or delete that one."
    fi
    if [[ -e steps/$name.done ]]; then
        printf '[%5d s] %s: done before\n' "$SECONDS" "$name"
    else
        printf '[%5d s] %s\n' "$SECONDS" "$name"
        STEP=$name
        echo "$settings" >"steps/$name.settings.part" # a full disk leaves no half of it
        mv "steps/$name.settings.part" "steps/$name.settings"
        # At Ctrl-C a training saves its state and says so: its listeners have to stay.
        ("$@") 2>&1 | (trap '' INT && exec tee "logs/$name.log") | (trap '' INT && progress)
        touch "steps/$name.done"
        STEP=
        printf '[%5d s] %s: done in %d s\n' "$SECONDS" "$name" $((SECONDS - begun))
    fi
    if [[ $name == "$UNTIL" ]]; then
        FINISHED=1
        printf '[%5d s] stopped after step %s, as --until says; it wrote: %s (in %s)\n' \
            "$SECONDS" "$name" "${WRITES:-?}" "$WORK"
        echo "Next: the same command without --until goes on with what follows."
    fi
}

# state_of NAME SETTINGS: done, begun, other (begun with other settings) or todo
state_of() {
    local file=$WORK/steps/$1
    if [[ ! -e $file.settings ]]; then
        echo todo
    elif [[ $(<"$file.settings") != "$2" ]]; then
        echo other
    elif [[ -e $file.done ]]; then
        echo "done"
    else
        echo begun
    fi
}

# begin_from NAME: for --from: what follows is put away
begin_from() {
    [[ $1 != "$FROM" ]] || REACHED=1
    if ((REACHED)) && [[ -e steps/$1.settings ]]; then put_away "$1"; fi
}

# put_away NAME: what a step wrote, to replaced/NUMBER. Its marks go first, so that it counts as not done.
put_away() {
    local path
    if [[ -z $REPLACED ]]; then
        REPLACED=1
        while [[ -e replaced/$REPLACED ]]; do ((++REPLACED)); done
        REPLACED=replaced/$REPLACED
        mkdir -p "$REPLACED"
        echo "What there is of the steps from $FROM on is moved to $WORK/$REPLACED; delete that if you need it no more."
    fi
    rm -f "steps/$1.done" "steps/$1.settings"
    for path in $WRITES; do # globs, too
        [[ -e $path ]] || continue
        path=${path%/}
        mkdir -p "$REPLACED/$(dirname "$path")"
        mv "$path" "$REPLACED/$path"
    done
}

# running: whether the recipe runs and all its steps are over
running() {
    [[ $PASS == run ]] && ((FINISHED == 0))
}

# finish LINE...: the recipe's end: where things are, and what comes next
finish() {
    running || return 0
    printf '[%5d s] done\n' "$SECONDS"
    printf '%s\n' "$@"
}

# ---- The plan

print_plan() {
    echo "Plan of recipe $RECIPE, in $WORK${PLAN_HEAD:+; $PLAN_HEAD}"
    echo "(fairseq-train is a program; other commands are functions of recipes/lib.sh and of the recipe)"
    "$@"
    local free
    free=$(free_mb "$WORK")
    echo
    ((TOTAL_MB == 0)) ||
        echo "What is left to do needs about $(size "$TOTAL_MB") of disk (estimated); $(size "$free") are free."
    ((TOTAL_MB <= free)) || NOTES+=("the disk of $WORK has too little room: free some, or set ESRL_WORK_DIR to another")
    ((${#NOTES[@]} == 0)) || printf 'Note: %s\n' "${NOTES[@]}"
    echo "Nothing was written. The same command without --dry-run does it."
}

# plan_step NAME SETTINGS COMMAND...
plan_step() {
    local name=$1 state told='' from=${ESRL_DATA_DIR:-${ESRL_MIRROR:-}}
    ((FINISHED == 0)) || return 0
    state=$(state_of "$name" "$2")
    shift 2
    ((++NUMBER))
    [[ $name != "$FROM" ]] || REACHED=1
    if ((REACHED == 1)) && [[ $state != todo ]]; then state=again; fi
    case $state in
        todo) state='to do' ;;
        begun) state='begun, goes on' ;;
        other) state='begun with other settings: a run would refuse it' ;;
        again) state='once more (--from); what is there is moved to replaced/' ;;
    esac
    [[ $state == "done" ]] || ((TOTAL_MB += ${MB:-0})) || true
    printf '\n%2d. %-24s %s\n' "$NUMBER" "$name" "$state"
    [[ -z $DOES ]] || echo "    $DOES"
    if [[ $1 == fetch_data ]]; then
        told=$(sources "$@")
        [[ -n $READS ]] || READS=${from:-${told:+the internet}}
    fi
    [[ -z $READS$WRITES ]] || echo "    reads ${READS:-nothing}; writes ${WRITES:-nothing}"
    [[ -z $MB$TAKES ]] || echo "    estimated: ${MB:+$(size "$MB") of disk}${MB:+${TAKES:+, }}$TAKES"
    if [[ " ${PLANNED[*]} " == *" $1 "* ]]; then
        ("$@")
    elif [[ -n $told ]]; then
        echo "$told"
    else
        words "$@"
    fi
    about '' '' ''
    [[ $name != "$UNTIL" ]] || FINISHED=1
}

# trains FUNCTION...: functions whose command the plan shows: all that they do goes through fairseq_train
trains() {
    PLANNED+=("$@")
}

# words WORD...: as one could type them, in lines of the plan; an option and its value stay together
words() {
    local word group='' line='    $'
    for word in "$@" --; do
        case $word in
            '') word="''" ;;
            *[!A-Za-z0-9_./:=,@%+*-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        if [[ $word == -* ]] || ((${#group} + ${#word} > 100)); then
            if ((${#line} + ${#group} > 105)) && [[ $line == *[!\ \$]* ]]; then
                echo "$line \\"
                line='     '
            fi
            line+=$group group=''
        fi
        group+=" $word"
    done
    echo "$line"
}

# sources FUNCTION: what it would download, unpack and filter. It is called where nothing can be written:
# a restricted shell that finds no program; `download` and the like say what they were told.
sources() {
    (
        exec 3>&1 >/dev/null 2>&1
        set +e
        hash -r
        # shellcheck disable=SC2329 # bash calls it
        command_not_found_handle() { :; }
        # shellcheck disable=SC2123 # it is meant
        PATH=/nonexistent
        set -r
        "$@"
    ) || true
}

# free_mb PATH: of the disk that PATH lies on, or would lie on
free_mb() {
    local path=$1
    while [[ ! -e $path ]]; do path=$(dirname "$path"); done
    df -Pk "$path" | awk 'NR == 2 { printf "%d\n", $4 / 1024 }'
}

# Of a step's output, what tells how far it is: lines of recipes ('> …'), of esrl_fairseq, log intervals,
# validations and warnings.
progress() {
    sed -u -n -E '/^(> |error: )|\| (INFO \| (train_inner|valid|esrl_fairseq[.a-z_]*) \||WARNING \|)/ {
        s/^[0-9-]+ ([0-9:]+) \| (INFO|WARNING) \| /\1 /; s/^/          /; s/^(.{400}).*/\1…/; p
    }'
}

about '' '' ''
