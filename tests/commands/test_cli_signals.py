"""A signal ends a run with everything saved, and the same command goes on bit for bit."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_lines import (
    COMMON,
    JOINED,
    MODEL,
    TIMEOUT,
    USER_DIR,
    Result,
    Running,
    environment,
    esrl_options,
    free_port,
    gone,
    script,
    words,
)
from test_cli_resume import comparable, load, same_model

LAST = 14  # an epoch has 10
SLOW = """
import time
def f(sources, hypotheses, references):
    time.sleep({seconds})
    return [len(text) / 100 for text in hypotheses]
"""


def options(corpus, start, save_dir, *more):
    """Every update is followed by a validation."""
    return [
        *[*esrl_options(corpus.data, save_dir), MODEL, JOINED, "--finetune-from-model", start],
        f"--num-samples 3 --max-update {LAST} --no-epoch-checkpoints",
        "--validate-interval-updates 1",
        *more,
    ]


def mle_options(corpus, start, save_dir):
    """A training of fairseq's own."""
    return [
        *[corpus.data, "--user-dir", USER_DIR, MODEL, JOINED, COMMON, "--save-dir", save_dir],
        "--criterion label_smoothed_cross_entropy --lr 1e-3 --finetune-from-model",
        *[start, f"--max-update {LAST} --no-epoch-checkpoints --validate-interval-updates 4"],
    ]


def wait_for(running, updates):
    """Until so many updates are logged."""
    while not (lines := running.logged("train_inner")) or lines[-1]["num_updates"] < updates:
        time.sleep(0.002)


def wait_for_text(running, text, times=1):
    while running.stdout().count(text) < times:
        time.sleep(0.002)


def group_of(pid):
    """The processes that a signal of a terminal or a scheduler reaches."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def updates(folder):
    return load(folder / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]


def ended(result, number):
    """Whether a signal ended a command in the way of this package."""
    text = result.stdout + result.stderr
    assert result.returncode == 128 + number and "Traceback" not in text, text[-3000:]
    return True


@pytest.fixture(scope="module")
def whole(commands, corpus, mle):
    """Runs that were never interrupted."""
    found = {}
    for make in (options, mle_options):
        folder = commands.folder / f"whole-{make.__name__}"
        found[make] = folder, commands.succeed("fairseq-train", *make(corpus, mle, folder))
    return found


@pytest.mark.parametrize(
    "number, make, workers",
    [
        (signal.SIGTERM, options, 0),
        (signal.SIGINT, options, 2),
        pytest.param(signal.SIGUSR1, mle_options, 1, marks=pytest.mark.long),
    ],
)
def test_the_same_command_goes_on(number, make, workers, commands, corpus, mle, whole, tmp_path):
    """The processes that load data are signalled, too, as by Ctrl-C."""
    words = ["fairseq-train", *make(corpus, mle, tmp_path), f"--num-workers {workers}"]
    running = commands.start(*words)
    wait_for(running, 2)
    group = group_of(running.pid)
    for pid in reversed(group):
        os.kill(pid, number)
    result = running.wait()
    assert ended(result, number)
    assert len(group) >= 1 + workers
    saved = updates(tmp_path)
    assert 2 <= saved < LAST and saved >= result.logged("train_inner")[-1]["num_updates"]
    assert f"ended after update {saved}, whose state is in {tmp_path}" in result.stdout
    assert "a second signal ends it at once" in result.stderr
    resumed = commands.succeed(*words)
    folder, result = whole[make]
    # What fairseq's own training logs of an epoch begins anew where it goes on.
    expected = [line for line in comparable(result, saved) if line[0] != "train"]
    assert [line for line in comparable(resumed, saved) if line[0] != "train"] == expected
    assert same_model(folder, tmp_path)


def test_two_ranks_end_after_the_same_update(commands, corpus, mle, tmp_path):
    """One of them is signalled."""

    def command(rank):
        words = options(corpus, mle, tmp_path / "run", "--batch-size 10 --disable-validation")
        return ["fairseq-train", *words, "--max-update 1000 --max-epoch 50"]

    running = commands.start_two_ranks(command)
    wait_for(running[0], 2)
    os.kill(running[1].pid, signal.SIGTERM)
    for rank in running:
        assert ended(rank.wait(), signal.SIGTERM)
    assert 2 <= updates(tmp_path / "run") < 500


PRETENDED = """
import os, sys
sys.path.insert(0, {parent!r})
import torch, esrl_fairseq
from esrl_fairseq.processes import launch

def two_gpus(cfg, env, gpus, default_size):
    cfg.distributed_world_size, cfg.distributed_backend = 2, "gloo"
    cfg.distributed_init_method, cfg.distributed_no_spawn = "tcp://127.0.0.1:{port}", False
    torch.cuda.device_count = lambda: 2  # fairseq starts a process for each

launch.choose = two_gpus
"""


class OwnProcess(Running):
    """A command in an ordinary process, which those that it starts take for their main module."""

    def __init__(self, commands, name, *options):
        streams = [commands.folder / f"own.{stream}" for stream in ("in", "out", "err")]
        with open(streams[1], "w") as out, open(streams[2], "w") as err:
            self.process = subprocess.Popen(
                [script(name), *words(options)],
                **{"stdout": out, "stderr": err, "env": environment(), "cwd": commands.folder},
            )
        super().__init__(commands, self.process.pid, streams)

    def wait(self):
        code = self.process.wait(3 * TIMEOUT)
        return Result(code, self.stdout(), self.streams[2].read_text())


@pytest.mark.long
@pytest.mark.parametrize(
    "number, whom",
    [
        (signal.SIGTERM, "the parent"),
        (signal.SIGTERM, "a rank"),
        (signal.SIGINT, "all"),
        (signal.SIGKILL, "the parent"),
    ],
)
def test_ranks_that_fairseq_starts(number, whom, commands, corpus, mle, tmp_path):
    """One for each GPU, of which a CPU has none: its number is made up. All end after the same
    update, the parent last, and the same command goes on."""
    user_dir = tmp_path / "two_gpus"
    user_dir.mkdir()
    settings = {"parent": str(USER_DIR.parent), "port": free_port()}
    (user_dir / "__init__.py").write_text(PRETENDED.format(**settings))
    command = options(corpus, mle, tmp_path / "run", "--batch-size 10 --disable-validation --cpu")
    command += ["--user-dir", user_dir, "--max-epoch 50"]
    running = OwnProcess(commands, "fairseq-train", *command, "--max-update 1000")
    wait_for(running, 2)
    parent, *others = group_of(running.pid)
    ranks = [pid for pid in others if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    for pid in {"the parent": [parent], "a rank": ranks[1:], "all": [parent, *ranks]}[whom]:
        os.kill(pid, number)
    result = running.wait()
    if number == signal.SIGKILL:
        assert result.returncode == -number
        assert all(any(gone(pid) for _ in range(6)) for pid in ranks)  # a minute
    else:
        assert ended(result, number)
        assert "again: ends" not in result.stderr
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    saved = updates(tmp_path / "run")
    assert 2 <= saved < 500
    resumed = OwnProcess(commands, "fairseq-train", *command, f"--max-update {saved + 2}").wait()
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert resumed.logged("train_inner")[0]["num_updates"] == saved + 1


def slow(commands, seconds):
    """Options of a reward that takes its time."""
    (commands.folder / f"slow{seconds}.py").write_text(SLOW.format(seconds=seconds))
    return f"--reward python:slow{seconds}.f"


def test_a_validation_is_left_and_made_up_for(commands, corpus, mle, tmp_path):
    more = [slow(commands, 1), "--batch-size-valid 2 --max-update 2 --num-samples 2"]
    more += ["--validate-interval-updates 2 --max-epoch 1"]
    words = ["fairseq-train", *options(corpus, mle, tmp_path, *more), "--max-update 4"]
    running = commands.start(*words)
    wait_for(running, 2)
    begin = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    assert ended(running.wait(), signal.SIGTERM)
    assert time.monotonic() - begin < 9  # of 10 seconds of the validation alone
    state = load(tmp_path / "checkpoint_last.pt")
    assert state["extra_state"]["EsrlTranslationTask"]["outcome"]["due"]
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert not (tmp_path / "checkpoint_best.pt").exists()


def test_a_second_signal_ends_it_at_once(commands, corpus, mle, tmp_path):
    """In the first update, which takes a minute; before it, one is enough."""
    words = options(corpus, mle, tmp_path, slow(commands, 60), "--disable-validation")
    running = commands.start("fairseq-train", *words)
    wait_for_text(running, "Start iterating over samples")
    time.sleep(1)
    os.kill(running.pid, signal.SIGTERM)
    time.sleep(0.6)
    assert "again: ends" not in running.streams[2].read_text()
    begin = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    result = running.wait()
    assert ended(result, signal.SIGINT) and time.monotonic() - begin < 20
    assert "SIGINT again: ends at once" in result.stderr
    assert not list(tmp_path.glob("*.pt"))


def test_before_the_first_update(commands, corpus, mle, tmp_path):
    words = options(corpus, mle, tmp_path, slow(commands, 60), "--check-start warn")
    running = commands.start("fairseq-train", *words)
    wait_for_text(running, "begin validation on")
    time.sleep(0.5)
    begin = time.monotonic()
    os.kill(running.pid, signal.SIGTERM)
    result = running.wait()
    assert ended(result, signal.SIGTERM) and time.monotonic() - begin < 30
    assert "ends before the first update, there is nothing to save" in result.stderr
