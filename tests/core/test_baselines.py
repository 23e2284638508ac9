"""(f) The reward baselines, and what a checkpoint keeps of them."""

import io
import math

import numpy as np
import pytest
import torch

from esrl_fairseq.core.baselines import (
    KINDS,
    BatchBaseline,
    EmaBaseline,
    FifoBaseline,
    NoBaseline,
    WindowBaseline,
    build_baseline,
)
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.capability import RECORD
from esrl_fairseq.state.rl_state import RLState, Visit


def visit(ids, rewards):
    return Visit(np.array(ids), np.zeros(len(ids), RECORD), np.array(rewards, np.float32))


def test_oldest_rewards_leave_first():
    """Order and size of the queue, also when more arrive at once than it holds."""
    queue = FifoBaseline(3)
    queue.push([1.0, 2.0])
    assert queue.rewards.tolist() == [1, 2]
    queue.push([3.0, 4.0])
    assert queue.rewards.tolist() == [2, 3, 4]
    queue.push([])
    assert queue.rewards.tolist() == [2, 3, 4]
    queue.push([5.0, 6.0, 7.0, 8.0])
    assert queue.rewards.tolist() == [6, 7, 8]
    assert queue.value([100.0]) == 7


def test_empty_queue_gives_the_batch_mean():
    """Only while nothing was pushed; reading pushes nothing."""
    queue = FifoBaseline(3)
    assert queue.value([1.0, 2.0, 6.0]) == 3
    assert queue.value([5.0]) == 5
    assert queue.value([]) == 0
    queue.push([0.5])
    assert queue.value([1.0, 2.0]) == 0.5


def test_a_queue_needs_room():
    """Size 0 is refused."""
    with pytest.raises(ValueError, match="at least 1"):
        FifoBaseline(0)


def test_rewards_count_only_after_the_update():
    """Read before push: batches of one update do not see each other; commit keeps their order."""
    state = RLState(None)
    state.open_store(0, 4, "0" * 128)
    state.baseline = FifoBaseline(4)
    state.baseline.push([0.25])
    state.add(visit([0, 1], [1.0, 2.0]))
    assert state.baseline.value([9.0]) == 0.25
    state.add(visit([2], [3.0, 4.0]))
    assert state.baseline.value([9.0]) == 0.25
    assert np.isnan(state.store.capability(range(4))).all()
    state.commit()
    assert state.baseline.rewards.tolist() == [1, 2, 3, 4]
    assert np.isnan(state.store.capability(range(4))).tolist() == [False, False, False, True]
    state.commit()
    assert state.baseline.rewards.tolist() == [1, 2, 3, 4]


def test_moving_average_by_hand():
    """Means of updates with weights 1, d, d^2, … over the sum of these, from the first on."""
    ema = EmaBaseline(0.5)
    assert ema.value([1.0, 3.0]) == 2 and ema.value([]) == 0
    ema.push([8.0])
    assert ema.value([0.0]) == 8  # not 4, as without correction
    ema.push([1.0, 1.0, 4.0])
    assert ema.value([0.0]) == pytest.approx((8 * 0.5 + 2) / 1.5)
    ema.push([])
    ema.push([6.0])
    assert ema.value([0.0]) == pytest.approx((8 * 0.25 + 2 * 0.5 + 6) / 1.75)


def test_moving_average_equals_the_published_form():
    """m_t / (1 - d^t), m_t = d m_(t-1) + (1 - d) R_t."""
    ema, moment = EmaBaseline(0.9), 0.0
    for t, reward in enumerate(np.random.default_rng(1).random(30), start=1):
        ema.push([reward])
        moment = 0.9 * moment + 0.1 * reward
        assert math.isclose(ema.value([]), moment / (1 - 0.9**t), rel_tol=1e-12)


def test_window_by_hand():
    """Every reward of the last updates counts the same, and whole updates leave."""
    window = WindowBaseline(2)
    assert window.value([1.0, 3.0]) == 2
    window.push([1.0])
    window.push([2.0, 2.0, 5.0])
    assert window.value([9.0]) == 2.5
    window.push([])
    window.push([6.0])
    assert window.value([9.0]) == 15 / 4


def test_window_and_queue_differ_in_what_they_forget():
    """A queue smaller than an update holds its end only, a window all of it."""
    queue, window = FifoBaseline(2), WindowBaseline(1)
    for baseline in (queue, window):
        baseline.push([0.0, 0.0, 6.0, 6.0])
    assert queue.value([]) == 6 and window.value([]) == 3


def test_batch_and_none_remember_nothing():
    """The mean of the very batch, and 0."""
    for baseline, expected in ((BatchBaseline(), 2.0), (NoBaseline(), 0.0)):
        baseline.push([100.0])
        assert baseline.value([1.0, 3.0]) == expected
        assert baseline.state() == {}


def make(kind):
    return build_baseline(kind, queue_size=5, decay=0.7, window=3)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    """Each name builds its own kind, with the setting that belongs to it."""
    baseline = make(kind)
    assert baseline.kind == kind
    settings = {"fifo": ("size", 5), "ema": ("decay", 0.7), "window": ("updates", 3)}
    if kind in settings:
        assert getattr(baseline, settings[kind][0]) == settings[kind][1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmaBaseline(1.0), "below 1"),
        (lambda: EmaBaseline(-0.1), "from 0"),
        (lambda: WindowBaseline(0), "at least 1"),
    ],
)
def test_settings_that_cannot_work(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def through_a_checkpoint(state):
    """Read again by torch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def rl_state(kind, updates=0):
    state = RLState(None)
    state.baseline = make(kind)
    rewards = np.random.default_rng(2)
    for _ in range(updates):
        state.baseline.push(rewards.random(4, dtype=np.float32))
    return state


@pytest.mark.parametrize("updates", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_continues_bit_by_bit(kind, updates):
    """The same values now and after further updates, for every kind."""
    one, other = rl_state(kind, updates), rl_state(kind)
    other.load_state_dict(through_a_checkpoint(one.state_dict()))
    rewards = np.random.default_rng(3)
    for _ in range(5):
        assert one.baseline.value([0.5]) == other.baseline.value([0.5])
        pushed = rewards.random(3, dtype=np.float32)
        one.baseline.push(pushed), other.baseline.push(pushed)


def test_a_restored_baseline_does_not_share_memory():
    """Training on does not change the checkpoint's tensors, nor those of another state."""
    one, other = rl_state("window", 2), rl_state("window")
    saved = one.state_dict()
    other.load_state_dict(saved)
    other.baseline.sums += 1
    assert other.baseline.value([]) != one.baseline.value([])
    assert torch.equal(
        saved["baseline"]["state"]["sums"], one.state_dict()["baseline"]["state"]["sums"]
    )


def test_smaller_settings_after_a_resume():
    """A shorter queue or window keeps the newest; another decay keeps the average so far."""
    fifo, window, ema = (rl_state(kind, 5) for kind in ("fifo", "window", "ema"))
    for state, build in (
        (fifo, lambda: FifoBaseline(2)),
        (window, lambda: WindowBaseline(1)),
        (ema, lambda: EmaBaseline(0.1)),
    ):
        other = rl_state("none")
        other.baseline = build()
        other.load_state_dict(state.state_dict())
        state.resumed = other.baseline
    assert fifo.resumed.rewards.tolist() == fifo.baseline.rewards[-2:].tolist()
    last = window.baseline
    assert window.resumed.value([]) == last.sums[-1] / last.counts[-1]
    assert ema.resumed.value([]) == ema.baseline.value([])


def test_a_checkpoint_without_kinds_is_a_queue(caplog):
    """Those of versions that knew the queue only hold it as ``rewards``."""
    state = rl_state("fifo")
    old = state.state_dict()
    del old["baseline"]
    old["rewards"] = torch.tensor([0.25, 0.5, 0.75])
    state.load_state_dict(through_a_checkpoint(old))
    assert state.baseline.rewards.tolist() == [0.25, 0.5, 0.75] and not caplog.records
    other = rl_state("window")
    other.load_state_dict(old)
    assert other.baseline.value([9.0]) == 9 and "--reward-baseline fifo" in caplog.text


def test_another_kind_begins_anew_with_a_warning(caplog):
    """Rewards seen by the other kind are left out, and the log says so."""
    state = rl_state("ema")
    state.load_state_dict(rl_state("window", 3).state_dict())
    assert state.baseline.value([9.0]) == 9
    assert len(caplog.records) == 1
    assert "trained with --reward-baseline window, this run has ema" in caplog.text


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("fifo", lambda saved: saved.update(kind="median")),
        ("fifo", lambda saved: saved.pop("kind")),
        ("fifo", lambda saved: saved.pop("state")),
        ("fifo", lambda saved: saved["state"].clear()),
        ("fifo", lambda saved: saved.update(state={"rewards": [1.0]})),
        ("fifo", lambda saved: saved.update(state={"rewards": torch.tensor([1, 2])})),
        ("fifo", lambda saved: saved.update(state={"rewards": torch.ones(2, 2)})),
        ("fifo", lambda saved: saved["state"]["rewards"].fill_(math.nan)),
        ("ema", lambda saved: saved["state"].update(rewards=torch.ones(2))),
        ("ema", lambda saved: saved["state"]["weight"].fill_(1.5)),
        ("ema", lambda saved: saved["state"]["sum"].fill_(math.inf)),
        ("window", lambda saved: saved["state"].update(counts=torch.tensor([4]))),
        ("window", lambda saved: saved["state"]["counts"].fill_(0)),
    ],
)
def test_foreign_state_is_refused(kind, damage):
    """One sentence, and the baseline stays as it was."""
    saved, other = rl_state(kind, 3).state_dict(), rl_state(kind, 1)
    before = other.baseline.value([])
    damage(saved["baseline"])
    with pytest.raises(EsrlError, match="reward baseline cannot be read .*--reset-dataloader"):
        other.load_state_dict(saved)
    assert other.baseline.value([]) == before


def test_an_old_checkpoint_without_queue_is_refused():
    state = rl_state("fifo")
    saved = state.state_dict()
    del saved["baseline"]
    with pytest.raises(EsrlError, match="cannot be read"):
        state.load_state_dict(saved)


def test_an_update_of_several_batches_is_pushed_once():
    """--update-freq and ranks: one update, whatever it was made of; without draws, none."""
    state = RLState(None)
    state.open_store(0, 4, "0" * 128)
    state.baseline = WindowBaseline(2)
    for rewards in ([1.0, 2.0], [3.0], []):
        state.add(visit([0], rewards))
    state.commit()
    state.commit()
    assert state.baseline.counts.tolist() == [3] and state.baseline.sums.tolist() == [6]
