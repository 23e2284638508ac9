"""benchmarks/study: a whole study with a tiny model, interrupted, resumed, changed and reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import JOINED, MODEL, environment
from fairseq.data import data_utils
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import esrl_fairseq  # noqa: F401  (lets torch load fairseq's checkpoints)

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
sys.path.insert(0, str(FOLDER))

import metrics  # noqa: E402

TIMEOUT = 900  # seconds, of each command
UPDATES = 4
pytestmark = pytest.mark.long

STUDY = f"""
[budget]
seconds = 6
updates = {UPDATES}
checkpoints = 3
[options]
all = "{MODEL} {JOINED} --optimizer adam --lr 2e-3 --batch-size 20"
mle = "--task translation --criterion label_smoothed_cross_entropy"
rl = "--task esrl_translation --criterion esrl --num-samples 4"
[pairs.de-en]
recipe = "RECIPE"
start = "mle"

[experiments.main]
title = "Methods"
pairs = ["de-en"]
seeds = [1]
against = "esrl"
[experiments.main.methods]
mle = {{ group = "mle" }}
esrl = ""
broken = "--elimination-ratio 7"

[experiments.few]
title = "Few inputs"
pairs = ["de-en"]
seeds = [1]
train_inputs = 40
budget = {{ seconds = 0, updates = 3, checkpoints = 0 }}
cost_only = true
[experiments.few.methods]
esrl = ""

[experiments.size]
title = "Sizes"
pairs = ["de-en"]
seeds = [1]
cost_only = true
budget = {{ seconds = 0, updates = 2, checkpoints = 0 }}
[experiments.size.methods]
esrl = ""
"""


PAGE = "Words.\n<!-- begin main -->\nold\n<!-- end main -->\nMore words.\n" + (
    "<!-- begin size -->\n<!-- end size -->\n<!-- begin few -->\n<!-- end few -->\nLast words.\n"
)


RECIPE = """#!/bin/sh
set -e
test "$ESRL_STOP_AFTER" = mle
mkdir -p "$ESRL_WORK_DIR/steps" "$ESRL_WORK_DIR/mle" "$ESRL_WORK_DIR/clean"
cd "$ESRL_WORK_DIR"
ln -s "{corpus.data}" data-bin
ln -s "{mle}" mle/checkpoint_best.pt
for split in valid test; do sed 's/@@ //g' "{corpus.text}/$split.en" >clean/$split.en; done
touch steps/binarize.done
echo once >>steps/mle.done
"""


class Tiny:
    """A study's work folder, and a recipe that has not run yet."""

    def __init__(self, folder, corpus, mle):
        self.study, self.work, recipe = folder / "study.toml", folder / "work", folder / "recipe"
        self.pair = self.work / "pairs" / "de-en"
        self.text = STUDY.replace("RECIPE", str(recipe))
        self.study.write_text(self.text)
        recipe.mkdir()
        (recipe / "run.sh").write_text(RECIPE.format(corpus=corpus, mle=mle))
        (recipe / "run.sh").chmod(0o755)

    def command(self, *more):
        command = [sys.executable, FOLDER / "run.py", "--work", self.work, "--study", self.study]
        return [*map(str, command), *more]

    def run(self, *more):
        """run.py to its end: status and what it printed."""
        done = subprocess.run(
            self.command(*more), capture_output=True, text=True, env=environment(), timeout=TIMEOUT
        )
        return done.returncode, done.stdout + done.stderr

    def folder(self, name):
        return self.work / "runs" / name

    def result(self, name):
        return json.loads((self.folder(name) / "result.json").read_text())


def interrupt(tiny, *more):
    """run.py ended by SIGINT while it trains."""
    log = tiny.folder("main/de-en/esrl/1") / "train.log"
    process = subprocess.Popen(
        tiny.command(*more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        # A test run in a shell's background inherits that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + TIMEOUT
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = tiny.run()  # while the first one runs
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, printed, second


@pytest.fixture(scope="module")
def story(corpus, mle, tmp_path_factory):
    """A study interrupted, then run to its end: the folder and what was said."""
    tiny = Tiny(tmp_path_factory.mktemp("study"), corpus, mle)
    interrupted = interrupt(tiny, "--only", "main/*/esrl/1")
    left = {path.name for path in tiny.folder("main/de-en/esrl/1").iterdir()}
    ended = tiny.run("--jobs", "2")
    return {"tiny": tiny, "interrupted": interrupted, "left": left, "ended": ended}


@pytest.fixture
def tiny(story):
    return story["tiny"]


def test_the_recipe_makes_the_start_once(story):
    assert (story["tiny"].pair / "steps" / "mle.done").read_text() == "once\n"
    assert "recipe/run.sh makes it" in story["interrupted"][1]


def test_interrupted(story):
    """The training ends with the runner, which leaves what tells that the run is not complete."""
    status, printed, _ = story["interrupted"]
    assert status != 0 and printed.endswith("interrupted: the same command goes on from here\n")
    assert "run.json" in story["left"]
    assert not {"train.json", "result.json"} & story["left"]
    # That the next command could begin at all shows that no process held the folder any more.
    assert "main/de-en/esrl/1 is done" in story["ended"][1]


def test_two_runners_in_one_folder_are_refused(story):
    status, printed = story["interrupted"][2]
    assert status != 0 and "another run.py" in printed


def test_a_crash_is_reported_and_the_others_go_on(story):
    status, printed = story["ended"]
    assert status == 1
    assert "main/de-en/broken/1 FAILED: exit status 1; the last lines of" in printed
    assert "--elimination-ratio is 7, but must be auto or a number from 0 to 1" in printed
    assert "1 of 5 failed" in printed
    for name in ("main/de-en/mle/1", "main/de-en/esrl/1", "size/de-en/esrl/1"):
        assert f"{name} is done" in printed


@pytest.mark.parametrize("method", ["mle", "esrl"])
def test_result(tiny, method):
    """Budget, choice by validation, and scores of the outputs that lie beside."""
    result = tiny.result(f"main/de-en/{method}/1")
    folder = tiny.folder(f"main/de-en/{method}/1")
    assert result["settings"]["seed"] == 1 and "--lr 2e-3" in result["settings"]["options"]
    assert result["about"].keys() >= {"machine", "commit", "versions", "jobs", "threads"}
    assert str(tiny.work) not in result["command"] and str(tiny.pair) not in result["command"]

    training = result["training"]
    assert training["seconds"] >= 6 and training["peak_mb"] > 100
    assert 0 < training["seconds_per_update"] < 6 / UPDATES
    assert [int(s["seconds"] / 2) for s in training["candidates"]][-1] == 3
    assert training["equal_updates"]["updates"] == UPDATES

    valid, results = result["evaluation"]["valid"], result["evaluation"]["results"]
    best = max(valid, key=lambda state: state["bleu"])
    assert results["time"]["updates"] == best["updates"]
    assert results["time"]["valid_bleu"] == best["bleu"]
    assert results["updates"]["updates"] == UPDATES
    references = (tiny.pair / "clean" / "test.en").read_text().splitlines()
    for budget, chosen in results.items():
        for search in ("beam5", "greedy"):
            file = folder / "out" / f"{budget}.{search}"
            texts = file.with_suffix(f".{search}.txt").read_text().splitlines()
            bleu = BLEU().corpus_score(texts, [references])
            assert chosen[search]["bleu"] == pytest.approx(bleu.score, abs=1e-9)
            assert chosen[search]["length_ratio"] == pytest.approx(bleu.ratio)
            assert chosen[search]["chrf"] == pytest.approx(
                CHRF().corpus_score(texts, [references]).score
            )
            statistics = np.load(file.with_suffix(f".{search}.npy"))
            assert metrics.corpus_bleu(statistics.sum(0)) == pytest.approx(bleu.score)
    assert any(len(text.split()) > 1 and "@@" not in text for text in texts)
    kept = {path.name for path in (folder / "train").glob("*.pt")}
    assert kept == {f"checkpoint_{chosen['updates']}.pt" for chosen in results.values()}


def test_summaries_are_scored_by_rouge(tiny, tmp_path):
    """The best of several references, and options of fairseq-generate of the pair's own."""
    pytest.importorskip("rouge_score")
    run, pair = tmp_path / "run", tmp_path / "pair"
    (run / "train").mkdir(parents=True)
    (pair / "clean").mkdir(parents=True)
    done = tiny.folder("main/de-en/esrl/1") / "train" / f"checkpoint_{UPDATES}.pt"
    (run / "train" / done.name).symlink_to(done)
    state = {"updates": UPDATES, "seconds": 1}
    (run / "train.json").write_text(json.dumps({"candidates": [state], "equal_updates": None}))
    (pair / "data-bin").symlink_to((tiny.pair / "data-bin").resolve())
    for split in ("valid", "test"):
        lines = (tiny.pair / "clean" / f"{split}.en").read_text().splitlines()
        for ending, texts in (
            ("en", ["a", *lines[1:]]),
            ("en1", [lines[0], *[""] * (len(lines) - 1)]),
        ):
            (pair / "clean" / f"{split}.{ending}").write_text("\n".join(texts) + "\n")
    command = [sys.executable, FOLDER / "evaluate.py", "--run", run, "--pair", pair]
    command += ["--source", "de", "--target", "en", "--language", "en", "--metric", "rouge"]
    command += ["--", "--max-len-a", "0", "--max-len-b", "3"]
    subprocess.run([*map(str, command)], check=True, env=environment(), timeout=TIMEOUT)
    found = json.loads((run / "evaluation.json").read_text())
    result, texts = found["results"]["time"], (run / "out" / "time.beam5.txt").read_text()
    assert result["valid_rouge"] == found["valid"][0]["rouge"] > 0
    assert max(len(text.split()) for text in texts.splitlines()) <= 3
    metric = metrics.Summarization()
    references = metric.references(pair / "clean" / "test.en")
    assert len(references[0]) == 2 and len(references[1]) == 1
    scores = metric.scores(texts.splitlines(), references)
    assert result["beam5"] == pytest.approx(scores)


def test_training_is_fairseqs(tiny, commands, corpus, mle, tmp_path):
    """The model after UPDATES updates is bit for bit that of fairseq-train --max-update."""
    settings = tiny.result("main/de-en/esrl/1")["settings"]
    commands.succeed(
        *["fairseq-train", corpus.data, "--user-dir", FOLDER.parents[1] / "esrl_fairseq"],
        *["--save-dir", tmp_path, "--finetune-from-model", mle, settings["options"]],
        f"--seed 1 --required-batch-size-multiple 1 --max-update {UPDATES}",
    )
    ours = tiny.folder("main/de-en/esrl/1") / "train" / f"checkpoint_{UPDATES}.pt"
    one, other = (
        torch.load(file, weights_only=True)["model"]
        for file in (ours, tmp_path / "checkpoint_last.pt")
    )
    start = torch.load(mle, weights_only=True)["model"]
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not all(torch.equal(one[name], start[name]) for name in start)


def test_cost_only(tiny):
    result = tiny.result("size/de-en/esrl/1")
    assert result["training"]["updates"] == 2 and "evaluation" not in result
    assert "--finetune-from-model" not in result["command"]


def test_cost_only_needs_no_start(tiny, tmp_path):
    pair, work = tmp_path / "pair", tmp_path / "work"
    shutil.copytree(tiny.pair, pair, symlinks=True)
    (pair / "steps" / "mle.done").unlink()
    options = ["--work", str(work), "--pair", f"de-en={pair}", "--only", "size/*"]
    status, printed = tiny.run(*options)
    assert status == 0 and "makes it" not in printed and not (work / "start").exists()
    settings = json.loads((work / "runs/size/de-en/esrl/1/result.json").read_text())["settings"]
    assert settings == tiny.result("size/de-en/esrl/1")["settings"]
    assert "data" in settings and "start" not in settings


def test_few_inputs(tiny, corpus):
    """Training sees the first 40 alone; the rest of the data is as it was."""
    assert tiny.result("few/de-en/esrl/1")["training"]["updates"] == 3
    (few,) = (tiny.work / "data" / "de-en").glob("40-*")
    for language in ("de", "en"):
        mine, all_of_it = (
            data_utils.load_indexed_dataset(f"{data}/train.de-en.{language}", None)
            for data in (few, corpus.data)
        )
        assert len(mine) == 40 < len(all_of_it)
        assert all(torch.equal(mine[i].long(), all_of_it[i].long()) for i in range(40))
    names = {path.name for path in Path(corpus.data).iterdir()}
    assert names == {path.name for path in few.iterdir()}


def test_finished_runs_are_skipped(tiny):
    files = [tiny.folder(f"main/de-en/{method}/1") / "result.json" for method in ("mle", "esrl")]
    before = [file.stat().st_mtime_ns for file in files]
    status, printed = tiny.run("--only", "main/*/mle/1", "--only", "main/*/esrl/1")
    assert status == 0 and "all 2 runs are done" in printed and "begins" not in printed
    assert [file.stat().st_mtime_ns for file in files] == before


def test_changed_settings_are_refused_or_repeated_by_word(tiny, tmp_path):
    tiny.study.write_text(tiny.text.replace("updates = 2,", "updates = 3,"))
    try:
        _, listed = tiny.run("--list")
        assert "changed  size/de-en/esrl/1" in listed and "done     main/de-en/mle/1" in listed
        status, printed = tiny.run("--only", "size/*")
        assert status != 0 and "other settings" in printed and "size/de-en/esrl/1" in printed
        assert tiny.result("size/de-en/esrl/1")["training"]["updates"] == 2
        assert tiny.run("--only", "size/*", "--redo")[0] == 0
        assert tiny.result("size/de-en/esrl/1")["training"]["updates"] == 3
    finally:
        tiny.study.write_text(tiny.text)


def test_another_start_is_refused(tiny, tmp_path):
    """Known by its weights: the same model trained again, which took another time, is no other."""
    shutil.copytree(tiny.pair, tmp_path / "other")
    file = tmp_path / "other" / "mle" / "checkpoint_best.pt"
    command = ["--only", "main/*/mle/1", "--pair", f"de-en={tmp_path / 'other'}"]
    start = torch.load(file, weights_only=True)
    start["extra_state"]["previous_training_time"] = 1e6
    torch.save(start, file)
    assert tiny.run(*command)[0] == 0
    next(iter(start["model"].values()))[0] += 1e-3
    torch.save(start, file)
    status, printed = tiny.run(*command)
    assert status != 0 and "another start model" in printed


def test_report_of_the_runs(tiny, tmp_path):
    """From the work folder, then again from results.json alone, whose runs are not repeated."""
    (tmp_path / "study.md").write_text(PAGE)
    options = ["--study", tiny.study, "--results", tmp_path, "--docs", tmp_path]
    command = [sys.executable, str(FOLDER / "report.py"), *map(str, options)]
    done = subprocess.run([*command, "--work", str(tiny.work)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    rows = json.loads(written["results.json"])["runs"]
    assert {row["run"] for row in rows} >= {"start/de-en", "main/de-en/mle/1", "main/de-en/esrl/1"}
    summary = json.loads(written["summary.json"])
    assert {(row["method"], row["budget"]) for row in summary} == {
        (method, budget) for method in ("mle", "esrl") for budget in ("time", "updates")
    }
    assert str(tiny.work).encode() not in written["results.json"]

    elsewhere = ["--work", str(tmp_path / "work"), "--pair", f"de-en={tiny.pair}", "--list"]
    assert "to do    main/de-en/mle/1" in tiny.run(*elsewhere)[1]
    assert "done     main/de-en/mle/1" in tiny.run(*elsewhere, "--results", str(tmp_path))[1]

    assert subprocess.run(command, capture_output=True).returncode == 0
    again = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert {name: text for name, text in again.items() if not name.endswith("png")} == {
        name: text for name, text in written.items() if not name.endswith("png")
    }
