"""What happens around the updates of a run: checks before, progress, a failure, the outcome."""

import re
import shlex
import shutil

import pytest
import torch
from cli_fixtures import preprocess
from command_lines import JOINED, MODEL, esrl_options
from test_cli_resume import load

BEST = "--best-checkpoint-metric reward --maximize-best-checkpoint-metric"


def options(data, save_dir, start=None, check="stop"):
    given = [*esrl_options(data, save_dir), MODEL, JOINED, "--check-start", check]
    return [*given, "--finetune-from-model", start] if start else given


def refused(commands, *words):
    result = commands.run("fairseq-train", *words)
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "metric, words",
    [
        ("--best-checkpoint-metric reward", ["lowest reward", "add --maximize-best"]),
        ("--best-checkpoint-metric reward --patience 2", ["--patience depends"]),
        ("--maximize-best-checkpoint-metric", ["highest loss", "leave it out"]),
        (f"{BEST} --best-checkpoint-metric bleu", ["'bleu'", "length_ratio, loss, ppl, reward"]),
    ],
)
def test_best_metric(metric, words, commands, corpus, mle, tmp_path):
    """Refused before the first update, with nothing written."""
    sentence = refused(commands, *options(corpus.data, tmp_path / "run", mle), metric)
    assert all(word in sentence for word in words), sentence
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_run_is_told_of(commands, corpus, mle, tmp_path):
    """As README has it, into a file: summary, start, first updates, outcome, a next command that
    runs. Validating the start changes nothing of what follows."""
    words = f"{BEST} --max-update 6 --log-format simple --log-interval 100"
    told = commands.succeed("fairseq-train", *options(corpus.data, tmp_path / "a", mle), words)
    out = told.stdout
    assert re.search(rf"trains transformer \([\d,]+ parameters\) from {mle}", out)
    assert "reward: bleu|" in out and "on 200 inputs of" in out
    memory = r"memory, estimated: [\d.e-]+ GB for parameters, gradients and optimizer; beside it "
    assert re.search(memory + r"up to [\d.e-]+ GB in stage one \(\d+ rows of \d+ tokens", out)
    updates = [int(number) for number in re.findall(r"update (\d+): reward 0\.\d+, baseline", out)]
    assert updates == [1, 2, 3, 5]
    first = re.search(r"reward ([\d.]+) .*num_updates 0\b", out)[1]
    outcome = re.search(r"validation reward: start ([\d.]+) → best ([\d.]+) at update (\d+)", out)
    assert float(outcome[1]) == pytest.approx(float(first), abs=1e-4)
    assert int(outcome[3]) == 6

    command = shlex.split(re.search(r"next: (fairseq-generate .*)", out)[1])
    translated = commands.succeed(*command)
    assert len(translated.lines("H-")) == 20 and "@@" not in "".join(
        translated.lines("H-").values()
    )
    quiet = commands.succeed(
        "fairseq-train", *options(corpus.data, tmp_path / "b", mle, "off"), words
    )
    assert "num_updates 0" not in quiet.stdout
    a, b = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_start_that_knows_nothing(commands, corpus, tmp_path):
    """No model is given: refused after its validation, unless it is wanted."""
    save_dir = tmp_path / "run"
    sentence = refused(commands, *options(corpus.data, save_dir), "--max-update 1")
    assert "a model with random weights" in sentence and "--finetune-from-model" in sentence
    assert not list(save_dir.glob("*.pt"))
    warned = commands.succeed(
        "fairseq-train", *options(corpus.data, save_dir, check="warn"), "--max-update 1"
    )
    assert warned.stdout.count("a model with random weights") >= 2


def test_a_checkpoint_of_another_criterion(commands, corpus, mle, tmp_path):
    """Its optimizer is not this run's: named as the start, or lying in --save-dir."""
    given = [*options(corpus.data, tmp_path), "--restore-file", mle]
    sentence = refused(commands, *given)
    assert f"--restore-file {mle} was trained with LabelSmoothedCrossEntropy" in sentence
    assert "this run has EsrlCriterion" in sentence and "--finetune-from-model" in sentence
    shutil.copy(mle, tmp_path / "checkpoint_last.pt")
    sentence = refused(commands, *options(corpus.data, tmp_path))
    assert "the last checkpoint in --save-dir" in sentence and "another --save-dir" in sentence


REWARD = """
from pathlib import Path
FAIL = int(Path("fail_at").read_text())
calls = 0

def f(sources, hypotheses, references):
    global calls
    calls += 1
    if calls == FAIL:
        raise KeyError("service gone")
    return [min(len(text.split()), 9) / 9 for text in hypotheses]

f.range = (0, 1)
"""


def train(commands, corpus, mle, save_dir, call=0, *more):
    """12 updates of two batches, 5 an epoch; the reward raises in its call number ``call``."""
    (commands.folder / "failing_reward.py").write_text(REWARD)
    (commands.folder / "fail_at").write_text(str(call))
    return commands.run(
        "fairseq-train",
        *options(corpus.data, save_dir, mle, "off"),
        f"{BEST} --update-freq 2 --max-update 12 --reward python:failing_reward.f",
        *["--capability none --no-epoch-checkpoints", *more],
    )


@pytest.fixture(scope="module")
def whole(commands, corpus, mle, tmp_path_factory):
    """Folder of a run that nothing happened to."""
    save_dir = tmp_path_factory.mktemp("whole")
    assert train(commands, corpus, mle, save_dir).returncode == 0
    return save_dir


@pytest.mark.parametrize("call, updates", [(8, 3), (10, 4), (11, 5), (25, 11)])
def test_a_reward_that_fails(call, updates, commands, corpus, mle, whole, tmp_path):
    """In the second batch of an update, in an epoch's last one, in validation, in a later epoch:
    the state after the last whole update is kept, and the same command ends as if nothing had
    been."""
    broken = train(commands, corpus, mle, tmp_path, call)
    sentence = broken.stderr.splitlines()[-1]
    assert broken.returncode == 1
    assert "service gone" in sentence and f"after update {updates} is in" in sentence
    assert not list(tmp_path.glob("crash*"))
    last = load(tmp_path / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == updates
    resumed = train(commands, corpus, mle, tmp_path)
    assert resumed.returncode == 0
    made_up_for = resumed.logged("valid")[0]["num_updates"] == updates
    assert made_up_for == (call == 11)  # the call of the validation
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        one, two = (load(folder / name) for folder in (whole, tmp_path))
        assert one["extra_state"]["train_iterator"] == two["extra_state"]["train_iterator"]
        assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])


def test_no_save_writes_nothing(commands, corpus, mle, tmp_path):
    """Neither a store nor, where the reward fails, a checkpoint."""
    assert train(commands, corpus, mle, tmp_path, 8, "--no-save").returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def other_words(commands, corpus):
    """The corpus with its words in another order, in a dictionary of the same size."""
    lines = corpus.dictionary.read_text().splitlines(keepends=True)
    folder = commands.folder / "other-words"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(lines[::-1]))
    return preprocess(commands, corpus.text, folder / "data", dictionary=folder / "dict.txt")


def test_other_words_in_a_dictionary_of_the_same_size(commands, corpus, mle, other_words, tmp_path):
    """Known by the start's data; where these are gone, by validation; in a run of ours, by a
    fingerprint."""
    sentence = refused(commands, *options(other_words, tmp_path / "a", mle))
    assert f"--finetune-from-model {mle} was trained with" in sentence
    assert "source side" in sentence and "--srcdict" in sentence

    moved = load(mle)
    moved["cfg"]["task"]["data"] = str(tmp_path / "gone")
    torch.save(moved, tmp_path / "moved.pt")
    sentence = refused(commands, *options(other_words, tmp_path / "b", tmp_path / "moved.pt"))
    assert "validation reward of" in sentence and "dictionary that of the data" in sentence
    assert not list(tmp_path.glob("[ab]/*.pt"))

    ours = [*options(corpus.data, tmp_path / "c", mle, "off"), "--max-update 1"]
    commands.succeed("fairseq-train", *ours)
    resumed = options(other_words, tmp_path / "c", mle, "off")
    assert "was trained with other words" in refused(commands, *resumed)
