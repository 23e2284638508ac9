"""(f) The FIFO reward baseline."""

import numpy as np
import pytest

from esrl_fairseq.capability import RECORD
from esrl_fairseq.core.baselines import FifoBaseline
from esrl_fairseq.state import RLState, Visit


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
    state.open_store(0, 4, bytes(32))
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
