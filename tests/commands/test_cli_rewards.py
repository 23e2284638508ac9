"""Rewards that misbehave in training: they do no harm, or end the run with a sentence."""

import os
import re
import signal
import time

import pytest
import torch
from command_lines import JOINED, MODEL, esrl_options, gone
from test_cli_resume import load

HONEST = """
def f(sources, hypotheses, references):
    return [min(len(text.split()), 9) / 9 for text in hypotheses]

f.range = (0, 1)
"""

WILD = """
import gc, logging, multiprocessing, os, random, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch

from honest_reward import f as honest

def disturb():
    torch.manual_seed(1); torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta"); torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    torch.set_autocast_enabled("cpu", True)
    np.random.seed(1); np.seterr(all="raise"); random.seed(1); gc.disable()
    logging.disable(logging.CRITICAL); logging.root.setLevel(logging.ERROR)
    logging.root.handlers.clear()
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(1)

disturb()
calls = 0

def f(sources, hypotheses, references):
    global calls
    calls += 1
    print("a flood of words " * 20_000)
    if calls == 1:
        for number in range(2):
            threading.Thread(target=time.sleep, args=(1000,)).start()
        ThreadPoolExecutor(2).submit(time.sleep, 1000)
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    if calls == 2:
        if os.fork() == 0:
            return [1.0] * len(hypotheses)  # there would be two trainings
    if calls == 3:
        if os.fork() == 0:
            sys.exit(0)
        sys.stdout.close(); sys.stderr.close()
    if calls == 4:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1); os.close(2)
        sys.stdout = sys.stderr = None
    result = honest(sources, hypotheses, references)
    disturb()
    for texts in (sources, hypotheses, references):
        texts.clear()
    kinds = [
        iter,
        lambda values: torch.tensor(values, requires_grad=True, device="cpu"),
        lambda values: [torch.tensor(v, requires_grad=True, device="cpu") for v in values],
        lambda values: dict(enumerate(values)).values(),
        lambda values: (value for value in values),
        np.array,
    ]
    return kinds[calls % len(kinds)](result)

f.range = (0, 1)
"""


def train(commands, corpus, mle, save_dir, reward, *more):
    """6 updates of two batches each, from a folder of its own; `save_dir` may be relative."""
    (commands.folder / "honest_reward.py").write_text(HONEST)
    (commands.folder / "wild_reward.py").write_text(WILD)
    (commands.folder / "stopping_reward.py").write_text(STOPPING)
    return commands.run(
        "fairseq-train",
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", mle],
        "--update-freq 2 --max-update 6 --disable-validation --no-epoch-checkpoints",
        *["--capability none --reward", f"python:{reward}", *more],
    )


def test_what_a_reward_changes_is_put_back(commands, corpus, mle, tmp_path):
    """Parameters and log are those of a run with a reward that computes, and nothing else."""
    honest = train(commands, corpus, mle, tmp_path, "honest_reward.f")
    wild = train(commands, corpus, mle, "wild", "wild_reward.f")
    assert honest.returncode == wild.returncode == 0, wild.stderr[-3000:]
    one, two = (
        load(folder / "checkpoint_last.pt") for folder in (tmp_path, commands.folder / "wild")
    )
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    assert not list(commands.folder.glob("wild/*.tmp"))

    def numbers(result):
        return [
            {key: value for key, value in line.items() if key in ("reward", "loss", "samples")}
            for line in result.logged("train_inner")
        ]

    assert len(numbers(wild)) == 6 and numbers(honest) == numbers(wild)
    assert "done training" in wild.stdout
    for what in ("gradient mode", "default dtype", "working directory", "handler of SIGTERM"):
        assert len(re.findall(f"reward 'python:wild_reward.f' changed .*{what}", wild.stdout)) == 1
    assert "called os.fork() and returned twice" in wild.stderr


STOPPING = r"""
import sys, time

calls = 0

def after(stop):
    def f(sources, hypotheses, references):
        global calls
        calls += 1
        if calls == 5:
            stop()
        return [0.5 * (len(h) % 2) for h in hypotheses]
    return f

def exits():
    sys.exit(0)

def holds_on():  # swallows what interrupts it, so that another thread saves and ends
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass

exits, holds_on = map(after, (exits, holds_on))
"""


TIMEOUT = "--reward-timeout 1"


@pytest.mark.parametrize(
    "function, more, words",
    [
        ("exits", "", ["raised SystemExit: 0 for a batch of"]),
        ("holds_on", TIMEOUT, ["not answer within 1 seconds", "train, line", "--reward-timeout"]),
    ],
)
def test_a_reward_that_stops_the_run(function, more, words, commands, corpus, mle, tmp_path):
    """In its third update; with the sentence and the state after the second."""
    result = train(
        commands, corpus, mle, tmp_path, f"stopping_reward.{function}", *filter(None, [more])
    )
    assert result.returncode == 1
    sentence = result.stderr.splitlines()[-1]
    assert f"reward 'python:stopping_reward.{function}'" in sentence
    assert all(word in sentence for word in words), sentence
    assert "Traceback" not in result.stderr and "after update 2 is in" in sentence
    assert load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2


def test_each_part_is_logged(commands, corpus, mle, tmp_path):
    """Mean and spread of each, in training and validation; what is only logged changes nothing, nor
    do processes of their own."""

    def train(reward, *more):
        options = esrl_options(corpus.data, tmp_path / reward.replace("*", "-"))
        start = ["--finetune-from-model", mle, MODEL, JOINED, "--num-samples 3 --max-update 2"]
        result = commands.succeed("fairseq-train", *options, *start, *more, "--reward", reward)
        return result.logged("train_inner")[-1], result.logged("valid")[-1]

    plain, _ = train("chrf:0.5+length:0.5", "--no-save")
    trained, valid = train(
        "chrf:0.5+length:0.5+repetition*length-gate:0+bleu:0+corpus-bleu:0",
        "--best-checkpoint-metric reward_bleu --maximize-best-checkpoint-metric --reward-workers 2",
    )
    for name in ("loss", "gnorm", "reward", "reward_std", "reward_chrf", "reward_length_std"):
        assert trained[name] == plain[name]
    for log in (trained, valid):
        parts = [log[f"reward_{name}"] for name in ("chrf", "length")]
        assert log["reward"] == pytest.approx(sum(parts) / 2, abs=1e-4)
        for name in ("chrf", "length", "repetition", "length-gate", "bleu"):
            assert 0 < log[f"reward_{name}"] <= 1 and 0 <= log[f"reward_{name}_std"] <= 0.5
        assert 0 < log["reward_corpus-bleu"] < 1
    assert trained["reward_bleu_std"] > 0
    best = load(next(tmp_path.glob("*/checkpoint_best.pt")))["extra_state"]["best"]
    assert round(best, 4) == valid["reward_bleu"] != valid["reward_corpus-bleu"]


HANGS = """
import os, time

def f(sources, hypotheses, references):
    open(f"{os.getpid()}.pid", "w").close()
    while True:
        pass
"""


def test_no_worker_is_left(commands, corpus, mle, tmp_path):
    """When the trainer is killed in the middle of a call."""
    (commands.folder / "hanging_reward.py").write_text(HANGS)
    running = commands.start(
        *["fairseq-train", *esrl_options(corpus.data, tmp_path), "--finetune-from-model", mle],
        *[MODEL, JOINED, "--reward python:hanging_reward.f --reward-workers 2 --num-samples 2"],
        "--disable-validation",
    )
    deadline = time.monotonic() + 120
    while not (found := list(commands.folder.glob("*.pid"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found, running.wait(0).stderr
    pids = [int(path.stem) for path in found]
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().returncode == -signal.SIGKILL
    assert running.pid not in pids and all(map(gone, pids))
