"""The process that starts ranks: signals go on to them, and it waits for what they save."""

import json
import subprocess
import sys

import pytest
from command_lines import USER_DIR

PROGRAM = f"""
import functools, json, os, signal, sys, threading, time
sys.path.insert(0, {str(USER_DIR.parent)!r})
from types import SimpleNamespace
from torch.multiprocessing.spawn import start_processes
from esrl_fairseq.processes import spawning

spawning.MARGIN = spawning.GRACE = 0
fork = functools.partial(start_processes, start_method="fork")
RANKS = 2


def save_and_end(number, frame, code=0):
    time.sleep(0.5)
    with open(f"{{os.environ['CASE']}}.{{os.environ['RANK']}}", "w") as file:
        file.write("saved")
    os._exit(code or 128 + number)


def rank(number, main, cfg, keywords):
    os.environ["RANK"] = str(number)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, save_and_end)
    with open(f"{{os.environ['CASE']}}.begun{{number}}", "w"):
        pass
    main(number)
    time.sleep(20)


def waits(number):
    pass


def done(number):
    os._exit(0)


def one_killed(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(99))
    save_and_end(0, None, 1)


def all_killed(number):
    os.kill(os.getpid(), signal.SIGKILL)


def one_stuck(number):
    if number == 1:
        os._exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begun():
    return all(os.path.exists(f"{{os.environ['CASE']}}.begun{{i}}") for i in range(RANKS))


def parent(main):
    cfg = SimpleNamespace(distributed_training=SimpleNamespace(heartbeat_timeout=1))
    spawning.start_ranks(fork, rank, (main, cfg, {{}}), RANKS)


def run(case, main, *signals, group=False):
    os.environ["CASE"] = case
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        code = 0
        try:
            parent(main)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
        with open(case + ".code", "w") as file:
            json.dump(code, file)
        os._exit(0)
    while signals and not begun():
        time.sleep(0.01)
    for number in signals:
        (os.killpg if group else os.kill)(pid, number)
    os.waitpid(pid, 0)
    saved = [os.path.exists(f"{{case}}.{{i}}") for i in range(RANKS)]
    return json.load(open(case + ".code")), saved


print(json.dumps({{
    "terminated": run("terminated", waits, signal.SIGTERM),
    "interrupted": run("interrupted", waits, signal.SIGINT, group=True),
    "preempted": run("preempted", waits, signal.SIGUSR1),
    "done": run("done", done),
    "one killed": run("one_killed", one_killed),
    "all killed": run("all_killed", all_killed),
    "one stuck": run("one_stuck", one_stuck),
}}))
"""
EXPECTED = {
    "terminated": [143, [True, True]],
    "interrupted": [130, [True, True]],
    "preempted": [138, [True, True]],
    "done": [0, [False, False]],
    "one killed": [1, [True, False]],
    "all killed": [137, [False, False]],
    "one stuck": [3, [False, False]],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{case: [exit code, whether each rank saved]}"""
    folder = tmp_path_factory.mktemp("spawning")
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", EXPECTED)
def test_ranks_are_waited_for(case, found):
    assert found[case] == EXPECTED[case]
