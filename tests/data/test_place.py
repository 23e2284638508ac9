"""A run that goes on with other ranks or another --update-freq has each batch of the epoch once."""

import itertools
import logging

import pytest
import torch
from fairseq.data import iterators
from hypothesis import given, settings
from hypothesis import strategies as st

import esrl_fairseq  # noqa: F401  (its shims)
from esrl_fairseq.data.place import refuse_other_batches
from esrl_fairseq.errors import EsrlError


class Numbers(torch.utils.data.Dataset):
    """0, 1, 2, …; ``prefetches`` as fairseq's old datasets do."""

    def __init__(self, size, prefetches=False):
        self.size, self.supports_prefetch = size, prefetches

    def __getitem__(self, index):
        return index

    def __len__(self):
        return self.size

    def prefetch(self, indices):
        """Nothing has to be read."""


class Ranks:
    """All ranks of a run in one process, going on from ``state``.

    Args:
        update_freq: batches of each rank an update.
    """

    def __init__(self, batches, ranks, update_freq, state=None, skip=False, **options):
        prefetches = options.pop("prefetches", False)
        accept = options.pop("accept", False)
        self.update_freq, self.skip = update_freq, skip
        self.iterators = [
            iterators.EpochBatchIterator(
                Numbers(sum(map(len, batches)), prefetches),
                list,
                batches,
                num_shards=ranks,
                shard_id=rank,
                **options,
            )
            for rank in range(ranks)
        ]
        for iterator in self.iterators:
            iterator.accept_other_batches = accept
            if state is not None:
                iterator.load_state_dict(state)

    def updates(self):
        """Of the next epoch: each update's batches, of all ranks; the place is that after it."""
        groups = [
            iterators.GroupedIterator(
                iterator.next_epoch_itr(), self.update_freq, skip_remainder_batch=self.skip
            )
            for iterator in self.iterators
        ]
        while groups[0].has_next():
            update = [next(group) for group in groups]
            assert len({group.has_next() for group in groups}) == 1
            yield [batch for own in update for batch in own if batch]

    @property
    def epoch(self):
        """The next one."""
        (epoch,) = {iterator.next_epoch_idx for iterator in self.iterators}
        return epoch

    def state(self):
        """The first rank's, as a checkpoint has it; all have the same."""
        states = [iterator.state_dict() for iterator in self.iterators]
        assert all(state == states[0] for state in states)
        return states[0]


def of_size(number, size=2):
    """That many batches."""
    return [list(range(size * i, size * i + size)) for i in range(number)]


legs = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), legs, st.booleans(), st.booleans())
def test_each_batch_once_and_the_epoch_counted_once(number, legs, prefetches, whole_epoch_before):
    """Each leg: so many ranks, so many batches an update, stopped after so many updates."""
    batches, state, seen = of_size(number), None, []
    if whole_epoch_before:
        first = Ranks(batches, 2, 1, prefetches=prefetches)
        assert len(list(first.updates())) == -(-number // 2)
        state = first.state()
    epoch = 1 + whole_epoch_before
    for ranks, update_freq, stop in legs:
        run = Ranks(batches, ranks, update_freq, state, prefetches=prefetches)
        assert run.epoch == epoch
        updates = list(itertools.islice(run.updates(), stop))
        seen += itertools.chain(*updates)
        state = run.state()
        assert state["epoch"] == epoch or state["epoch"] == epoch + 1
        if state["epoch"] != epoch:
            break
        assert len(updates) == stop, "the epoch's updates are over, but not the epoch"
    else:
        seen += itertools.chain(*Ranks(batches, 3, 1, state, prefetches=prefetches).updates())
    assert sorted(seen) == batches


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 40), legs)
def test_grouped_shuffling(number, legs):
    """Its order depends on the number of ranks: the first one's is kept for the epoch."""
    batches = of_size(number)
    expected = sorted(itertools.chain(*Ranks(batches, 2, 1, grouped_shuffling=True).updates()))
    first = Ranks(batches, 2, 1, grouped_shuffling=True)
    seen = list(itertools.chain(*itertools.islice(first.updates(), 2)))
    state = first.state()
    for ranks, update_freq, stop in legs:
        if state["epoch"] == 2:
            break
        run = Ranks(batches, ranks, update_freq, state, grouped_shuffling=True)
        seen += itertools.chain(*itertools.islice(run.updates(), stop))
        state = run.state()
    if state["epoch"] == 1:
        seen += itertools.chain(*Ranks(batches, 3, 1, state, grouped_shuffling=True).updates())
    assert sorted(seen) == expected


@pytest.mark.parametrize("stop", [3, 7, 36, 37])
def test_remainders_that_are_skipped(stop):
    """--skip-remainder-batch leaves out less than an update, and ends the epoch."""
    first = Ranks(of_size(38), 1, 1)
    seen = list(itertools.chain(*itertools.islice(first.updates(), stop)))
    run = Ranks(of_size(38), 1, 2, first.state(), skip=True)
    seen += itertools.chain(*run.updates())
    assert 37 <= len(seen) and len({batch[0] for batch in seen}) == len(seen)
    assert run.epoch == 2


def test_the_same_ranks_have_what_fairseq_gives_them():
    """In the same order, for each rank."""
    whole = list(Ranks(of_size(39), 2, 2).updates())
    run = Ranks(of_size(39), 2, 2)
    begun = list(itertools.islice(run.updates(), 4))
    assert begun + list(Ranks(of_size(39), 2, 2, run.state()).updates()) == whole


def test_checkpoints_of_fairseq_itself():
    """They count the batches of one rank; how many ranks there were is in their configuration."""
    run = Ranks(of_size(38), 2, 1)
    seen = list(itertools.chain(*itertools.islice(run.updates(), 7)))
    stock = ("version", "epoch", "iterations_in_epoch", "shuffle")
    state = {key: run.state()[key] for key in stock}
    seen += itertools.chain(*Ranks(of_size(38), 1, 1, {**state, "order_of": 2}).updates())
    assert sorted(seen) == of_size(38)
    # The last of one rank was a dummy, so that the epoch was over for another number of them.
    state["iterations_in_epoch"] = 19
    assert Ranks(of_size(38), 1, 1, {**state, "order_of": 2}).epoch == 2


@pytest.mark.parametrize("other", [{"batches": of_size(19, 4)}, {"seed": 5}])
def test_other_batches(other, caplog):
    """They are refused, or gone on with at the same share of the epoch; no word of other ranks."""
    caplog.set_level(logging.INFO)
    run = Ranks(of_size(38), 1, 1)
    list(itertools.islice(run.updates(), 12))
    batches = other.pop("batches", of_size(38))
    refused = Ranks(batches, 1, 1, run.state(), **other)
    with pytest.raises(EsrlError, match=r"after 12 of 38 .* \((19|38)\): .*--accept-other-batches"):
        refuse_other_batches(refused.iterators[0])
    assert not [r for r in caplog.records if r.name.startswith("esrl")]
    with caplog.at_level(logging.WARNING):
        changed = Ranks(batches, 2, 1, run.state(), accept=True, **other)
    assert "some sentences may come twice" in caplog.text
    rest = list(itertools.chain(*changed.updates()))
    assert len(rest) == len(batches) - 12 * len(batches) // 38 and changed.epoch == 2
    # At the end of an epoch nothing is begun.
    assert Ranks(of_size(19, 4), 1, 1, {**run.state(), "iterations_in_epoch": 0}).epoch == 1
