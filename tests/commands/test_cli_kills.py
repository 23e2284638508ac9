"""A run killed a hundred times ends as one that was never interrupted."""

import os
import random
import signal
import time

import pytest
from command_lines import JOINED, MODEL, esrl_options
from test_cli_resume import load, same_model

from esrl_fairseq.checkpoints.reading import problem_of

KILLS = 100
LAST = 500


def options(corpus, start, save_dir):
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", start],
        f"--num-samples 3 --max-update {LAST} --max-epoch 99 --disable-validation",
        "--save-interval-updates 1 --keep-interval-updates 2 --no-epoch-checkpoints",
    ]


@pytest.mark.long
def test_kills(commands, corpus, mle, tmp_path):
    """At random moments, start-up and saves included; it saves after each update."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    commands.succeed("fairseq-train", *options(corpus, mle, whole))
    rng = random.Random(11)
    kills = updates = 0
    while kills < KILLS:
        running = commands.start("fairseq-train", *options(corpus, mle, folder))
        aims_at_start = rng.random() < 0.3
        begin = time.monotonic()
        while not aims_at_start and not running.logged("train_inner"):
            if "nothing is left of --max-update" in running.stdout():
                break  # killed between its last save and its end
            assert time.monotonic() - begin < 100
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 3) if aims_at_start else rng.uniform(0, 0.06))
        os.kill(running.pid, signal.SIGKILL)
        if running.wait().returncode == 0:
            break  # it came to its end
        kills += 1
        for path in folder.glob("*.pt"):
            assert not problem_of(str(path)), path
        last = folder / "checkpoint_last.pt"
        if last.exists():
            found = load(last)["optimizer_history"][-1]["num_updates"]
            assert found >= updates
            updates = found
    else:
        commands.succeed("fairseq-train", *options(corpus, mle, folder))
    assert kills > KILLS // 2 and updates > 0
    assert same_model(whole, folder) and not list(folder.glob("*.partial"))
