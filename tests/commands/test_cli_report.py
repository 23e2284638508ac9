"""The record of a run, ``--show-samples``, and the page that ``esrl-report`` makes of them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from command_lines import JOINED, MODEL, USER_DIR, esrl_options

from esrl_fairseq.checkpoints.card import NAME as CARD
from esrl_fairseq.checkpoints.reading import updates_of
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.monitoring.record import FILE, read_record
from esrl_fairseq.report.__main__ import make_parser
from esrl_fairseq.report.reading import read_run
from esrl_fairseq.report.translating import translate


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    """Other tests pretend one in this process, whose memory cannot be pinned."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)


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
    every = [sample for record in shown for sample in record["samples"]]
    assert any(sample["sample"]["text"] != sample["output"]["text"] for sample in every)
    first = shown[0]["samples"][0]
    out = run[1].stdout
    assert f"{first['input']} after update 0\n  source:    {first['source']}\n" in out
    assert re.search(r"  output:    .*\[reward 0\.\d+: bleu 0\.\d+, chrf 0\.\d+\]", out)


def test_the_model_card(run, records, commands, corpus, mle, tmp_path):
    """Of the best checkpoint; a run that goes on brings it up to date."""
    best = updates_of(str(run[0] / "checkpoint_best.pt"))
    (stats,) = (r["stats"] for r in of(records, "validation") if r["at"] == best)
    text = (run[0] / CARD).read_text()
    start = next(r for r in of(records, "validation") if r["at"] == 0)
    assert f"| reward | {start['stats']['reward']:.4f} | {stats['reward']:.4f} |" in text
    assert "which translates de to en." in text
    assert f"{UPDATES} updates" in text and "- state: validation reward: start" in text
    assert f"`{mle}` (--finetune-from-model), SHA-256 `" in text
    assert "20 inputs of `valid`, with greedy outputs" in text and "unsafe for RL" in text
    folder = shutil.copytree(run[0], tmp_path / "on")
    (folder / CARD).unlink()
    more = [str(x).replace(str(run[0]), str(folder)) for x in options(corpus, mle, run[0])]
    commands.succeed("fairseq-train", *more, f"--max-update {UPDATES + 1}")
    assert f"{UPDATES + 1} updates" in (folder / CARD).read_text()


def test_another_run_in_the_folder_begins_anew(run, commands, corpus, mle, tmp_path):
    """Its first epoch does: what is refused before leaves the record as it was."""
    save_dir = tmp_path / "again"
    save_dir.mkdir()
    shutil.copy(run[0] / FILE, save_dir)
    before = (save_dir / FILE).read_bytes()
    words = options(corpus, mle, save_dir)
    refused = commands.run("fairseq-train", *words, "--valid-subset nosuch --max-update 2")
    assert refused.returncode and (save_dir / FILE).read_bytes() == before
    commands.succeed("fairseq-train", *words, "--max-update 1 --disable-validation --no-save")
    assert (save_dir / FILE).read_bytes() == before and not (save_dir / CARD).exists()
    commands.succeed("fairseq-train", *words, "--max-update 1 --disable-validation")
    kinds = [record["kind"] for record in read_record(save_dir / FILE)]
    assert kinds.count("begin") == kinds.count("update") == 1


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


def titles(page):
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def test_a_report_of_training_and_outcome(run, report, drawn, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "page.html"
    assert str(page) in report(run[0], "--evaluate", "--output", page)
    reward = next(f for f in figures(page) if f["title"] == "Reward")
    assert [trace["name"] for trace in reward["traces"]] == ["samples", "baseline", "validation"]
    assert reward["traces"][2]["x"]["updates"] == [0, 7, 10, 14]
    assert [mark[1] for mark in reward["marks"]["updates"]] == [1]
    assert titles(page)[0] == "Is the best checkpoint better than the start?"
    assert "How do the outputs change?" in titles(page) and len(titles(page)) == 18
    for part in ("bleu", "chrf"):
        figure = next(f for f in figures(page) if f["title"] == part)
        samples, validation = figure["traces"]
        assert [samples["name"], validation["name"]] == ["samples", "validation"]
        assert validation["x"]["updates"] == [0, 7, 10, 14] and len(samples["y"]) == UPDATES
        assert samples["y"] != reward["traces"][0]["y"]
    drawn(page)


def test_the_outcome_is_that_of_fairseq_generate(run, commands, corpus, mle):
    """The texts of both models, word for word."""
    given = make_parser().parse_args([str(run[0]), "--evaluate", "--cpu"])
    found = translate(read_run(str(run[0]), "run"), given)
    for path, outputs in ((run[0] / "checkpoint_best.pt", found.best), (mle, found.start)):
        generated = commands.succeed(
            *["fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", path],
            "--beam 5 --post-process subword_nmt --required-batch-size-multiple 1",
        )
        lines = generated.lines("H-")
        assert outputs == [lines[i] for i in range(20)]
    text = (corpus.text / "test.en").read_text().replace("@@ ", "").splitlines()
    assert [own[0] for own in found.references] == text and found.names[6] == "test, line 7"
    train = (corpus.text / "train.en").read_text().replace("@@ ", "").split()
    assert found.frequency == Counter(train)


def test_several_runs_overlaid(run, report, drawn, tmp_path):
    """One without validations, in its first updates; file names that HTML has to be kept from."""
    pytest.importorskip("plotly")
    other = tmp_path / "<b>other & one"
    other.mkdir()
    lines = (run[0] / FILE).read_text().splitlines(keepends=True)
    few = [line for line in lines[:8] if '"validation"' not in line]
    (other / FILE).write_text("".join(few).replace("sleeps", "</script><script>x()</script>"))
    page = tmp_path / "page.html"
    report(run[0], other, "--output", page)
    reward = next(f for f in figures(page) if f["title"] == "Reward")
    names = ["recorded: samples", "recorded: baseline", "recorded: validation"]
    names += ["<b>other & one: samples", "<b>other & one: baseline"]
    assert [trace["name"] for trace in reward["traces"]] == names
    entropy = next(f for f in figures(page) if f["title"].startswith("Entropy"))
    assert [trace["name"] for trace in entropy["traces"]] == ["recorded", "<b>other & one"]
    assert "<b>other" not in page.read_text() and "<script>x" not in page.read_text()
    drawn(page)


@pytest.fixture
def drawn(tmp_path):
    """Opens a page in Chromium: all plots are drawn, and nothing is complained of."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")

    def check(page):
        if browser is None:
            return
        quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
        quiet += "disable-background-networking disable-component-update enable-logging=stderr"
        words = [f"--{option}" for option in quiet.split()]
        words += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000"]
        done = subprocess.run(
            [browser, *words, "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not re.findall(r".*CONSOLE.*", done.stderr), done.stderr
        plots = re.split(r'id="?figure-\d+"?', done.stdout)[1:]
        assert len(plots) == len(figures(page)) > 8
        for plot in plots:
            assert 'class="main-svg"' in plot
            assert re.search(r'class="(js-line|point)"|class="hm"', plot), plot[:3000]

    return check


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["nosuch"], "there is no folder nosuch: give the --save-dir of a training"),
        (["."], "training_record.jsonl does not exist: give the --save-dir of a training with"),
        (["a", "b", "--evaluate"], "--evaluate compares a run with its start: give one folder"),
        ([".", "--evaluate"], "checkpoint_best.pt does not exist"),
        (["a", "./a"], "a folder is given twice"),
        (["RUN", "--output", "nosuch/x.html"], "nosuch for the report: make it, or change"),
        (["RUN", "--output", "own.html"], "own.html is there already and no report"),
        (["RUN", "--evaluate", "--subset", "nosuch"], "there are no data of the split 'nosuch' in"),
        (["RUN", "--evaluate", "--start", "nosuch.pt"], "the start model nosuch.pt does not exist"),
    ],
)
def test_what_cannot_be_reported(words, sentence, run, report, tmp_path, monkeypatch):
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.html").write_text("mine")
    with pytest.raises(EsrlError, match=re.escape(sentence)):
        report(*(run[0] if word == "RUN" else word for word in words))
    assert (tmp_path / "own.html").read_text() == "mine"


def test_without_plotly(run, report, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(EsrlError, match="plotly, which is not installed: pip install plotly"):
        report(run[0])
