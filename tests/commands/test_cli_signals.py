"""A signal ends a run with everything saved, and the same command goes on bit for bit."""

import os
import signal
import time

import pytest
from command_lines import JOINED, MODEL, esrl_options
from test_cli_resume import comparable, load, same_model

LAST = 14
REWARD = """
import os, time
def f(sources, hypotheses, references):
    while os.path.exists("hold"):
        time.sleep(0.01)
    return [len(text) / 100 for text in hypotheses]
"""


def options(corpus, start, save_dir, *more):
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", start],
        f"--num-samples 3 --max-update {LAST} --no-epoch-checkpoints --num-workers 1",
        *more,
    ]


def end_by(number, running, updates):
    """Send a signal once ``updates`` updates are logged; what the run left."""
    while not (lines := running.logged("train_inner")) or lines[-1]["num_updates"] < updates:
        time.sleep(0.002)
    os.kill(running.pid, number)
    return running.wait()


def updates(folder):
    return load(folder / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]


@pytest.fixture(scope="module")
def whole(commands, corpus, mle):
    folder = commands.folder / "whole"
    more = "--validate-interval-updates 4"
    return folder, commands.succeed("fairseq-train", *options(corpus, mle, folder, more))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_same_command_goes_on(number, commands, corpus, mle, whole, tmp_path):
    words = ["fairseq-train", *options(corpus, mle, tmp_path, "--validate-interval-updates 4")]
    ended = end_by(number, commands.start(*words), 2)
    text = ended.stdout + ended.stderr
    assert ended.returncode == 128 + number and "Traceback" not in text
    saved = updates(tmp_path)
    assert 2 <= saved < LAST and saved <= ended.logged("train_inner")[-1]["num_updates"] + 1
    assert f"ended after update {saved}, whose state is in {tmp_path}" in text
    expected = comparable(whole[1], saved)
    assert comparable(commands.succeed(*words), saved) == expected
    assert same_model(whole[0], tmp_path)
