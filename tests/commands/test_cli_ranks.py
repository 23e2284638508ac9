"""Several ranks: started as launchers do, resumed on another number of them, one failing."""

import json
import os
import signal
import time

import pytest
import torch
from command_lines import (
    COMMON,
    JOINED,
    MODEL,
    TIMEOUT,
    USER_DIR,
    esrl_options,
    free_port,
    gone,
    script,
)

LOGGING = """
import json, os, sys
sys.path.insert(0, {parent!r})
import torch, esrl_fairseq
from esrl_fairseq.criterion import EsrlCriterion

judge = EsrlCriterion.judge

def log(self, model, samples):
    judge(self, model, samples)
    if not samples.dummy:
        ids = samples.batch["id"].tolist()
        with open(f"{{os.environ['IDS']}}.{{os.environ.get('RANK', '0')}}", "a") as file:
            file.write(json.dumps([self.task.rl.epoch, self.task.rl.replay.update, ids]) + "\\n")

EsrlCriterion.judge = log
"""
REWARDS = """
import os, signal, sys, time

batches = 0

def reward(sources, hypotheses, references):
    global batches
    batches += 1
    if batches == 4 and os.environ.get("RANK") == os.environ.get("WHO"):
        what = os.environ["FAULT"]
        if what == "raises":
            raise KeyError("oops")
        if what == "sleeps":
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, what))
    return [len(text) / 100 for text in hypotheses]
"""
TINY = "--num-samples 2 --capability none --disable-validation"


def options(corpus, mle, folder, *more):
    return [
        *["fairseq-train", *esrl_options(corpus.data, folder), MODEL, JOINED, "--dropout 0"],
        *["--finetune-from-model", mle, TINY, *more],
    ]


@pytest.fixture(scope="module")
def user_dir(tmp_path_factory):
    """Ours, which also writes down which sentences each rank trains on."""
    folder = tmp_path_factory.mktemp("logging_ids") / "logging_ids"
    folder.mkdir()
    (folder / "__init__.py").write_text(LOGGING.format(parent=str(USER_DIR.parent)))
    return folder


def finished(running):
    """The results of ranks that have to succeed."""
    results = [rank.wait() for rank in running]
    assert all(result.returncode == 0 for result in results), results[0].stderr[-3000:]
    return results


def ids(path):
    """[epoch, update, ids] of all ranks' batches."""
    files = sorted(path.parent.glob(f"{path.name}.*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def train(commands, number, path, *command):
    """A training on so many ranks that writes down its sentences."""
    if number == 1:
        return finished([commands.start(*command, environment={"IDS": str(path)})])[0]
    return finished(commands.ranks(number, *command, environment={"IDS": str(path)}))[0]


def load(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


@pytest.mark.parametrize(
    "number, backend, freq",
    [
        (2, "pytorch_ddp", 2),
        pytest.param(2, "legacy_ddp", 2, marks=pytest.mark.long),
        pytest.param(4, "pytorch_ddp", 1, marks=pytest.mark.long),
        pytest.param(4, "legacy_ddp", 1, marks=pytest.mark.long),
        pytest.param(4, "c10d", 1, marks=pytest.mark.long),
        pytest.param(4, "no_c10d", 1, marks=pytest.mark.long),
    ],
)
def test_ranks_equal_one(number, backend, freq, commands, corpus, mle, user_dir, tmp_path):
    """Without options for it: parameters, batches, queue and store of one rank with as many
    batches an update, in the first updates. --max-epoch ends alike, too (10 batches of 4)."""

    def run(name, number, freq, *more):
        command = options(corpus, mle, tmp_path / name, "--user-dir", user_dir, "--max-epoch 1")
        train(commands, number, tmp_path / f"{name}.ids", *command, f"--update-freq {freq}", *more)
        rl = load(tmp_path / name)["extra_state"]["EsrlTranslationTask"]["rl"]
        return load(tmp_path / name)["model"], rl, ids(tmp_path / f"{name}.ids")

    one, one_rl, one_ids = run("one", 1, 4)
    several, rl, several_ids = run("several", number, freq, f"--ddp-backend {backend}")
    assert max(float((one[name] - several[name]).abs().max()) for name in one) < 1e-6
    for update in range(3):
        batches = [
            sorted(ids for _, of, ids in found if of == update) for found in (one_ids, several_ids)
        ]
        assert batches[0] == batches[1] and len(batches[0]) == (4 if update < 2 else 2)
    queues = [state["baseline"]["state"]["rewards"] for state in (one_rl, rl)]
    assert torch.equal(queues[0].sort().values, queues[1].sort().values) and len(queues[0]) == 400
    assert list(rl["stores"]) == list(one_rl["stores"]) == [0]
    assert os.listdir(tmp_path / "several").count("capability.lock") == 1


@pytest.mark.parametrize(
    "legs",
    [
        [(2, 1, 3), (1, 3, None)],
        pytest.param([(2, 1, 3), (1, 3, 5), (2, 1, None)], marks=pytest.mark.long),
        pytest.param([(1, 1, 7), (2, 1, None)], marks=pytest.mark.long),
        pytest.param([(1, 1, 7), (1, 2, None)], marks=pytest.mark.long),
        pytest.param([(4, 1, 1), (2, 1, 2), (3, 1, None)], marks=pytest.mark.long),
    ],
)
def test_resumed_on_other_ranks(legs, commands, corpus, mle, user_dir, tmp_path):
    """(ranks, --update-freq, until which update): each sentence once in an epoch, which is counted
    once."""
    for ranks, freq, until in legs:
        stop = f"--max-update {until}" if until else ""
        command = options(corpus, mle, tmp_path / "run", "--user-dir", user_dir, "--max-epoch 1")
        train(
            *[commands, ranks, tmp_path / "ids", *command],
            *[f"--update-freq {freq}", *filter(None, [stop]), "--ddp-backend legacy_ddp"],
        )
    seen = [sentence for epoch, _, batch in ids(tmp_path / "ids") for sentence in batch]
    assert sorted(seen) == list(range(200))
    assert load(tmp_path / "run")["extra_state"]["train_iterator"]["epoch"] == 2


@pytest.mark.long
def test_other_batches_are_refused_or_accepted(commands, corpus, mle, tmp_path):
    commands.succeed(*options(corpus, mle, tmp_path / "run", "--max-update 4"))
    command = options(corpus, mle, tmp_path / "run", "--batch-size 40 --max-epoch 1")
    refused = commands.run(*command)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "after 4 of 10 batches, but this run divides" in refused.stderr.splitlines()[-1]
    accepted = commands.succeed(*command, "--accept-other-batches")
    assert "it goes on after 2 of 5" in accepted.stdout + accepted.stderr
    assert accepted.logged("train")[0]["num_updates"] == 7


def fault(commands, corpus, mle, folder, what, who=1, *more):
    """The results of two ranks of which one fails in the fourth update, and the seconds it took."""
    (commands.folder / "faults.py").write_text(REWARDS)
    running = commands.ranks(
        *[2, *options(corpus, mle, folder, "--reward python:faults.reward --max-update 8", *more)],
        environment={"FAULT": what, "WHO": str(who)},
    )
    end = time.monotonic() + TIMEOUT
    while len(running[0].logged("train_inner")) < 3 and not (folder / "over").exists():
        assert time.monotonic() < end, "no third update"
        time.sleep(0.01)
    began = time.monotonic()
    other = running[1 - who].wait()
    seconds = time.monotonic() - began
    if what == "SIGSTOP":
        os.kill(running[who].pid, signal.SIGKILL)
    return other, running[who].wait(), seconds


@pytest.mark.parametrize(
    "what, sentence, limit, more",
    [
        ("raises", "rank 1 of 2 failed: reward 'python:faults.reward' raised KeyError", 30, ""),
        pytest.param(
            *("raises", "rank 1 of 2 failed: reward 'python:faults.reward' raised KeyError", 30),
            *["--reward-workers 1"],
            marks=pytest.mark.long,
        ),
        pytest.param("SIGKILL", "rank 1 of 2 is gone", 30, "", marks=pytest.mark.long),
        pytest.param(
            *("sleeps", "rank 1 of 2 is still busy with its batches of update 4", 6, "legacy_ddp"),
            marks=pytest.mark.long,
        ),
        pytest.param("SIGSTOP", "rank 1 of 2 is silent", 8, "", marks=pytest.mark.long),
        pytest.param("raises", "rank 1 of 2 failed", 30, "legacy_ddp", marks=pytest.mark.long),
        pytest.param("SIGKILL", "rank 1 of 2 is gone", 30, "legacy_ddp", marks=pytest.mark.long),
        pytest.param("sleeps", "rank 1 of 2 is still", 8, "", marks=pytest.mark.long),
    ],
)
def test_one_rank_fails(what, sentence, limit, more, commands, corpus, mle, tmp_path):
    """The first one saves the last whole update and says which; all end, soon and not with 0."""
    heartbeat = f"--heartbeat-timeout {limit}"
    backend = ["--ddp-backend legacy_ddp"] if more == "legacy_ddp" else more.split()
    other, own, seconds = fault(commands, corpus, mle, tmp_path, what, 1, heartbeat, *backend)
    assert other.returncode == 1 and own.returncode != 0 and "Traceback" not in other.stderr
    last = other.stderr.splitlines()[-1]
    assert sentence in last and "the state after update 3 is in" in last
    assert load(tmp_path)["optimizer_history"][-1]["num_updates"] == 3
    assert load(tmp_path)["extra_state"]["train_iterator"]["batches"] == 6
    assert seconds < limit + 60
    if what != "SIGSTOP":
        return
    resumed = finished(commands.ranks(2, *options(corpus, mle, tmp_path, "--max-epoch 1")))[0]
    assert resumed.logged("train")[0]["num_updates"] == 5


WORKERS = """
import os

def words(sources, hypotheses, references):
    open(f"{os.environ['RANK']}-{os.getpid()}.asked", "w").close()
    return [len(set(text.split())) / 100 for text in hypotheses]
"""


def test_reward_workers_of_two_ranks(commands, corpus, mle, tmp_path):
    """Each rank has its own, whose rewards are those that it would compute itself."""
    (commands.folder / "counted_reward.py").write_text(WORKERS)

    def run(name, *more):
        command = options(corpus, mle, tmp_path / name, "--max-update 3", *more)
        running = commands.ranks(2, *command, "--reward python:counted_reward.words+chrf")
        finished(running)
        asked = [path.stem.split("-") for path in commands.folder.glob("*.asked")]
        for path in commands.folder.glob("*.asked"):
            path.unlink()
        trainers = {str(rank): str(one.pid) for rank, one in enumerate(running)}
        return load(tmp_path / name)["model"], sorted(map(tuple, asked)), trainers

    alone, asked, trainers = run("alone")
    assert asked == sorted(trainers.items())
    model, asked, trainers = run("workers", "--reward-workers 2")
    assert all(torch.equal(model[name], alone[name]) for name in alone)
    assert [rank for rank, _ in asked] == ["0", "0", "1", "1"] and len(dict(asked)) == 2
    assert not {process for _, process in asked} & set(trainers.values())
    assert all(gone(int(process)) for _, process in asked)


@pytest.mark.long
@pytest.mark.parametrize("what", ["SIGKILL", "SIGSTOP", "sleeps", "raises"])
def test_the_first_rank_fails(what, commands, corpus, mle, tmp_path):
    """It holds the ranks' store: the others end all the same."""
    limit = ["--heartbeat-timeout 8"]
    other, own, seconds = fault(commands, corpus, mle, tmp_path, what, 0, *limit)
    assert other.returncode == 1 and own.returncode != 0 and "Traceback" not in other.stderr
    assert "rank 0" in other.stderr.splitlines()[-1] and seconds < 90


@pytest.mark.long
def test_a_lone_process_ends_with_a_sentence(commands, corpus, mle, tmp_path):
    """fairseq ends with exit code 0 and nothing trained."""
    command = options(corpus, mle, tmp_path, "--cpu --distributed-world-size 2 --max-update 2")
    refused = commands.run(*command)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "start the ranks with torchrun --nproc-per-node 2" in refused.stderr.splitlines()[-1]
    method = f"--distributed-init-method tcp://127.0.0.1:{free_port()} --heartbeat-timeout 3"
    waited = commands.run(*command, method)
    assert waited.returncode == 1 and "Traceback" not in waited.stderr
    assert "rank 0 of 2 did not find the others" in waited.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_torchrun_as_users_type_it(commands, corpus, mle, tmp_path):
    """Any task and criterion, no option more: one run of two ranks, not two of one."""
    result = commands.run(
        "torchrun",
        *["--nproc-per-node 2 --master-port", free_port(), script("fairseq-train")],
        *[corpus.data, "--user-dir", USER_DIR, MODEL, JOINED, COMMON, "--save-dir", tmp_path],
        *["--task translation --criterion esrl --lr 2e-4 --finetune-from-model", mle],
        "--max-update 2 --disable-validation",
        fresh=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "training on 2 devices" in result.stdout
    assert len(result.logged("train_inner")) == 2 and (tmp_path / "checkpoint_last.pt").exists()
