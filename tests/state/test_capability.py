"""The capability store: a file that is either exactly this data's or refused; and the RL state."""

import io
import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import make_dataset

from esrl_fairseq.core.baselines import FifoBaseline
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.capability import HEADER, MAGIC, RECORD, CapabilityStore, data_fingerprint
from esrl_fairseq.state.rl_state import RLState, Visit

OWNER, OTHER = bytes(range(32)), bytes(32)


def records(*capabilities):
    found = np.zeros(len(capabilities), RECORD)
    found["capability"] = capabilities
    found["reward_mean"] = 0.5
    found["samples"] = 8
    found["epoch"] = 3
    return found


def filled(path, size=5):
    store = CapabilityStore(size, OWNER, path)
    store.write([1, 3], records(0.25, 0.75))
    return store


def test_a_new_store_knows_nothing(tmp_path):
    """All capabilities unknown, in memory and in a file, whose folder is made; no half file."""
    path = tmp_path / "new" / "x.store"
    for store in (CapabilityStore(4, OWNER), CapabilityStore(4, OWNER, str(path))):
        assert np.isnan(store.capability([0, 1, 2, 3])).all()
        assert not store.records["samples"].any()
    assert [p.name for p in path.parent.iterdir()] == ["x.store"]
    assert path.stat().st_size == HEADER.size + 4 * RECORD.itemsize


def test_what_is_written_is_there_when_opened_again(tmp_path):
    """Records by id; the others stay unknown."""
    path = str(tmp_path / "x.store")
    store = filled(path)
    store.records.flush()
    again = CapabilityStore(5, OWNER, path)
    assert np.array_equal(
        again.capability([3, 0, 1]), np.float32([0.75, np.nan, 0.25]), equal_nan=True
    )
    assert again.records[3] == records(0.75)[0]
    again.clear()
    assert np.isnan(again.capability(range(5))).all()


def test_a_file_is_one_process_alone(tmp_path):
    """Another process is refused until this one has closed it."""
    path = str(tmp_path / "x.store")
    module = "esrl_fairseq.state.capability"
    opening = f"from {module} import *; CapabilityStore(5, {OWNER!r}, {path!r})"

    def other_process():
        return subprocess.run([sys.executable, "-c", opening], capture_output=True, text=True)

    store = filled(path)
    refused = other_process()
    assert (
        refused.returncode and f"another run is using the capability store {path}" in refused.stderr
    )
    assert store.capability([1]) == 0.25
    del store
    assert other_process().returncode == 0


def test_the_file_format_is_fixed(tmp_path):
    """Its bytes as documented, so that version 1 stays readable."""
    path = tmp_path / "x.store"
    filled(str(path)).records.flush()
    content = path.read_bytes()
    assert content[:64] == struct.pack("<8sIIQ32s8x", b"ESRLCAPA", 1, 24, 5, OWNER)
    assert struct.unpack("<ffffII", content[64 + 3 * 24 : 64 + 4 * 24]) == (0.75, 0.5, 0, 0, 8, 3)


DAMAGES = {
    "empty": lambda b: b"",
    "header cut": lambda b: b[:40],
    "truncated": lambda b: b[:-1],
    "records gone": lambda b: b[:64],
    "longer": lambda b: b + b"x",
    "wrong magic": lambda b: b"PK" + b[2:],
    "text": lambda b: b"Dear diary,\n" * 20,
    "other version": lambda b: MAGIC + struct.pack("<I", 2) + b[12:],
    "other record": lambda b: b[:12] + struct.pack("<I", 28) + b[16:],
    "other size": lambda b: b[:16] + struct.pack("<Q", 6) + b[24:] + bytes(24),
    "other data": lambda b: b[:24] + OTHER + b[56:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, damage):
    """One sentence with the path and the way out, and not a byte changed."""
    path = tmp_path / "x.store"
    filled(str(path)).records.flush()
    content = DAMAGES[damage](path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(EsrlError) as error:
        CapabilityStore(5, OWNER, str(path))
    assert str(path) in str(error.value) and "--capability-store" in str(error.value)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["x.store"]
    state = RLState(str(tmp_path))
    path.rename(tmp_path / "capability.0.store")
    with pytest.raises(EsrlError):
        state.open_store(0, 5, OWNER)
    assert (tmp_path / "capability.0.store").read_bytes() == content


def test_snapshot_and_restore():
    """All records as they were; a snapshot of other data or size is refused and changes nothing."""
    store, other = filled(None), CapabilityStore(5, OWNER)
    other.restore(OWNER, store.snapshot())
    assert other.snapshot() == store.snapshot()
    assert other.capability([1, 3]).tolist() == [0.25, 0.75]
    store.write([0], records(0.5))  # the snapshot was a copy
    assert np.isnan(other.capability([0]))[0]
    for fingerprint, snapshot in ((OTHER, other.snapshot()), (OWNER, other.snapshot()[:-24])):
        before = store.snapshot()
        with pytest.raises(EsrlError, match="other training data"):
            store.restore(fingerprint, snapshot)
        assert store.snapshot() == before


def test_fingerprint_sees_every_change():
    """Equal data give equal fingerprints; another word, length or order does not."""
    fingerprint = data_fingerprint(make_dataset())
    assert len(fingerprint) == 32 and data_fingerprint(make_dataset()) == fingerprint
    changed = make_dataset()
    changed.tgt.items[2][0] += 1
    shorter = make_dataset(5)
    other = make_dataset(seed=4)
    assert len({fingerprint, *map(data_fingerprint, (changed, shorter, other))}) == 4


def make_state(folder=None):
    state = RLState(folder)
    state.baseline = FifoBaseline(4)
    return state


def trained_state(folder=None):
    """Two shards, a quantile reference of epoch 2 and rewards that already left the queue."""
    state = make_state(folder)
    for shard, values in ((0, [0.1, 0.2, 0.4]), (1, [0.8])):
        state.open_store(shard, 5, OWNER)
        seen = records(*values)
        seen["reward_std"] = np.arange(len(values)) / 10
        state.add(Visit(np.arange(len(values)), seen, np.float32([1, 2, 3])))
        state.commit()
    state.begin_epoch(2)
    return state


def reloaded(state):
    """The state dict through a checkpoint file, read by torch's safe loader."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(one, other):
    assert one.baseline.rewards.tolist() == other.baseline.rewards.tolist()
    assert one.reference.tolist() == other.reference.tolist()
    assert one.mean_variance == other.mean_variance
    assert one.reference_epoch == other.reference_epoch
    ids = torch.arange(5)
    for shard in (0, 1):
        for state in (one, other):
            state.open_store(shard, 5, OWNER)
        assert one.store.snapshot() == other.store.snapshot()
        assert np.array_equal(one.quantiles(ids), other.quantiles(ids), equal_nan=True)
        assert np.array_equal(one.variances(ids), other.variances(ids), equal_nan=True)


def test_state_survives_a_checkpoint(tmp_path):
    """Queue, reference and the stores of all shards, also of those not opened since."""
    state, other = trained_state(str(tmp_path)), make_state(str(tmp_path))
    saved = reloaded(state)
    other.load_state_dict(saved)
    other.open_store(1, 5, OWNER)
    third = make_state()
    third.load_state_dict(reloaded(other))  # shard 0 went through `other` unopened
    same(state, third)
    same(trained_state(), other)
    assert other.baseline.rewards.tolist() == [3, 1, 2, 3]


def test_resuming_takes_the_checkpoint_not_the_file(tmp_path):
    """The file may hold updates after the checkpoint; without a checkpoint it is emptied."""
    state = trained_state(str(tmp_path))
    saved = reloaded(state)
    state.open_store(1, 5, OWNER)
    state.add(Visit(np.array([4]), records(0.9), np.float32([9])))
    state.commit()
    resumed = make_state(str(tmp_path))
    resumed.load_state_dict(saved)
    resumed.open_store(1, 5, OWNER)
    assert np.isnan(resumed.store.capability([4]))[0]
    fresh = make_state(str(tmp_path))
    fresh.open_store(1, 5, OWNER)
    assert np.isnan(fresh.store.capability(range(5))).all()


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    """Resuming on other training data stops with one sentence."""
    state = make_state()
    state.load_state_dict(trained_state().state_dict())
    with pytest.raises(EsrlError, match="other training data"):
        state.open_store(0, 5, OTHER)


def test_quantiles_are_refreshed_once_an_epoch():
    """They come from all shards, ignore this epoch's visits, and survive begin_epoch on resume."""
    state = trained_state()
    assert np.allclose(state.reference, [0.1, 0.2, 0.4, 0.8])
    state.open_store(0, 5, OWNER)
    expected = [0.125, 0.375, 0.625, np.nan, np.nan]
    assert np.allclose(state.quantiles(torch.arange(5)), expected, equal_nan=True)
    state.add(Visit(np.array([3]), records(1.0), np.float32([0])))
    state.commit()
    resumed = make_state()
    resumed.load_state_dict(state.state_dict())
    resumed.open_store(0, 5, OWNER)
    for one in (state, resumed):
        one.begin_epoch(2)
        assert np.allclose(one.reference, [0.1, 0.2, 0.4, 0.8])
        assert one.store.records["epoch"].tolist() == [1, 1, 1, 2, 0]
        one.begin_epoch(3)
        assert np.allclose(one.reference, [0.1, 0.2, 0.4, 0.8, 1])


def test_the_mean_variance_is_refreshed_once_an_epoch():
    """From all shards: 8 (0.1² + 0.2²) over 4 · 7 degrees of freedom; unknown in epoch 1."""
    state = trained_state()
    state.open_store(0, 5, OWNER)
    mean = 0.05 * 8 / 28
    assert np.isclose(state.mean_variance, mean)
    expected = [(4 * mean + 8 * std**2) / 11 for std in (0, 0.1, 0.2)]
    ids = torch.arange(5)
    assert np.allclose(state.variances(ids), [*expected, np.nan, np.nan], equal_nan=True)
    state.add(Visit(np.array([4]), records(1.0), np.float32([0])))
    state.commit()
    state.begin_epoch(2)
    assert np.isclose(state.mean_variance, mean)
    state.begin_epoch(3)
    assert np.isclose(state.mean_variance, 0.05 * 8 / 35)
    new = make_state()
    new.open_store(0, 5, OWNER)
    new.begin_epoch(1)
    assert np.isnan(new.mean_variance) and np.isnan(new.variances(ids)).all()


def test_the_mean_variance_does_not_depend_on_which_shard_is_open():
    """Bit for bit: a resumed run opens the shards in another order."""
    state = make_state()
    for shard, values in ((0, [1e-8, 0.3]), (1, [0.7, 1 / 3]), (2, [0.1, 1e-8])):
        state.open_store(shard, 2, OWNER)
        seen = records(0.5, 0.5)
        seen["reward_std"], seen["samples"] = values, 3 + shard
        state.store.write([0, 1], seen)
    found = set()
    for order in itertools.permutations(range(3)):
        resumed = make_state()
        resumed.load_state_dict(reloaded(state))
        for shard in order[:2]:
            resumed.open_store(shard, 2, OWNER)
        resumed.begin_epoch(2)
        found.add(resumed.mean_variance)
    state.begin_epoch(2)
    assert found == {state.mean_variance}


def test_a_checkpoint_without_mean_variance():
    """From before --elimination-ratio auto: variances are unknown until the next epoch."""
    saved = reloaded(trained_state())
    del saved["mean_variance"]
    state = make_state()
    state.load_state_dict(saved)
    state.open_store(0, 5, OWNER)
    state.begin_epoch(2)
    assert np.isnan(state.variances(torch.arange(5))).all()
    state.begin_epoch(3)
    assert np.isfinite(state.variances(torch.arange(3))).all()
