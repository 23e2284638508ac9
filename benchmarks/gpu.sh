#!/usr/bin/env bash
# What a GPU makes of this package: checks, tests, tables, a profile and the demo, in under half an hour.
#
#     benchmarks/gpu.sh                    all parts
#     benchmarks/gpu.sh tables profile     these
#     benchmarks/gpu.sh --dry-run          print the commands
#     benchmarks/gpu.sh --device cpu --quick    try the script itself, with tiny sizes
#
# See benchmarks/README.md.
set -euo pipefail

BENCHMARKS=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$BENCHMARKS")
PARTS=(check tests tables profile compiled demo report)
declare -A LIMITS=([check]=60 [tests]=420 [tables]=540 [profile]=150 [compiled]=180 [demo]=390 [report]=60) # seconds
HELP="usage: benchmarks/gpu.sh [PART...] [--device cuda|cpu] [--quick] [--output FOLDER] [--dry-run]
parts, all of them by default: ${PARTS[*]}
  --device cpu    without a GPU: with --quick, to try the script
  --quick         tiny sizes, and of the tests one file
  --output FOLDER results and logs (runs/gpu); a part that is run again replaces its own
  --dry-run       print the commands only"

usage() {
    echo "error: $1" >&2
    echo "$HELP" >&2
    exit 2
}

options() {
    DEVICE=cuda QUICK=0 DRY=0 OUT=$REPO/runs/gpu CHOSEN=()
    while (($#)); do
        case $1 in
            --device | --output)
                [[ $# -gt 1 ]] || usage "$1 needs a value"
                if [[ $1 == --device ]]; then DEVICE=$2; else OUT=$2; fi
                shift
                ;;
            --quick) QUICK=1 ;;
            --dry-run) DRY=1 ;;
            -h | --help)
                echo "$HELP"
                exit
                ;;
            *)
                [[ " ${PARTS[*]} " == *" $1 "* ]] || usage "there is no part '$1'"
                CHOSEN+=("$1")
                ;;
        esac
        shift
    done
    [[ $DEVICE == cuda || $DEVICE == cpu ]] || usage "--device is '$DEVICE', but must be cuda or cpu"
    [[ ${#CHOSEN[@]} -gt 0 ]] || CHOSEN=("${PARTS[@]}")
    [[ $OUT == /* ]] || OUT=$PWD/$OUT
    # Of a table: Transformer-base with 32,000 words, 64 × 8 samples of 30 tokens.
    SIZES=(--params 60M --inputs 64 --length 30 --rounds 2)
    K=8 PEER=6.7M
    if ((QUICK)); then
        SIZES=(--params tiny --inputs 3 --length 4 --rounds 1)
        K=2 PEER=tiny
    fi
    WHERE=(--device "$DEVICE" --dtype bf16)
}

# run NAME COMMAND...: within the part's time, its output to logs/NAME.log; the part goes on after a failure.
run() {
    local name=$1 left=$((LIMITS[$PART] - SECONDS + BEGUN)) status=0
    shift
    if ((DRY)); then
        printf '%q ' "$@"
        echo
        return
    fi
    ((left > 0)) || left=1
    timeout --kill-after 10 "$left" "$@" 2>&1 | tee "$OUT/logs/$name.log" || status=$?
    if ((status == 124 || status == 137)); then
        echo "error: $name did not end within its part's ${LIMITS[$PART]} s" >&2
    elif ((status)); then
        echo "error: $name failed, see $OUT/logs/$name.log" >&2
    fi
    ((!status)) || FAILED=1
}

# table SCRIPT OPTION...: one table of benchmarks/
table() {
    run "$1" python "$BENCHMARKS/$1.py" "${SIZES[@]}" --k "$K" "${WHERE[@]}" --json "$OUT/$1.json" "${@:2}"
}

check() {
    run check python "$BENCHMARKS/gpu.py" check "$OUT" --device "$DEVICE"
}

# The commands that train are run on the device. Ranks are left out, which would share it.
tests() {
    local files=(tests/commands tests/test_criterion.py tests/test_amp.py tests/rescoring tests/sampling) workers=()
    if ((QUICK)); then
        files=(tests/sampling/test_steps.py)
    elif python -c "import xdist" 2>/dev/null; then
        workers=(-n 6 --dist loadfile)
    fi
    local chosen=(-m "not long" -k "not rank and not kill" "${workers[@]}" --junitxml "$OUT/tests.xml")
    ((DRY)) || rm -f "$OUT/tests.xml"
    run tests env OMP_NUM_THREADS=1 ESRL_TEST_DEVICE="$DEVICE" python -m pytest -q "${chosen[@]}" "${files[@]}"
    run tests-json python "$BENCHMARKS/gpu.py" tests "$OUT"
}

tables() {
    local engines=(esrl sequence_generator transformers ctranslate2)
    if ((QUICK)); then engines=(esrl); fi
    table update --methods two_stage selected standard_kv
    table stage_one --engines "${engines[@]}"
    table epoch --batches 4
    table precision --dtype fp32 # the weights that the others are made of
    if python -c "import trl" 2>/dev/null; then
        table peers --params "$PEER" --rounds 1 --timeout 120 # float32, as TRL trains
    else
        echo "peers: left out, since its extra is not installed (pip install -e '.[hf,peers]')"
    fi
}

profile() {
    table profile_update --text "$OUT/profile.txt"
}

# Stage one with and without --compile-decoding; compiling is not measured, but takes its time.
compiled() {
    run compiled python "$BENCHMARKS/stage_one.py" "${SIZES[@]}" --rounds 1 --k "$K" "${WHERE[@]}" \
        --engines esrl esrl_compiled --json "$OUT/compiled.json"
}

demo() {
    local options=--fp16 epochs=6 updates=120 stop=score esrl
    if [[ $DEVICE == cpu ]]; then options="--cpu --bf16"; fi # fp16 needs a GPU
    esrl=$options
    if ((QUICK)); then
        epochs=1 updates=2 stop=esrl options+=" --max-update 2" esrl+=" --disable-validation"
    fi
    run demo env ESRL_WORK_DIR="$OUT/demo" MLE_EPOCHS="$epochs" ESRL_UPDATES="$updates" \
        MLE_CONTINUED=0 ESRL_STOP_AFTER="$stop" MLE_ARGS="$options" ESRL_ARGS="$esrl" "$REPO/recipes/demo/run.sh"
    run demo-json python "$BENCHMARKS/gpu.py" demo "$OUT"
}

report() {
    run report python "$BENCHMARKS/gpu.py" report "$OUT"
}

main() {
    local part failed=()
    options "$@"
    if [[ -z ${VIRTUAL_ENV:-} && -x $REPO/.venv/bin/python ]]; then
        PATH=$REPO/.venv/bin:$PATH
    fi
    cd "$REPO"
    if ((!DRY)); then
        # Without the device no part is worth its time; a report needs none.
        [[ ${CHOSEN[*]} == report ]] || python "$BENCHMARKS/gpu.py" device --device "$DEVICE" || exit 1
        mkdir -p "$OUT/logs"
    fi
    for part in "${CHOSEN[@]}"; do
        PART=$part BEGUN=$SECONDS FAILED=0
        echo "=== $part (at most ${LIMITS[$part]} s)"
        "$part"
        ((!FAILED)) || failed+=("$part")
        ((DRY)) || printf '{"part": "%s", "failed": %d, "seconds": %d, "quick": %d}\n' \
            "$part" "$FAILED" $((SECONDS - BEGUN)) "$QUICK" >"$OUT/$part.part.json"
    done
    if ((${#failed[@]})); then
        echo "error: failed: ${failed[*]}; logs are in $OUT/logs" >&2
        exit 1
    fi
}

main "$@"
