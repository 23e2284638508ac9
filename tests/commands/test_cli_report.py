"""The record of a run, ``--show-samples``, and the page that ``esrl-report`` makes of them."""

import json
import re
import runpy
import sys

import pytest
from command_lines import JOINED, MODEL, esrl_options

from esrl_fairseq.monitoring.record import FILE, read_record

UPDATES = 14
"""An epoch has 10."""


def options(corpus, start, save_dir):
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", start],
        "--check-start warn --lr 1e-3 --reward bleu:0.5+chrf:0.5 --show-samples 2",
        "--num-samples 4 --elimination-ratio 0.5 --min-sample-temperature 0.8",
        "--best-checkpoint-metric reward --maximize-best-checkpoint-metric --no-epoch-checkpoints",
        f"--validate-interval-updates 7 --max-update {UPDATES}",
    ]


@pytest.fixture(scope="module")
def run(commands, corpus, mle):
    """A run's folder, and what it printed."""
    save_dir = commands.folder / "recorded"
    return save_dir, commands.succeed("fairseq-train", *options(corpus, mle, save_dir))


@pytest.fixture
def records(run):
    return list(read_record(run[0] / FILE))


def of(records, kind):
    return [record for record in records if record["kind"] == kind]


def test_the_record_tells_what_fairseq_logs(run, records):
    (begin,) = of(records, "begin")
    assert begin["command"].startswith("fairseq-train ") and not begin["resumed"]
    assert begin["reward"].startswith("0.5 * bleu|") and "--num-samples 4" in begin["options"]
    assert begin["start"]["option"] == "--finetune-from-model" and begin["inputs"] == 200
    updates = of(records, "update")
    assert [record["at"] for record in updates] == list(range(1, UPDATES + 1))
    for record, logged in zip(updates, run[1].logged("train_inner")):
        for name in ("reward", "baseline", "entropy", "length_ratio", "samples", "temperature"):
            assert record[name] == pytest.approx(logged[name], abs=2e-4), name
        assert record["lr"] == pytest.approx(logged["lr"])
        of_stages = [record[f"seconds_{name}"] for name in ("stage_one", "reward", "stage_two")]
        assert record["seconds_update"] > sum(of_stages) - 0.005  # rounded
    validations = of(records, "validation")
    assert [(record["at"], record["subset"]) for record in validations] == [
        (0, "valid"),
        (7, "valid"),
        (10, "valid"),
        (14, "valid"),
    ]
    logged = run[1].logged("valid")
    assert [v["stats"]["reward"] for v in validations] == [v["reward"] for v in logged]
    assert records[-1]["kind"] == "end" and "validation reward: start" in records[-1]["outcome"]
    assert [record["wall"] for record in records] == sorted(record["wall"] for record in records)


def test_epochs_and_warnings_are_recorded(records):
    first, second = of(records, "epoch")
    assert first["known"] == 0 and second["known"] == 1
    for epoch in (first, second):
        assert sum(epoch["samples"]["counts"]) == sum(epoch["temperature"]["counts"]) == 200
    assert first["samples"]["mean"] == 4 > second["samples"]["mean"]
    assert sum(second["capability"]["counts"]) == 200
    (warning,) = [w for w in of(records, "warning") if "unsafe for RL" in w["message"]]
    assert warning["at"] in (0, 1)


def test_shown_samples(run, records):
    """The same inputs each time, on the terminal and in the record; parts make up the reward."""
    shown = of(records, "samples")
    assert [record["at"] for record in shown] == [0, 7, 10, 14]
    inputs = {tuple(sample["input"] for sample in record["samples"]) for record in shown}
    assert len(inputs) == 1 and len(inputs.pop()) == 2
    for record in shown:
        for sample in record["samples"]:
            for name in ("output", "sample"):
                parts = sample[name]["parts"]
                assert set(parts) == {"bleu", "chrf"}
                assert sample[name]["reward"] == pytest.approx(sum(parts.values()) / 2, abs=1e-4)
    first = shown[0]["samples"][0]
    out = run[1].stdout
    assert f"{first['input']} after update 0\n  source:    {first['source']}\n" in out
    assert re.search(r"  output:    .*\[reward 0\.\d+: bleu 0\.\d+, chrf 0\.\d+\]", out)


@pytest.fixture
def report(monkeypatch, capsys):
    """``python -m esrl_fairseq.report``: what it prints."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["esrl-report", *map(str, words)])
        runpy.run_module("esrl_fairseq.report", run_name="__main__")
        return capsys.readouterr().out

    return call


def figures(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_a_report_of_training(run, report, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "page.html"
    told = report(run[0], "--output", page)
    assert str(page) in told
    reward = next(f for f in figures(page) if f["title"] == "Reward")
    assert [trace["name"] for trace in reward["traces"]] == ["samples", "baseline", "validation"]
    assert reward["traces"][2]["x"]["updates"] == [0, 7, 10, 14]
