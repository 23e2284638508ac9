"""Lines about updates, and what a run came to."""

import logging

import pytest

from esrl_fairseq.monitoring import progress
from esrl_fairseq.monitoring.outcome import Outcome
from esrl_fairseq.monitoring.progress import Progress

OUTPUTS = [
    {"draws": 6, "nsentences": 2, "reward": 1.5, "baseline": 0.2, "batches": 1},
    {"draws": 4, "nsentences": 2, "reward": 2.5, "baseline": 0.4, "batches": 1},
]
OUTPUTS[0]["seconds_reward"], OUTPUTS[1]["seconds_reward"] = 1, 2


@pytest.fixture
def clock(monkeypatch):
    """Time, which goes on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_has_the_means_since_the_last_one(clock, caplog):
    watched = Progress(100)
    with caplog.at_level(logging.INFO):
        for update in range(1, 5):
            clock[0] += 10  # a validation, say
            watched.begin_update()
            clock[0] += 1.5
            watched.add(OUTPUTS, update)
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in told] == ["update 1", "update 2", "update 3"]
    assert "reward 0.4000, baseline 0.3000, 2.5 samples an input, 1.50 s an update" in told[0]
    assert "reward 3.00," in told[0]


def test_lines_come_after_some_time(clock, caplog):
    watched = Progress(100)
    with caplog.at_level(logging.INFO):
        for update in range(1, 100):
            watched.begin_update()
            clock[0] += 7
            watched.add(OUTPUTS, update)
    updates = [int(record.getMessage().split()[1].strip(":")) for record in caplog.records]
    # 9 updates take a minute; between 10 and 20 that passes once.
    assert updates[:7] == [1, 2, 3, 5, 10, 19, 20]
    assert {after - before for before, after in zip(updates[6:], updates[7:])} == {9}


@pytest.mark.parametrize("interval", [None, 1, progress.FREQUENT])
def test_no_line_where_fairseq_tells_or_nobody_reads(interval, caplog):
    watched = Progress(interval)
    with caplog.at_level(logging.INFO):
        watched.begin_update()
        watched.add(OUTPUTS, 1)
    assert not caplog.records


def test_outcome():
    outcome = Outcome()
    assert "not measured" in outcome.sentence("run", True, True)
    for reward, update in ((0.36, 0), (0.37, 20), (0.39, 40), (0.38, 60)):
        outcome.add(reward, update)
    again = Outcome()
    again.load_state_dict(outcome.state_dict())
    told = again.sentence("run", True, True)
    assert told == (
        "validation reward: start 0.3600 → best 0.3900 at update 40, last 0.3800 at update 60; "
        "run/checkpoint_best.pt"
    )
    assert "another metric" in again.sentence("run", False, True)
    assert "nothing was saved" in again.sentence("run", True, False)


def test_outcome_that_is_no_gain():
    outcome = Outcome()
    outcome.add(0.36, 0), outcome.add(0.35, 20)
    assert "no validation was better than the start" in outcome.sentence("run", True, True)
