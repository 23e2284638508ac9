"""The capability store in memory and in checkpoints, and the RL state around it."""

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esrl_fairseq.core.baselines import FifoBaseline
from esrl_fairseq.core.schedules import quantile
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state import capability, rl_state
from esrl_fairseq.state.capability import EARLIER_RECORD, RECORD, CapabilityStore, pack, unpack
from esrl_fairseq.state.rl_state import RLState, Visit

OWNER, OTHER = "ab" * 64, "cd" * 64


def records(*capabilities):
    found = np.zeros(len(capabilities), RECORD)
    found["capability"] = capabilities
    found["reward_mean"] = 0.5
    found["samples"] = 8
    found["epoch"] = 3
    return found


def filled(size=5):
    store = CapabilityStore(size, OWNER)
    store.write([1, 3], records(0.25, 0.75))
    return store


def test_a_new_store_knows_nothing():
    store = CapabilityStore(4, OWNER)
    assert np.isnan(store.capability([0, 1, 2, 3])).all()
    assert not store.records["samples"].any()


def test_records_by_id():
    """The others stay unknown."""
    found = filled().capability([3, 0, 1])
    assert np.array_equal(found, np.float32([0.75, np.nan, 0.25]), equal_nan=True)


def test_fewer_than_twenty_bytes_a_sample():
    """In memory and in a checkpoint that has all of it."""
    store = CapabilityStore(100_000, OWNER)
    store.write(np.arange(100_000), np.full(100_000, records(0.5)[0]))
    packed = store.state(0, None)["packed"]
    assert (store.records.nbytes + store.changed.nbytes) / store.size < 20
    assert len(packed) / store.size < 17


def test_packed_records(monkeypatch):
    """Whatever is chosen comes back, bit for bit, and nothing else is touched."""
    monkeypatch.setattr(capability, "CHUNK", 16)
    draw = np.random.default_rng(1)
    for size in (0, 1, 15, 16, 17, 50):
        own = np.frombuffer(draw.bytes(size * RECORD.itemsize), RECORD)
        other = np.frombuffer(draw.bytes(size * RECORD.itemsize), RECORD).copy()
        chosen = draw.random(size) < 0.4
        content = b"".join(pack(own, chosen))
        assert len(content) == capability.packed_bytes(chosen)
        expected = np.where(chosen, own, other).tobytes()
        assert np.array_equal(unpack(other, io.BytesIO(content)), chosen)
        assert other.tobytes() == expected
        if content:
            with pytest.raises(ValueError):
                unpack(other, io.BytesIO(content[:-1]))


def test_other_data_are_refused():
    """Another number of samples, and as many of other tokens; an earlier fingerprint is known."""
    store = CapabilityStore(5, OWNER[:64])
    with pytest.raises(EsrlError, match="it had 5 samples, this one has 6"):
        store.check_data(6, OWNER)
    with pytest.raises(EsrlError, match="as many samples, but of other tokens"):
        store.check_data(5, OTHER)
    store.check_data(5, OWNER)
    assert store.fingerprint == OWNER
    with pytest.raises(EsrlError, match="other training data"):
        store.check_data(5, OWNER[:64] + OTHER[64:])


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
        assert one.store.records.tobytes() == other.store.records.tobytes()
        assert np.array_equal(one.quantiles(ids), other.quantiles(ids), equal_nan=True)
        assert np.array_equal(one.variances(ids), other.variances(ids), equal_nan=True)


@pytest.mark.parametrize("whole", [capability.WHOLE, 0])
def test_state_survives_a_checkpoint(tmp_path, monkeypatch, whole):
    """Queue, reference and the stores of all shards, also of those not opened since; those of
    small stores in the checkpoint, of large ones in files."""
    monkeypatch.setattr(capability, "WHOLE", whole)
    state, other = trained_state(str(tmp_path)), make_state(str(tmp_path))
    saved = reloaded(state)
    other.load_state_dict(saved)
    other.open_store(1, 5, OWNER)
    third = make_state(str(tmp_path))
    third.load_state_dict(reloaded(other))  # shard 0 went through `other` unopened
    same(state, third)
    same(trained_state(), other)
    assert other.baseline.rewards.tolist() == [3, 1, 2, 3]


def test_resuming_forgets_what_came_after_the_checkpoint():
    """And without a checkpoint nothing is known."""
    state = trained_state()
    saved = reloaded(state)
    state.open_store(1, 5, OWNER)
    state.add(Visit(np.array([4]), records(0.9), np.float32([9])))
    state.commit()
    resumed = make_state()
    resumed.load_state_dict(saved)
    resumed.open_store(1, 5, OWNER)
    assert np.isnan(resumed.store.capability([4]))[0]
    fresh = make_state()
    fresh.open_store(1, 5, OWNER)
    assert np.isnan(fresh.store.capability(range(5))).all()


def test_a_checkpoint_of_an_earlier_version():
    """It has all records as an array, with an entropy, and half of the fingerprint."""
    saved = reloaded(trained_state())
    for shard, values in ((0, [0.1, 0.2, 0.4, np.nan, np.nan]), (1, [0.8, *[np.nan] * 4])):
        earlier = np.zeros(5, EARLIER_RECORD)
        earlier["capability"] = values
        known = ~np.isnan(values)
        earlier["samples"], earlier["epoch"] = known * 8, known
        earlier["reward_mean"] = earlier["entropy"] = np.where(known, 0.5, np.nan)
        earlier["reward_std"] = np.where(known, np.arange(5) / 10, np.nan)
        content = torch.frombuffer(bytearray(earlier.tobytes()), dtype=torch.uint8)
        saved["stores"][shard] = {"fingerprint": OWNER[:64], "records": content}
    state = make_state()
    state.load_state_dict(saved)
    same(trained_state(), state)
    with pytest.raises(EsrlError, match="other training data"):
        state.open_store(0, 5, OTHER)


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: store.pop("samples"),
        lambda store: store.update(samples="many"),
        lambda store: store.update(samples=10**17),
        lambda store: store.update(packed=store["packed"][:-1]),
        lambda store: store.update(files=[["a"]]),
        lambda store: store.clear(),
    ],
)
def test_a_store_that_cannot_be_read(damage):
    saved = reloaded(trained_state())
    damage(saved["stores"][0])
    with pytest.raises(EsrlError, match="capability store cannot be read"):
        make_state().load_state_dict(saved)


def test_a_checkpoint_of_other_data_is_refused():
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


def test_many_inputs_are_known_by_some_of_them(monkeypatch):
    """Quantiles, variances and means of a hundredth are about those of all, also over shards; they
    are the same after a resume, and others in the next epoch."""
    draw, sizes, state = np.random.default_rng(3), (150_000, 50_000, 100_000), make_state()
    for shard, size in enumerate(sizes):
        state.open_store(shard, size, OWNER)
        seen = np.zeros(size, RECORD)
        seen["capability"] = draw.random(size) ** 2 * (1 + shard) / 3
        seen["reward_mean"], seen["reward_std"] = seen["capability"], draw.random(size)
        seen["samples"] = draw.integers(1, 9, size)
        state.store.write(np.arange(size), seen)
    state.begin_epoch(2)
    exact = state.reference, state.mean_variance, state.inputs
    monkeypatch.setattr(rl_state, "ENOUGH", 20_000)
    saved = reloaded(state)
    state.begin_epoch(3)
    probes = np.linspace(0, 1, 50)
    difference = quantile(probes, state.reference) - quantile(probes, exact[0])
    assert 0 < np.abs(difference).max() < 0.01
    assert state.mean_variance == pytest.approx(exact[1], rel=0.03)
    assert state.inputs.mean == pytest.approx(exact[2].mean, rel=0.02)
    assert state.inputs.between == pytest.approx(exact[2].between, rel=0.05)
    resumed = make_state()
    resumed.load_state_dict(saved)
    resumed.begin_epoch(3)
    assert np.array_equal(resumed.reference, state.reference)
    assert resumed.mean_variance == state.mean_variance and resumed.inputs == state.inputs
    state.begin_epoch(4)
    assert state.mean_variance != resumed.mean_variance


def test_numbers_beyond_a_record_are_cut():
    state = make_state()
    state.open_store(0, 2, OWNER)
    state.begin_epoch(100_000)
    state.add(Visit(np.array([1]), records(0.5), np.float32([1])))
    state.commit()
    assert state.store.records["epoch"].tolist() == [0, 65535]


SIZE = 12
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.integers(0, SIZE - 1), max_size=6, unique=True)),
        st.tuples(st.just("save"), st.just(None)),
        st.tuples(st.just("resume"), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, whole=st.sampled_from([0, SIZE]))
def test_any_sequence_equals_a_dictionary(steps, whole, tmp_path_factory):
    """Visits, checkpoints, resumes from any kept checkpoint, and checkpoints that are removed."""
    folder = tmp_path_factory.mktemp("run")
    number = 0
    kept, known, states = [], {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "WHOLE", whole)
        patch.setattr(capability, "CHUNK", 5)

        def begun(saved=None):
            state = make_state(str(folder))
            if saved is not None:
                state.load_state_dict(saved)
            state.open_store(0, SIZE, OWNER)
            states.append(state)  # its lock is this process's
            return state

        state = begun()
        for step, value in steps:
            if step == "write":
                number += 1
                seen = records(*[number + i / 100 for i in value])
                state.add(Visit(np.array(value, np.int64), seen, np.zeros(0, np.float32)))
                state.commit()
                known.update({i: number + i / 100 for i in value})
            elif step == "save":
                path = folder / f"checkpoint{len(kept)}_{number}.pt"
                torch.save({"rl": state.state_dict()}, path)
                kept.append((path, dict(known)))
            elif kept and step == "resume":
                path, known = kept[value % len(kept)]
                known = dict(known)
                state = begun(torch.load(path, weights_only=True)["rl"])
            elif kept:
                kept.pop(value % len(kept))[0].unlink(missing_ok=True)
                kept = [pair for pair in kept if pair[0].exists()]
            expected = np.float32([known.get(i, np.nan) for i in range(SIZE)])
            assert np.array_equal(state.store.capability(range(SIZE)), expected, equal_nan=True)
