"""Each recipe from its download to its table, with small archives of the original's layout and tiny
models, from addresses file://, in folders with blanks in their names."""

import json
import re

import pytest
from recipe_stand_ins import SETTINGS, Recipe, iwslt14, table

pytestmark = pytest.mark.long


COMPARED = ["mle-average", *(f"esrl-s1{end}" for end in ("", "-mle-continued"))]


def test_iwslt14_with_all_methods(tmp_path):
    _, test = iwslt14(tmp_path / "once more")
    recipe = Recipe("iwslt14_de_en", tmp_path)
    result, work = recipe(COMPARE="1", COMPARE_ARGS="--batch-size 8"), recipe.work
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


def test_two_ranks(tmp_path):
    """LAUNCH starts the trainings alone; an update has as many tokens as with one rank."""
    launch = {"LAUNCH": "torchrun --standalone --nproc-per-node 2", "GPUS": "2"}
    recipe = Recipe("iwslt14_de_en", tmp_path)
    result, work = recipe("--until", "esrl-s1", AVERAGE="0", **launch), recipe.work
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    for name in ("mle", "esrl-s1"):
        log = (work / "logs" / f"{name}.log").read_text(encoding="utf-8")
        assert "training on 2 devices" in log
        assert (work / name / "cost.json").exists()
    assert "max tokens per device = 2048" in (work / "logs" / "mle.log").read_text()


def test_wmt14(tmp_path):
    recipe = Recipe("wmt14_en_de", tmp_path)
    result, work = recipe(MLE_CONTINUED="1"), recipe.work
    _, summary = table(result, work, COMPARED)
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp" in summary
    assert "test set: sacreBLEU's wmt14/full, en-de" in summary
    assert "@-@" in (work / "tok" / "train.de").read_text() or "&amp;" in (
        work / "tok" / "train.en"
    ).read_text(encoding="utf-8")
    assert not (work / "raw" / "unpacked").exists()


@pytest.mark.parametrize("name", ["wmt18_de_en", "wmt18_en_de"])
def test_wmt18(name, tmp_path):
    """ParaCrawl's share is filtered; another choice of it is refused, and planned so."""
    recipe = Recipe(name, tmp_path)
    result, work = recipe(), recipe.work
    table(result, work, COMPARED[:2])
    log = (work / "logs" / "fetch.log").read_text(encoding="utf-8")
    assert re.search(r"filtered: \d+ of 60 pairs", log) and "train: " in log
    result = recipe(PARACRAWL="0")
    assert result.returncode == 1 and "then: PARACRAWL=1" in result.stderr


def test_cnn_dm(tmp_path):
    recipe = Recipe("cnn_dm", tmp_path)
    result, work = recipe(MLE_CONTINUED="1"), recipe.work
    runs = ["mle-decay", "esrl-s1", "esrl-s1-mle-continued"]
    _, summary = table(result, work, runs)
    assert "RLsum" in summary and summary.count("esrl-s1 against ") == 2 and "peak MB" in summary


def test_demo(tmp_path):
    """With the control in its table, and the verdict in words."""
    recipe = Recipe("demo", tmp_path)
    arguments = f"{SETTINGS['MLE_ARGS']} --max-update 4"
    result, work = recipe(MLE_EPOCHS="1", MLE_ARGS=arguments), recipe.work
    runs = ["mle", "esrl-s1", "esrl-s1-mle-continued"]
    _, summary = table(result, work, runs)
    assert "esrl-s1 against esrl-s1-mle-continued: " in summary


def test_rlhf_llama(tmp_path):
    recipe = Recipe("rlhf_llama", tmp_path)
    result, work = recipe(), recipe.work
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert "validation reward: start" in (work / "summary-esrl-s1.txt").read_text()
    assert len((work / "out" / "esrl-s1.txt").read_text().splitlines()) == 1000
    assert (work / "esrl-s1-hf" / "config.json").exists() and "Next: " in result.stdout
