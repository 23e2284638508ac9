"""Rewards in processes of their own: the same numbers and sentences, and nothing is left behind."""

import os

import numpy as np
import pytest
from command_lines import gone

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards import build_reward
from esrl_fairseq.rewards.asking import ask_rows
from esrl_fairseq.rewards.watch import Watch
from esrl_fairseq.rewards.workers import build_workers

FUNCTIONS = """
import os, random, time

def fine(sources, hypotheses, references):
    sources.clear()
    return (len(text) / 100 for text in hypotheses)

def draws(sources, hypotheses, references):
    return [random.random() for _ in hypotheses]

def fails(sources, hypotheses, references):
    if "aaaaa" in hypotheses:
        raise KeyError("five")
    return [1.0] * len(hypotheses)

def leaves(sources, hypotheses, references):
    if "aaaaa" in hypotheses:
        raise SystemExit(3)
    return [1.0] * len(hypotheses)

def few(sources, hypotheses, references):
    return [1.0]

def process(sources, hypotheses, references):
    return [os.getpid()] * len(hypotheses)

def dies(sources, hypotheses, references):
    os._exit(3)

def hangs(sources, hypotheses, references):
    with open("pid", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
"""
NAMES = ("fine", "draws", "fails", "leaves", "few", "process")
METRICS = "chrf*length-gate:0.5+bleu:0.5+corpus-bleu:0.5+length:0"
HYPOTHESES = [letter * length for letter in "ab" for length in range(9)]
ROW_INPUT = [0] * 9 + [2] * 9


def called(name):
    return f"python:in_workers.{name}"


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A folder with these functions, where Python finds them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("functions")
        (folder / "in_workers.py").write_text(FUNCTIONS)
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def workers(functions):
    """Two processes with all of the rewards; they start in seconds, so that tests share them."""
    reward = build_reward("+".join([METRICS, *map(called, NAMES)]))
    made = build_workers(2, reward, {"bleu": {"tokenize": "char"}})
    yield made
    made.close()


def ask(name, workers=None, seed=1, **keywords):
    reward = build_reward(name, {"bleu": {"tokenize": "char"}} if "bleu" in name else None)
    given = ["s", "t", "u"], HYPOTHESES, [["aaaa b"], ["c"], ["aa", "bbb"]], ROW_INPUT
    places = ["valid.en, line 1", "valid.en, line 2", "valid.en, line 3"]
    return ask_rows(reward, *given, places, seed, workers=workers, **keywords)


@pytest.mark.parametrize("name", [METRICS, called("fine")])
def test_the_same_numbers(name, workers):
    alone, dealt = ask(name), ask(name, workers)
    np.testing.assert_array_equal(dealt.rewards, alone.rewards)
    for part, values in alone.parts.items():
        np.testing.assert_array_equal(dealt.parts[part], values)
    for part, counts in alone.counts.items():
        np.testing.assert_array_equal(dealt.counts[part], counts)


def test_rows_are_dealt_out(workers):
    """In order, to all processes, of which none is this one; that the rows differ is refused."""
    with pytest.raises(EsrlError, match="others are asked about beside it.*--reward-workers 1"):
        ask(called("process"), workers)
    pids = ask(called("process"), workers).rewards  # it is compared once
    assert len(set(pids)) == 2 and (np.diff(pids) != 0).sum() == 1 and os.getpid() not in pids


def test_draws_are_refused(workers):
    with pytest.raises(EsrlError, match="draws' says something else .*draws random numbers"):
        ask(called("draws"), workers)


@pytest.mark.parametrize("name", ["fails", "leaves", "few"])
def test_the_same_sentences(name, workers):
    with pytest.raises(EsrlError) as alone:
        ask(called(name))
    with pytest.raises(EsrlError) as dealt:
        ask(called(name), workers)
    if name == "few":  # of a piece
        assert "returned shape (1,) instead of" in str(dealt.value)
    else:
        assert str(dealt.value) == str(alone.value)
        assert "valid.en, line 1 (input: 's', hypothesis: 'aaaaa')" in str(dealt.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("dies", "has lost a process of --reward-workers, which has ended with exit code 3, for a"),
        ("hangs", "did not answer within 0.5 seconds for 18 hypotheses of valid.en, line 1"),
    ],
)
def test_one_that_does_not_answer(name, message, functions):
    made = build_workers(1, build_reward(called(name)), {})
    try:
        with pytest.raises(EsrlError, match=message):
            ask(called(name), made, watch=Watch(0.5))
        pid = functions / "pid"
        assert name == "dies" or gone(int(pid.read_text()))
    finally:
        made.close()


def test_who_gets_workers():
    class Own:
        in_workers, leaves = False, ()

    own = Own()
    own.leaves = [own]
    assert build_workers(4, own, {}) is None  # a model, say
    assert build_workers(0, build_reward("chrf"), {}) is None
