"""Rewards that misbehave: what they change is put back, what they raise or leave undone is told."""

import asyncio
import gc
import itertools
import logging
import logging.config
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rewards import Fake, score

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import WeightedSum, build_reward, score_rows, watch
from esrl_fairseq.rewards.guard import SIGNALS, Guard
from esrl_fairseq.rewards.states import STATES
from esrl_fairseq.rewards.watch import TimeIsUp, Watch

ROOT = Path(__file__).resolve().parents[2]


def answer(pairs):
    return [0.5] * len(pairs)


def doing(*actions):
    """A reward that does something and answers."""

    def function(pairs):
        for action in actions:
            action()
        return answer(pairs)

    reward = Fake(function)
    reward.name = f"fake {next(NUMBER)}"  # each is warned of anew
    return reward


NUMBER = itertools.count()


def fail():
    raise KeyError("broken")


# --- what is put back -------------------------------------------------------------------------

CHANGES = {
    "torch's gradient mode": lambda: torch.set_grad_enabled(False),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's number of threads": lambda: torch.set_num_threads(3),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "cuDNN's switches": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the working directory": lambda: os.chdir("/"),
    "the level or the handlers of the log": lambda: logging.root.setLevel(logging.CRITICAL),
    "fairseq's loggers": lambda: logging.config.dictConfig({"version": 1}),
    "warnings into errors": lambda: warnings.simplefilter("error"),
    "where Python looks for modules": sys.path.clear,
    "torch's precision of matrix products": lambda: torch.set_float32_matmul_precision("high"),
    "torch's search for anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "garbage collection": gc.disable,
}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_what_is_changed_is_put_back_and_told_once(state, caplog):
    if state.name == "the current CUDA device":
        return  # there may be none
    before = state.get()
    reward = doing(CHANGES[state.name])
    for _ in range(2):
        score(reward)
        assert state.get() == before
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if f"changed {state.name}" in text] == told[:1] == told
    with pytest.raises(EsrlError, match="broken"):
        score(doing(CHANGES[state.name], fail))
    assert state.get() == before


def test_signals_and_clocks(caplog):
    before = [signal.getsignal(number) for number in SIGNALS]
    clock = signal.getitimer(signal.ITIMER_REAL)

    def change():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.alarm(1)

    score(doing(change))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == clock
    told = caplog.text
    assert "the handler of SIGTERM" in told and "the alarm clock" in told


def test_warnings_are_warnings_again():
    """Also those that were seen before."""
    score(doing(lambda: warnings.simplefilter("error")))
    with warnings.catch_warnings(record=True) as told:
        warnings.warn("of training", stacklevel=1)
    assert len(told) == 1


def test_what_a_reward_may_add(caplog):
    """Folders of modules, loggers, filters that hide warnings: it needs them."""
    name = f"fairseq.new{next(NUMBER)}"

    def add():
        sys.path.insert(0, "/of/a/reward")
        logging.getLogger(name).info("made")
        warnings.filterwarnings("ignore", "of a reward")

    paths, filters = list(sys.path), list(warnings.filters)
    try:
        score(doing(add))
        assert sys.path == ["/of/a/reward", *paths] and len(warnings.filters) == len(filters) + 1
    finally:
        sys.path[:] = paths
        warnings.filters[:] = filters
    assert not caplog.records


def test_what_signals_wake_up(caplog):
    """An event loop with handlers of its own takes it when it is closed; a second signal then
    would end nothing."""
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)

    def loop():
        own = asyncio.new_event_loop()
        own.add_signal_handler(signal.SIGTERM, print)
        own.close()

    try:
        score(doing(loop))
        assert signal.set_wakeup_fd(mouth) == mouth
    finally:
        signal.set_wakeup_fd(before)
        os.close(ears)
        os.close(mouth)
    assert "changed what signals wake up" in caplog.text


def generators():
    numpy = np.random.get_state()
    return random.getstate(), [*numpy[1], *numpy[2:]], torch.get_rng_state().tolist()


def seeds():
    random.seed(3), np.random.seed(3), torch.manual_seed(3)


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")

    def remove():
        os.chdir("/")
        (tmp_path / "gone").rmdir()

    before = torch.is_grad_enabled()
    with pytest.raises(EsrlError, match="changed the working directory, and it cannot be put back"):
        score(doing(remove, lambda: torch.set_grad_enabled(False)))
    assert torch.is_grad_enabled() == before
    assert not threading.main_thread().daemon


def test_seeds_stay_the_rewards():
    """With a seed, as in training: no draw of anybody else's changes, and the reward's own are a
    function of seed and inputs. Without one, as in a program, the generators are the program's."""
    drawn = []

    def draw():
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))

    def ask(seed, ids=(70, 71), action=draw):
        texts = ["x", "y", "x", "x"]
        row_input = [0, 0, 1, 0]
        references = [["r0"], ["r1"]]
        score_rows(doing(action), ["s0", "s1"], texts, references, row_input, ids, seed)

    torch.manual_seed(9)
    before = generators()
    ask(1, action=seeds)
    assert generators() == before and torch.initial_seed() == 9
    reward = doing(draw)
    given = ["s0", "s1"], ["x"], [["r0"], ["r1"]], [0], [70, 71]
    for seed, ids in ((1, [70, 71]), (1, [70, 71]), (2, [70, 71]), (1, [70, 72])):
        score_rows(reward, *given[:4], ids, seed)
        random.random()
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    random.seed(4)
    expected = random.random()
    random.seed(4)
    ask(None)
    assert drawn[-1][0] == expected


STREAMS = """
import codecs, io, logging, os, sys
sys.path.insert(0, {root!r})
from esrl_fairseq.rewards.guard import Guard

for name in ("stdout", "stderr"):
    logging.basicConfig(stream=getattr(sys, name), force=True)
    for number, change in enumerate((
        lambda stream: stream.close(),
        lambda stream: setattr(sys, name, open(os.devnull, "w")),
        lambda stream: os.close(stream.fileno()),
        lambda stream: os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno()),
        lambda stream: setattr(sys, name, codecs.getwriter("utf-8")(stream.detach())),
        lambda stream: setattr(sys, name, io.TextIOWrapper(stream.buffer, encoding="utf-8")),
    )):
        for _ in range(2):
            with Guard(f"{{name}} {{number}}"):
                change(getattr(sys, name))
            opened = open(os.devnull)
            logging.info("nothing")
            logging.warning("the log goes on")
            print("printed", file=getattr(sys, name))
"""


def test_streams():
    """In a process of its own; both streams are closed, exchanged, closed and moved below,
    and lose their buffers to others."""
    code = STREAMS.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("stdout", "stderr"):
        lines = getattr(done, name).splitlines()
        assert lines.count("WARNING:root:the log goes on") == lines.count("printed") == 12, lines
        for number in range(6):
            told = [line for line in lines if f"reward '{name} {number}' changed" in line]
            assert len(told) in (1, 2) and len(set(told)) == len(told), told


def test_arguments_are_the_rewards_own():
    """Two parts of a sum see the same texts."""

    class Clearing(Fake):
        needs_references = False

        def score(self, sources, references, hypotheses, row_input):
            result = super().score(sources, references, hypotheses, row_input)
            for given in (sources, references, hypotheses, row_input):
                given.clear()
            return result

    parts = [Clearing(lambda pairs: [len(pairs) / 10] * len(pairs)) for _ in range(2)]
    result = score(WeightedSum("sum", [(part, 1.0) for part in parts]))
    np.testing.assert_allclose(result, [0.6] * 4, rtol=1e-6)
    assert parts[0].calls == parts[1].calls


def test_an_answer_that_changes_later_is_not_ours():
    buffer = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    result = score(Fake(lambda pairs: buffer))
    buffer[:] = 9
    np.testing.assert_allclose(result, [0.1, 0.2, 0.3, 0.1])


# --- what is returned -------------------------------------------------------------------------

VALUES = [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "kind",
    [
        iter,
        tuple,
        lambda values: (value for value in values),
        lambda values: map(float, values),
        lambda values: dict(enumerate(values)).values(),
        np.float64,
        lambda values: torch.tensor(values, requires_grad=True),
        lambda values: torch.tensor(values, dtype=torch.bfloat16),
        lambda values: torch.tensor(values).numpy()[::1],
        lambda values: [torch.tensor(value, requires_grad=True) for value in values],
        lambda values: [np.float16(value) for value in values],
    ],
)
def test_kinds_of_answers(kind):
    np.testing.assert_allclose(score(Fake(lambda pairs: kind(VALUES))), [0.25, 0.5, 0.75, 0.25])


@pytest.mark.parametrize(
    "answer",
    [
        {0.1, 0.2, 0.3},
        {"a": 0.1},
        itertools.count(),
        [0.1, None, 0.2],
        np.array([0.1, 0.2j, 0.3]),
        torch.tensor([0.1, 0.2j, 0.3]),
        np.ma.masked_array([0.1, 0.2, 0.3], mask=[False, True, False]),
        [torch.tensor([0.1]), torch.tensor([0.1, 0.2]), torch.tensor(0.3)],
        torch.tensor(0.5),
        object(),
        print,
        [[]],
    ],
)
def test_answers_that_are_not_understood(answer):
    with pytest.raises(EsrlError, match="reward 'fake' r.*sample 70"):
        score(Fake(lambda pairs: answer))


# --- what is raised ---------------------------------------------------------------------------


class Strange(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), SystemExit(), KeyboardInterrupt(), GeneratorExit(), Strange("why"),
     StopIteration(), RecursionError(), TimeIsUp],
)  # fmt: skip
def test_whatever_a_reward_raises_is_one_sentence(error):
    def end():
        raise error

    with pytest.raises(EsrlError, match="reward 'fake") as caught:
        score(doing(end))
    assert str(caught.value) and caught.value.code  # no exit code of 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_signal_raises_passes(number):
    """Ctrl-C, and the signals of schedulers: in a reward as elsewhere."""

    def handler(*_):
        raise SystemExit(77)

    before = signal.signal(number, handler)
    try:
        with pytest.raises(SystemExit) as caught:
            score(doing(lambda: os.kill(os.getpid(), number)))
        assert caught.value.code == 77 and not isinstance(caught.value, EsrlError)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_inference_mode_that_is_left_on():
    mode = torch.inference_mode()
    with pytest.raises(EsrlError, match="^reward 'fake .*left torch's inference mode"):
        score(doing(mode.__enter__))
    mode.__exit__(None, None, None)


@pytest.mark.parametrize("line", ["sys.exit(0)", "raise KeyboardInterrupt", "quit()"])
def test_a_module_that_ends_the_process(line, tmp_path, monkeypatch):
    (tmp_path / "ending_reward.py").write_text(f"import sys\n{line}\ndef f(s, h, r): return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EsrlError, match="reward 'python:ending_reward.f': loading it raised"):
        build_reward("python:ending_reward.f")


def test_what_a_module_changes_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "changing_reward.py").write_text(
        "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ndef f(s, h, r): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = os.getcwd()
    build_reward("python:changing_reward.f")
    assert (os.getcwd(), torch.get_default_dtype()) == (before, torch.float32)
    assert torch.is_grad_enabled()


# --- copies, threads, processes ---------------------------------------------------------------


@pytest.mark.parametrize("ends", ["returns", "exits", "raises"])
def test_a_copy_of_the_process_ends_with_the_call(ends, tmp_path):
    """What follows the call is done once."""

    def fork():
        if os.fork() == 0 and ends != "returns":
            raise (SystemExit(0) if ends == "exits" else KeyError("in the copy"))

    score_rows(doing(fork), ["s"], ["h"], [["r"]], [0], [1], 5, Watch(60))
    with open(tmp_path / "after", "a") as file:
        file.write("once\n")
    os.wait()
    assert (tmp_path / "after").read_text() == "once\n"


LEAVING = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
sys.path.insert(0, {root!r})
from esrl_fairseq.rewards.guard import Guard

with Guard("r"):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    threads = ThreadPoolExecutor(1)
    threads.submit(time.sleep, 1000)
    fork = multiprocessing.get_context("fork")
    fork.Process(target=time.sleep, args=(1000,)).start()
    processes = ProcessPoolExecutor(1, fork)
    processes.submit(time.sleep, 1000)
    time.sleep(0.2)
assert not threading.current_thread().daemon
print("over")
"""


def test_what_is_left_does_not_keep_the_process():
    """A thread and a process that sleep, and those of two pools."""
    code = LEAVING.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "over\n", done.stderr


def test_many_threads_are_told_of(caplog):
    event = threading.Event()

    def start():
        for _ in range(150):
            threading.Thread(target=event.wait).start()

    score(doing(start))
    event.set()
    assert len(re.findall("now ... threads run", caplog.text)) == 1
    assert not multiprocessing.active_children()


# --- the clock --------------------------------------------------------------------------------


def search():
    re.match(r"(a+)+b", "a" * 60)


def translate():
    """What interrupts it into something else."""
    try:
        time.sleep(60)
    except BaseException as error:
        raise RuntimeError("the service is down") from error


@pytest.mark.parametrize(
    "wait", [lambda: time.sleep(60), threading.Event().wait, search, translate]
)
def test_a_reward_that_takes_too_long(wait):
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    message = "did not answer within 0.2 seconds for 3 hypotheses of sample 70; sample 71: mend it"
    with pytest.raises(EsrlError, match=message):
        score_rows(doing(wait), ["s0", "s1"], ["x", "y", "x"], [["r"], ["q"]], [0, 0, 1], [70, 71],
                   watch=Watch(0.2))  # fmt: skip
    assert time.monotonic() - began < 3
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_reward_in_time_is_not_disturbed():
    clock = Watch(0.3)
    for _ in range(3):
        clock.begin(str)
        time.sleep(0.2)
        clock.end()
    time.sleep(0.4)
    with Guard("r"):
        clock.begin(str)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a clock of the reward's own
        signal.alarm(50)
        clock.end()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def swallow():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


def hold():
    """Compiled code that never lets go of the interpreter."""
    all(itertools.repeat(True))


@pytest.mark.parametrize(
    "wait, words",
    [
        (swallow, ["did not answer within 0.2 seconds for 1 hypotheses of sample 7", "; saved"]),
        (hold, ["Timeout (0:00:", "in hold"]),
    ],
)
def test_a_reward_that_cannot_be_interrupted(wait, words, tmp_path, monkeypatch):
    """The process ends nevertheless."""
    monkeypatch.setattr(watch, "GRACE", 1.0)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT), 2)
        clock = Watch(0.2)
        clock.last_words = lambda sentence: f"{sentence}; saved"
        score_rows(doing(wait), ["s"], ["h"], [["r"]], [0], [7], watch=clock)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    told = (tmp_path / "err").read_text()
    assert all(word in told for word in words), told
